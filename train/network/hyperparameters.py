"""What determines the weights besides the log, and which of it can be combined."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from train.command import Settings
from train.network.model import Architecture
from train.network.optimiser import Rule

Loss = Literal["bpr-max", "cross-entropy", "softmax", "top1-max", "bpr", "top1"]

RATES = {"adagrad": 0.05, "adam": 0.0015, "sgd": 0.5}
"""Learning rates where none is given."""


class Learning(Settings):
    """How the network learns."""

    loss: Loss = "cross-entropy"
    """What a step minimises: softmax over the whole catalogue, the others over the step's targets
    and negatives. Cross-entropy corrects for how likely each of those is drawn (logQ)."""
    n_negatives: NonNegativeInt = 2048
    """Negatives drawn for each step, in addition to the batch's own targets; softmax needs none."""
    batch_size: PositiveInt = 32
    """Sessions per step. Unset: 32, or 64 from 500,000 training clicks on."""
    bptt: PositiveInt = 2
    """Clicks of a session that gradients flow back through; they share one update, in which a
    session's own targets are never its negatives."""
    optimiser: Rule = "adagrad"
    """Update rule."""
    learning_rate: PositiveFloat = 0.05
    """Of the optimiser. Unset: 0.05 for adagrad, or 0.035 from 500,000 training clicks on; 0.0015
    for adam, 0.5 for sgd."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights and updates stay float32. A device without bfloat16 computes in
    float32 and says so."""
    seed: int = Field(default=1, ge=0, le=2**32 - 1)
    """Of the initial weights, the order of sessions, the negatives and dropout."""


class FineTuning(Settings):
    """What only a preset changes: rarely worth a trial, but part of published results."""

    order: Literal["random", "time"] = "time"
    """Order of the sessions in an epoch; by time, the newest teach last."""
    sample_alpha: float = Field(default=0.3, ge=0, le=2)
    """Negatives are drawn with probability proportional to support^sample_alpha."""
    bpreg: NonNegativeFloat = 1.0
    """BPR-max: weight of the score regularisation."""
    elu: NonNegativeFloat = 0.5
    """BPR-max: alpha of the exponential linear unit on the scores; 0 leaves it out."""
    momentum: float = Field(default=0.15, ge=0, lt=1)
    """Nesterov momentum of adagrad and sgd. Unset: 0 for adam."""
    initial_accumulator: NonNegativeFloat = 0.0
    """Adagrad: initial sum of squared gradients. Above the squares of most gradients, small ones
    move a weight little, as with sgd. Unset: 0.001 with cosine scores, else 0."""


class Hyperparameters(Architecture, Learning, FineTuning):
    """What determines the weights besides the log; kept in the checkpoint."""

    @model_validator(mode="before")
    @classmethod
    def _fill_unset(cls, given: Any) -> Any:
        """What is best for the loss and the optimiser, where nothing is given."""
        if not isinstance(given, dict):
            return given
        values = {"loss": "cross-entropy", "optimiser": "adagrad", **given}
        rule = values["optimiser"]
        # On RSC15-100k, BPR-max falls from .682 to .495 Recall@20 with cosine scores times 16, and
        # on Diginetica to .13 with plain scores and an accumulator of 0.001.
        is_cosine = values["loss"] in ("cross-entropy", "softmax")
        filled = {"normalise": 16.0 if is_cosine else 0.0, **values}
        if rule == "adagrad" and filled["normalise"] not in (0, "0", "0.0"):
            filled = {"initial_accumulator": 1e-3, **filled}
        if rule == "adam":
            filled = {"momentum": 0.0, **filled}
        return {**({"learning_rate": RATES[rule]} if rule in RATES else {}), **filled}

    @model_validator(mode="after")
    def _fits_together(self) -> "Hyperparameters":
        window, one_hot = self.cell == "window", self.embedding == "one-hot"
        if self.is_sampled and self.batch_size == 1 and self.n_negatives == 0:
            raise ValueError(
                f"loss={self.loss} needs negatives, but batch_size=1 and n_negatives=0 leave none"
            )
        if self.optimiser == "adam" and self.momentum > 0:
            raise ValueError(
                f"momentum={self.momentum:g} cannot be combined with optimiser=adam, which has its "
                "own moments; use adagrad or sgd, or momentum=0"
            )
        if self.optimiser != "adagrad" and self.initial_accumulator > 0:
            raise ValueError(
                f"initial_accumulator={self.initial_accumulator:g} cannot be combined with "
                f"optimiser={self.optimiser}, which has none; use adagrad"
            )
        if window and self.n_layers > 1:
            raise ValueError(
                f"n_layers={self.n_layers} cannot be combined with cell=window, which has one layer"
            )
        if window and one_hot:
            raise ValueError(
                "embedding=one-hot cannot be combined with cell=window, which has no gates; use "
                "separate or shared"
            )
        if one_hot and self.residual and self.n_layers == 1:
            raise ValueError(
                "residual=true cannot be combined with embedding=one-hot and one layer, which "
                "leave no input to add"
            )
        return self

    def check_context(self, names: Sequence[str]) -> None:
        """Raise ValueError if context fields of these names cannot enter this network."""
        if self.embedding == "one-hot":
            for setting, way, is_used in (
                ("input_context", self.input_context, any(name != "gap" for name in names)),
                ("transition_context", self.transition_context, "gap" in names),
            ):
                if way == "concat" and is_used:
                    raise ValueError(
                        f"{setting}=concat cannot be combined with embedding=one-hot, which has no "
                        "vector to extend; use multiply, or another embedding"
                    )
        if self.cell == "window" and self.transition_context == "matrices" and "gap" in names:
            raise ValueError(
                "transition_context=matrices cannot be combined with cell=window, which is not "
                "recurrent; use concat or multiply"
            )

    @property
    def is_sampled(self) -> bool:
        """A step looks at candidates instead of the whole catalogue."""
        return self.loss != "softmax"
