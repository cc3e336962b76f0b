"""The layers a session model is stacked from, one click at a time.

A layer keeps a flat state per session, zeros before the first click. State and output differ: an
LSTM's state is hidden and cell, a window's is its last inputs.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from train.network import kernels

Cell = Literal["rnn", "lstm", "gru", "window"]

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Matrices on either side of a recurrent layer, stacked row-wise."""
WINDOW = 3
"""Clicks that the feed-forward network sees."""


class LowRank(nn.Module):
    """What a context's matrix adds to the one all contexts share, `W_c - W = up diag(s_c) down`.

    Liu et al. (arXiv 1609.05787, eq. 5 to 7) give every context a full matrix of its own; at rank
    R it takes R numbers per context value. Several fields add up in s_c.
    """

    def __init__(self, input_size: int, output_size: int, sizes: Sequence[int], rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, input_size))
        self.up = nn.Parameter(torch.zeros(output_size, rank))  # at first the context has no effect
        nn.init.xavier_uniform_(self.down)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(size, rank)) for size in sizes)

    def forward(
        self, x: Float[Tensor, "B I"], context: Int32[Tensor, "B F"]
    ) -> Float[Tensor, "B O"]:
        """What the context adds to `W x`."""
        scale = sum(F.embedding(context[:, f], table) for f, table in enumerate(self.scales))
        return F.linear(F.linear(x, self.down) * scale, self.up)


class RecurrentLayer(nn.Module):
    """RNN, GRU or LSTM.

    `input_size` None: the input is the input side of the gates itself, a row of a one-hot
    embedding. `transition_sizes` are the sizes of the context fields that have recurrent matrices
    of their own, of rank `rank`.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int | None,
        hidden_size: int,
        transition_sizes: Sequence[int] = (),
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.cell, self.hidden_size, gates = cell, hidden_size, GATES[cell]
        self.state_size = 2 * hidden_size if cell == "lstm" else hidden_size
        weights = []
        if input_size is not None:
            self.weight_input = nn.Parameter(torch.empty(gates * hidden_size, input_size))
            weights.append(self.weight_input)
        self.weight_hidden = nn.Parameter(torch.empty(gates * hidden_size, hidden_size))
        self.bias_input = nn.Parameter(torch.zeros(gates * hidden_size))
        self.bias_hidden = nn.Parameter(torch.zeros(gates * hidden_size))
        for weight in (*weights, self.weight_hidden):
            for gate in weight.data.chunk(gates):  # Glorot's bound is that of a single gate
                nn.init.xavier_uniform_(gate)
        if transition_sizes:
            self.transition_context = LowRank(
                hidden_size, gates * hidden_size, transition_sizes, rank
            )

    def forward(
        self, x: Float[Tensor, "B I"], state: Float[Tensor, "B S"], transition: Int32[Tensor, "B F"]
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B S"]]:
        """The output and the state after one more input."""
        hidden = state[:, : self.hidden_size]
        if hasattr(self, "weight_input"):
            x_gates = F.linear(x, self.weight_input, self.bias_input)
        else:
            x_gates = x + self.bias_input
        h_gates = F.linear(hidden, self.weight_hidden, self.bias_hidden)
        if hasattr(self, "transition_context"):
            h_gates = h_gates + self.transition_context(hidden, transition)
        if x_gates.dtype == torch.bfloat16:  # products alone are of lower precision
            x_gates, h_gates = x_gates.float(), h_gates.float()
        if self.cell == "rnn":
            output = torch.tanh(x_gates + h_gates)
            return output, output
        if self.cell == "gru":
            output = _gru(x_gates, h_gates, hidden)
            return output, output
        return _lstm(x_gates, h_gates, state[:, self.hidden_size :])


def _gru(
    x_gates: Float[Tensor, "B H3"], h_gates: Float[Tensor, "B H3"], hidden: Float[Tensor, "B H"]
) -> Float[Tensor, "B H"]:
    """Cho et al. (arXiv 1406.1078), with the reset gate behind the recurrent product.

    So all three gates of the hidden side are one matrix product. Equations and packing (reset,
    update, new) are those of `torch.nn.GRUCell`.
    """
    if torch.is_grad_enabled() and x_gates.dtype == torch.float32 and not x_gates.is_cuda:
        output: Tensor = _CompiledGRU.apply(x_gates, h_gates, hidden)
        return output
    x_reset, x_update, x_new = x_gates.chunk(3, dim=1)
    h_reset, h_update, h_new = h_gates.chunk(3, dim=1)
    reset = torch.sigmoid(x_reset + h_reset)
    update = torch.sigmoid(x_update + h_update)
    new = torch.tanh(x_new + reset * h_new)
    return new + update * (hidden - new)


class _CompiledGRU(torch.autograd.Function):
    """What `_gru` computes, for training: one pass each way instead of ten and fifteen."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_gates: Tensor, h_gates: Tensor, hidden: Tensor) -> Tensor:
        output, gates = torch.empty_like(hidden), torch.empty_like(x_gates)
        arrays = (t.detach().numpy() for t in (x_gates, h_gates, hidden, output, gates))
        kernels.gru(*arrays)
        ctx.save_for_backward(h_gates, hidden, gates)
        return output

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h_gates, hidden, gates = ctx.saved_tensors
        results = torch.empty_like(gates), torch.empty_like(gates), torch.empty_like(hidden)
        given = (of_output.contiguous(), h_gates, hidden, gates)
        kernels.gru_gradient(*(t.detach().numpy() for t in (*given, *results)))
        return results


def _lstm(
    x_gates: Float[Tensor, "B H4"], h_gates: Float[Tensor, "B H4"], memory: Float[Tensor, "B H"]
) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H2"]]:
    """Hochreiter & Schmidhuber (Neural Computation 9(8), 1997), with Gers et al.'s forget gates.
    Equations and packing (input, forget, cell, output) are those of `torch.nn.LSTMCell`."""
    write, forget, new, read = (x_gates + h_gates).chunk(4, dim=1)
    memory = torch.sigmoid(forget) * memory + torch.sigmoid(write) * torch.tanh(new)
    output = torch.sigmoid(read) * torch.tanh(memory)
    return output, torch.cat([output, memory], dim=1)


class WindowLayer(nn.Module):
    """A feed-forward network over the last three inputs, to compare recurrence with.

    Its state is the inputs before the last one, newest first; its output is tanh of one matrix
    over all of them.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.state_size = (WINDOW - 1) * input_size
        self.weight = nn.Parameter(torch.empty(hidden_size, WINDOW * input_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        nn.init.xavier_uniform_(self.weight)

    def forward(
        self, x: Float[Tensor, "B I"], state: Float[Tensor, "B S"], transition: Int32[Tensor, "B F"]
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B S"]]:
        """The output and the state after one more input."""
        inputs = torch.cat([x, state], dim=1)
        return torch.tanh(F.linear(inputs, self.weight, self.bias)), inputs[:, : self.state_size]
