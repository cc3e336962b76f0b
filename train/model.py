"""The session model: a GRU over item embeddings that scores every item as the next click.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks" (arXiv 1511.06939);
shared ("constrained") embedding from Hidasi & Karatzoglou (arXiv 1706.03847).
The same `encode` and `scores` are trained, evaluated and exported: there is no second forward pass.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class GRU4RecConfig:
    """What the weights' shapes follow from; it is kept in the checkpoint."""

    n_items: int
    hidden_size: int = 100
    n_layers: int = 1
    embedding: Literal["shared", "separate"] = "shared"
    dropout_embedding: float = 0.0
    dropout_hidden: float = 0.0


class GRULayer(nn.Module):
    """One GRU layer, one click at a time, in plain operations that export as they stand.

    Cho et al. (arXiv 1406.1078), with the reset gate behind the recurrent product, so that all
    three gates of the hidden side are one matrix product. Same equations and same packing
    (reset, update, new) as `torch.nn.GRUCell`.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_input = nn.Parameter(torch.empty(3 * hidden_size, input_size))
        self.weight_hidden = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.bias_input = nn.Parameter(torch.zeros(3 * hidden_size))
        self.bias_hidden = nn.Parameter(torch.zeros(3 * hidden_size))
        for weight in (self.weight_input, self.weight_hidden):
            for gate in weight.data.chunk(3):  # each gate is a matrix of its own to Glorot's bound
                nn.init.xavier_uniform_(gate)

    def forward(
        self, x: Float[Tensor, "B I"], hidden: Float[Tensor, "B H"]
    ) -> Float[Tensor, "B H"]:
        """The hidden state after one more input."""
        x_reset, x_update, x_new = F.linear(x, self.weight_input, self.bias_input).chunk(3, dim=1)
        h_reset, h_update, h_new = F.linear(hidden, self.weight_hidden, self.bias_hidden).chunk(
            3, dim=1
        )
        reset = torch.sigmoid(x_reset + h_reset)
        update = torch.sigmoid(x_update + h_update)
        new = torch.tanh(x_new + reset * h_new)
        return new + update * (hidden - new)


class GRU4Rec(nn.Module):
    """Session model over N items; `hidden` is all it knows of a session and starts as zeros."""

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__()
        self.config = config
        n_items, hidden_size = config.n_items, config.hidden_size
        self.item_embedding = nn.Parameter(torch.empty(n_items, hidden_size))
        self.output_bias = nn.Parameter(torch.zeros(n_items))
        tables = [self.item_embedding]
        if config.embedding == "separate":
            self.input_embedding = nn.Parameter(torch.empty(n_items, hidden_size))
            tables.append(self.input_embedding)
        for table in tables:
            nn.init.xavier_uniform_(table)
        self.layers = nn.ModuleList(
            GRULayer(hidden_size, hidden_size) for _ in range(config.n_layers)
        )

    @property
    def input_table(self) -> nn.Parameter:
        """The rows clicks are read through: the output's own, or a table of their own."""
        return self.item_embedding if self.config.embedding == "shared" else self.input_embedding

    def initial_hidden(self, n_sessions: int) -> Float[Tensor, "L B H"]:
        """The state of sessions that have not clicked yet."""
        return self.output_bias.new_zeros(self.config.n_layers, n_sessions, self.config.hidden_size)

    def encode(
        self, item_index: Int64[Tensor, "B"], hidden: Float[Tensor, "L B H"]
    ) -> Float[Tensor, "L B H"]:
        """Advance B sessions by one click each; row b of both arguments is the same session."""
        return self.step(F.embedding(item_index, self.input_table), hidden)

    def step(
        self, embedded: Float[Tensor, "B H"], hidden: Float[Tensor, "L B H"]
    ) -> Float[Tensor, "L B H"]:
        """`encode` from embeddings already looked up, as the trainer does for its touched rows."""
        x = self._dropout(embedded, self.config.dropout_embedding)
        after = []
        for layer_index, layer in enumerate(self.layers):
            if layer_index:
                x = self._dropout(x, self.config.dropout_hidden)
            x = cast(GRULayer, layer)(x, hidden[layer_index])
            after.append(x)
        return torch.stack(after)

    def scores(
        self, hidden_last: Float[Tensor, "B H"], item_index: Int64[Tensor, "C"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Scores of the candidates as the next click; all N items when none are named."""
        if item_index is None:
            return self.score_rows(hidden_last, self.item_embedding, self.output_bias)
        return self.score_rows(
            hidden_last, self.item_embedding[item_index], self.output_bias[item_index]
        )

    def score_rows(
        self,
        hidden_last: Float[Tensor, "B H"],
        rows: Float[Tensor, "C H"],
        bias: Float[Tensor, "C"],
    ) -> Float[Tensor, "B C"]:
        """`scores` from output rows already looked up."""
        return F.linear(self._dropout(hidden_last, self.config.dropout_hidden), rows, bias)

    def _dropout(self, x: Float[Tensor, "B H"], share: float) -> Float[Tensor, "B H"]:
        if not self.training or share == 0:
            return x
        # Twice as fast on a CPU as F.dropout, whose Bernoulli draws are not vectorised.
        return x * ((torch.rand_like(x) >= share) / (1 - share))

    def n_parameters(self) -> int:
        """Weights in the model, for the log line of a run."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters())
