"""The session model: layers over item embeddings that score every item as the next click.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks" (arXiv 1511.06939);
shared ("constrained") embedding from Hidasi & Karatzoglou (arXiv 1706.03847); context from Liu et
al. (arXiv 1609.05787). Training and evaluation share `step` and `score_rows`. `export/encode.py`
writes the same computation a second time, as an ONNX graph; `export/parity.py` compares the two
before a bundle is written.
"""

from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from train.command import Settings
from train.data.context import ContextField
from train.network import kernels
from train.network.cells import GATES, Cell, RecurrentLayer, WindowLayer

Embedding = Literal["shared", "separate", "one-hot"]
InputContext = Literal["concat", "multiply"]
TransitionContext = Literal["concat", "multiply", "matrices"]

CONTEXT_SIZE = 16
"""Width of a context embedding next to the item's, and rank of context matrices."""


class Architecture(Settings):
    """What kind of network it is."""

    cell: Cell = "gru"
    """Recurrent cell; window is a feed-forward network over the last three clicks instead."""
    hidden_size: PositiveInt = 100
    """Units of each layer, and width of the item embedding. Unset: 100, or 256 from 500,000
    training clicks on."""
    n_layers: PositiveInt = 1
    """Layers, each fed by the one below."""
    embedding: Embedding = "shared"
    """How the last click is read: through the rows that score items (shared), through a table of
    its own (separate), or straight into the first layer's gates (one-hot)."""
    residual: bool = False
    """Add each layer's input to its output."""
    normalise: NonNegativeFloat = 16.0
    """Score by the cosine of session and item, times this number; 0: by the plain product. Unset:
    16 for cross-entropy and softmax, 0 for the other losses."""
    dropout_embedding: float = Field(default=0.4, ge=0, lt=1)
    """Share of an item embedding's entries dropped in a training step."""
    dropout_hidden: float = Field(default=0.2, ge=0, lt=1)
    """Share of a layer's output dropped on its way to the next layer or to the scores."""
    input_context: InputContext = "concat"
    """How context of the click itself enters: as an embedding next to the item's (concat), or as a
    factor of the item's embedding (multiply)."""
    transition_context: TransitionContext = "concat"
    """How the gap since the previous click enters: likewise, or through recurrent matrices of its
    own (matrices)."""


class ModelConfig(Architecture):
    """Everything that determines the shapes of the weights; kept in the checkpoint."""

    n_items: PositiveInt
    normalise: NonNegativeFloat = 0.0
    context: tuple[ContextField, ...] = ()

    @property
    def input_columns(self) -> list[int]:
        """Columns of `context` that describe the click itself."""
        return [n for n, field in enumerate(self.context) if field.kind != "gap"]

    @property
    def transition_columns(self) -> list[int]:
        """Columns of `context` that describe the step from the previous click."""
        return [n for n, field in enumerate(self.context) if field.kind == "gap"]

    def columns(self, way: str) -> list[int]:
        """Columns of `context` that enter in this way."""
        of_input = self.input_columns if self.input_context == way else []
        return of_input + (self.transition_columns if self.transition_context == way else [])


class SessionModel(nn.Module):
    """Session model over N items; `state` is all it knows of a session and starts as zeros."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        n_items, hidden_size = config.n_items, config.hidden_size
        self.item_embedding = nn.Parameter(torch.empty(n_items, hidden_size))
        self.output_bias = nn.Parameter(torch.zeros(n_items))
        nn.init.xavier_uniform_(self.item_embedding)
        width = hidden_size
        if config.embedding != "shared":
            if config.embedding == "one-hot":
                width = GATES[config.cell] * hidden_size
            self.input_embedding = nn.Parameter(torch.empty(n_items, width))
            nn.init.xavier_uniform_(self.input_embedding)
        sizes = [field.size for field in config.context]
        self.concatenated = nn.ParameterList(
            nn.Parameter(0.1 * torch.randn(sizes[c], CONTEXT_SIZE))
            for c in config.columns("concat")
        )
        self.multiplied = nn.ParameterList(
            nn.Parameter(torch.zeros(sizes[c], width)) for c in config.columns("multiply")
        )
        self.layers = nn.ModuleList(self._build_layers(width, sizes))
        self.state_sizes = [cast(int, layer.state_size) for layer in self.layers]
        self.state_size = sum(self.state_sizes)

    def _build_layers(self, width: int, sizes: list[int]) -> Iterator[nn.Module]:
        config = self.config
        width += CONTEXT_SIZE * len(config.columns("concat"))
        if config.cell == "window":
            yield WindowLayer(width, config.hidden_size)
            return
        one_hot = config.embedding == "one-hot"
        matrices = [sizes[c] for c in config.columns("matrices")]
        yield RecurrentLayer(
            config.cell, None if one_hot else width, config.hidden_size, matrices, CONTEXT_SIZE
        )
        for _ in range(config.n_layers - 1):
            yield RecurrentLayer(config.cell, config.hidden_size, config.hidden_size)

    @property
    def input_table(self) -> nn.Parameter:
        """The rows clicks are read through: the output's own, or a table of their own."""
        return self.item_embedding if self.config.embedding == "shared" else self.input_embedding

    def initial_state(self, n_sessions: int) -> Float[Tensor, "B S"]:
        """The state of sessions that have not clicked yet."""
        return self.output_bias.new_zeros(n_sessions, self.state_size)

    def encode(
        self,
        item_index: Int64[Tensor, "B"],
        context: Int32[Tensor, "B F"],
        state: Float[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B S"]]:
        """Advance B sessions by one click each; the query that ranks the next, and the state. Row b
        of every argument is the same session."""
        return self.step(F.embedding(item_index, self.input_table), context, state)

    def step(
        self,
        embedded: Float[Tensor, "B E"],
        context: Int32[Tensor, "B F"],
        state: Float[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B S"]]:
        """`encode` from embeddings already looked up, as the trainer does for its touched rows."""
        config = self.config
        x = self._dropout(embedded, config.dropout_embedding)
        for table, column in zip(self.multiplied, config.columns("multiply"), strict=True):
            x = x * (1 + F.embedding(context[:, column], table))
        item = x
        embedded_context = [
            F.embedding(context[:, column], table)
            for table, column in zip(self.concatenated, config.columns("concat"), strict=True)
        ]
        if embedded_context:
            x = torch.cat([x, *embedded_context], dim=1)
        transition = context[:, config.transition_columns]
        states = torch.split(state, self.state_sizes, dim=1)
        after = []
        for n, (layer, before) in enumerate(zip(self.layers, states, strict=True)):
            below = item if n == 0 else x
            if n:
                x = self._dropout(x, config.dropout_hidden)
            x, layer_state = layer(x, before, transition)
            after.append(layer_state)
            if config.residual and below.shape == x.shape:
                x = x + below
        x = self._dropout(x, config.dropout_hidden)
        if config.normalise:
            x = config.normalise * _unit(x)
        return x, after[0] if len(after) == 1 else torch.cat(after, dim=1)

    def scores(
        self, query: Float[Tensor, "B H"], item_index: Int64[Tensor, "C"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Scores of the candidates as the next click; all N items when none are named."""
        if item_index is None:
            return self.score_rows(query, self.item_embedding, self.output_bias)
        return self.score_rows(query, self.item_embedding[item_index], self.output_bias[item_index])

    def score_rows(
        self, query: Float[Tensor, "B H"], rows: Float[Tensor, "C H"], bias: Float[Tensor, "C"]
    ) -> Float[Tensor, "B C"]:
        """`scores` from output rows already looked up."""
        return F.linear(query, self.output_rows(rows), bias)

    def output_rows(self, rows: Float[Tensor, "C H"]) -> Float[Tensor, "C H"]:
        """Rows of `item_embedding` as a query is multiplied with them."""
        return _unit(rows) if self.config.normalise else rows

    def _dropout(self, x: Float[Tensor, "B H"], share: float) -> Float[Tensor, "B H"]:
        if not self.training or share == 0:
            return x
        if x.dtype == torch.float32 and not x.is_cuda:
            dropped: Tensor = _CompiledDropout.apply(x, share)
            return dropped
        return F.dropout(x, share)


class _CompiledDropout(torch.autograd.Function):
    """Dropout in one pass, 0.01 ms for 128 x 512 entries where F.dropout takes 0.5."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share, ctx.seed = share, int(torch.randint(2**32, ()))
        return _dropped(x, share, ctx.seed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _dropped(gradient, ctx.share, ctx.seed), None


def _dropped(x: Tensor, share: float, seed: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kernels.dropout(
        x.detach().contiguous().numpy().reshape(-1),
        np.uint32(seed),
        np.uint32(share * 2**32),
        np.float32(1 / (1 - share)),
        out.numpy().reshape(-1),
    )
    return out


def _unit(x: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
    """Rows of unit length (NISER, Gupta et al., arXiv 1909.04276, sec. 4.1)."""
    return x * torch.rsqrt(x.square().sum(dim=1, keepdim=True) + 1e-12)
