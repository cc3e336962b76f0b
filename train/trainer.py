"""One epoch of training: steps over session-parallel batches that touch only their own items.

A step copies the embedding rows of its clicks, targets and negatives, differentiates with respect
to the copies, and updates those rows alone: its cost does not grow with the catalogue.
"""

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor

from train.batches import Step, session_parallel
from train.checkpoint import check_arrays, weights_of
from train.losses import bpr_max, cross_entropy
from train.model import GRU4Rec, GRU4RecConfig
from train.negatives import NegativeSampler, RowNumbers
from train.optimiser import Adagrad
from train.sessions import Sessions


class Hyperparameters(BaseModel):
    """What decides the weights, besides the log; kept in the checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    hidden_size: PositiveInt = 100
    """Units of each GRU layer, and width of the item embedding."""
    n_layers: PositiveInt = 1
    """GRU layers, one above the other."""
    embedding: Literal["shared", "separate"] = "separate"
    """Whether clicks are read through the rows items are scored with, or through a table of their
    own."""
    loss: Literal["bpr-max", "cross-entropy"] = "bpr-max"
    """What a step minimises."""
    bpreg: NonNegativeFloat = 1.0
    """BPR-max: weight of the score regularisation."""
    elu: NonNegativeFloat = 0.5
    """BPR-max: alpha of the exponential linear unit on the scores; 0 leaves it out."""
    logq: bool = True
    """Cross-entropy: correct the scores for how likely an item is among the candidates."""
    n_negatives: NonNegativeInt = 512
    """Negatives drawn for each step, beside the batch's own targets."""
    sample_alpha: float = Field(default=0.5, ge=0, le=2)
    """Negatives are drawn with probability proportional to support^sample_alpha."""
    batch_size: PositiveInt = 96
    """Sessions side by side."""
    dropout_embedding: float = Field(default=0.0, ge=0, lt=1)
    """Share of an embedding's entries left out of a training step."""
    dropout_hidden: float = Field(default=0.0, ge=0, lt=1)
    """Share of a hidden state's entries left out on the way up, to the next layer or the scores."""
    learning_rate: PositiveFloat = 0.07
    """Of Adagrad."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Nesterov momentum."""
    seed: NonNegativeInt = 1
    """Of the initial weights, the order of sessions, negatives and dropout."""

    @model_validator(mode="after")
    def _has_negatives(self) -> "Hyperparameters":
        if self.batch_size == 1 and self.n_negatives == 0:
            raise ValueError("a batch of one session and no drawn negatives leave nothing to learn")
        return self


class EpochResult(NamedTuple):
    """What one pass over the sessions cost and brought."""

    loss: float
    """Mean over the clicks trained on; not a number once one step's loss was not."""
    clicks: int
    seconds: float
    complete: bool
    """False if the deadline came first."""


class Trainer:
    """A model in training with all that changes from step to step."""

    def __init__(self, hyperparameters: Hyperparameters, support: Int64[np.ndarray, "N"]) -> None:
        self.hyperparameters = h = hyperparameters
        torch.manual_seed(h.seed)
        self.model = GRU4Rec(
            GRU4RecConfig(
                n_items=len(support),
                hidden_size=h.hidden_size,
                n_layers=h.n_layers,
                embedding=h.embedding,
                dropout_embedding=h.dropout_embedding,
                dropout_hidden=h.dropout_hidden,
            )
        )
        self._optimiser = Adagrad(self.model.named_parameters(), h.learning_rate, h.momentum)
        self._sampler = NegativeSampler(support, h.sample_alpha)
        self._numbers = RowNumbers(len(support))
        self._log_q: Tensor | None = None
        if h.loss == "cross-entropy" and h.logq:
            in_batch = h.batch_size * (2 if h.embedding == "shared" else 1)
            log_q = self._sampler.log_inclusion(h.n_negatives, in_batch)
            self._log_q = torch.from_numpy(log_q.astype(np.float32))

    def train_epoch(
        self,
        sessions: Sessions,
        epoch: int,
        *,
        deadline: float = float("inf"),
        on_step: Callable[[int, float], None] = lambda clicks, loss: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> EpochResult:
        """One pass over the sessions, or less if `clock` reaches `deadline`.

        `on_step` hears the clicks and the mean loss of each step. Random numbers follow from the
        seed and `epoch` alone.
        """
        h = self.hyperparameters
        seeds = np.random.SeedSequence([h.seed, epoch]).spawn(3)
        torch.manual_seed(int(seeds[0].generate_state(1)[0]))
        steps = session_parallel(sessions, h.batch_size, np.random.default_rng(seeds[1]))
        negatives = self._sampler.blocks(h.n_negatives, np.random.default_rng(seeds[2]))
        hidden = self.model.initial_hidden(h.batch_size)
        self.model.train()
        loss_sum, n_clicks, complete, begin = 0.0, 0, True, clock()
        for step in steps:
            if clock() >= deadline:
                complete = False
                break
            hidden, loss = self._step(step, next(negatives), hidden)
            loss_sum += loss * len(step.target)
            n_clicks += len(step.target)
            on_step(len(step.target), loss)
        self.model.eval()
        return EpochResult(loss_sum / max(1, n_clicks), n_clicks, clock() - begin, complete)

    def _step(
        self, step: Step, negatives: Int64[np.ndarray, "S"], hidden: Float[Tensor, "L B H"]
    ) -> tuple[Float[Tensor, "L b H"], float]:
        """Learn from one click of each session; the new hidden state and the mean loss.

        No gradient flows into earlier clicks: the hidden state is what it is.
        """
        model, h = self.model, self.hyperparameters
        n_lanes = len(step.target)
        shared = h.embedding == "shared"
        # A shared table's touched rows are gathered once; its clicks are candidates like others.
        drawn = [step.target, negatives, step.item_index] if shared else [step.target, negatives]
        item, place = self._numbers.number(np.concatenate(drawn))
        item_row, place_row = torch.from_numpy(item), torch.from_numpy(place)
        rows = model.item_embedding.detach()[item_row].requires_grad_()
        bias = model.output_bias.detach()[item_row].requires_grad_()
        if shared:
            input_rows, input_place = rows, place_row[-n_lanes:]
        else:
            input_item, input_number = self._numbers.number(step.item_index)
            input_item_row = torch.from_numpy(input_item)
            input_rows = model.input_embedding.detach()[input_item_row].requires_grad_()
            input_place = torch.from_numpy(input_number)

        hidden = hidden[:, :n_lanes] * torch.from_numpy(~step.first)[:, None]
        hidden = model.step(F.embedding(input_place, input_rows), hidden)
        scores = model.score_rows(hidden[-1], rows, bias)
        target = place_row[:n_lanes]
        if h.loss == "bpr-max":
            loss = bpr_max(scores, target, h.bpreg, h.elu)
        else:
            loss = cross_entropy(
                scores, target, None if self._log_q is None else self._log_q[item_row]
            )
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

        self._optimiser.step_rows("item_embedding", item_row, _gradient(rows))
        self._optimiser.step_rows("output_bias", item_row, _gradient(bias))
        if not shared:
            self._optimiser.step_rows("input_embedding", input_item_row, _gradient(input_rows))
        for name, parameter in model.layers.named_parameters(prefix="layers"):
            self._optimiser.step(name, _gradient(parameter))
            parameter.grad = None
        return hidden.detach(), loss.item()

    def state(self) -> dict[str, np.ndarray]:
        """A copy of all that training changes, weights included."""
        return weights_of(self.model) | self._optimiser.state()

    def load_state(self, source: str, state: dict[str, np.ndarray]) -> None:
        """Go on from a `state()`; CheckpointError names `source` if it is of another model."""
        own = self.model.state_dict()
        weights = {name: state[name] for name in own if name in state}
        check_arrays(source, weights, own)
        self.model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in weights.items()}
        )
        self._optimiser.load_state(
            source, {name: array for name, array in state.items() if name not in own}
        )


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None, "backward() reaches every tensor of a step"
    return tensor.grad
