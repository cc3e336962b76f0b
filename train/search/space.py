"""Which hyperparameters a search draws, from which range, and which have an effect in a trial.

The space contains what has won somewhere or still may. What has not (bpr, top1, sgd), what costs as
much as the catalogue is long (softmax, one-hot) and another kind of network (window) can be fixed.
Dimensions are drawn in this order: what one needs comes before it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from optuna.trial import BaseTrial

Values: TypeAlias = Mapping[str, Any]


class Choice(NamedTuple):
    """One of these, unordered."""

    values: tuple[Any, ...]

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def nearest(self, value: Any) -> Any:
        """The value itself, or the first one."""
        return value if value in self.values else self.values[0]

    def __str__(self) -> str:
        return ", ".join(f"{value}".lower() for value in self.values)


class Rungs(NamedTuple):
    """One of these integers on a log scale: 64 and 96 are as far apart as 128 and 192."""

    values: tuple[int, ...]

    def suggest(self, trial: BaseTrial, name: str) -> int:
        """The rung nearest to a number drawn between the first and the last."""
        return self.nearest(trial.suggest_int(name, self.values[0], self.values[-1], log=True))

    def nearest(self, value: int) -> int:
        return min(self.values, key=lambda rung: abs(math.log(rung / max(value, 1))))

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


class Real(NamedTuple):
    """A number of two digits: more would not tell trials apart any better."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: BaseTrial, name: str) -> float:
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.2g}")

    def nearest(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


class Needs(NamedTuple):
    """A parameter has an effect only if `parameter` is one of `values`."""

    parameter: str
    values: tuple[Any, ...]


class Dimension(NamedTuple):
    """A parameter and the range it is drawn from."""

    parameter: str
    values: Choice | Rungs | Real
    needs: Needs | None = None
    suffix: str = ""
    """Distinguishes the ranges of a parameter that has several."""

    @property
    def name(self) -> str:
        return self.parameter + self.suffix

    def __str__(self) -> str:
        text = f"{self.parameter} {self.values}"
        if self.needs is None:
            return text
        return f"{text} where {self.needs.parameter} is {Choice(self.needs.values)}"


SAMPLED = Needs("loss", ("bpr-max", "cross-entropy", "top1-max", "bpr", "top1"))
RECURRENT = Needs("cell", ("rnn", "gru", "lstm"))
INPUT, TRANSITION = Needs("context", ("input", "both")), Needs("context", ("gap", "both"))

SPACE = (
    Dimension("cell", Choice(("gru", "lstm", "rnn"))),
    Dimension("hidden_size", Rungs((64, 100, 128, 200, 256, 384, 512))),
    Dimension("n_layers", Rungs((1, 2, 3)), RECURRENT),
    Dimension("embedding", Choice(("shared", "separate"))),
    Dimension("residual", Choice((False, True))),
    Dimension("normalise", Choice((0.0, 8.0, 12.0, 16.0, 24.0))),
    Dimension("input_context", Choice(("concat", "multiply")), INPUT),
    Dimension("transition_context", Choice(("concat", "multiply", "matrices")), TRANSITION),
    Dimension("loss", Choice(("bpr-max", "cross-entropy", "top1-max"))),
    Dimension("n_negatives", Rungs((128, 256, 512, 1024, 2048, 4096)), SAMPLED),
    Dimension("sample_alpha", Real(0, 1), SAMPLED),
    Dimension("batch_size", Rungs((16, 32, 48, 64, 96, 128, 192, 256))),
    Dimension("bptt", Rungs((1, 2, 4, 8))),
    Dimension("dropout_embedding", Real(0, 0.7)),
    Dimension("dropout_hidden", Real(0, 0.7)),
    Dimension("optimiser", Choice(("adagrad", "adam"))),
    Dimension("learning_rate", Real(0.01, 0.3, log=True), Needs("optimiser", ("adagrad",))),
    Dimension(
        "learning_rate", Real(0.0002, 0.02, log=True), Needs("optimiser", ("adam",)), "@adam"
    ),
    Dimension("learning_rate", Real(0.02, 2, log=True), Needs("optimiser", ("sgd",)), "@sgd"),
    Dimension(
        "initial_accumulator",
        Choice((0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
        Needs("optimiser", ("adagrad",)),
    ),
    Dimension("momentum", Real(0, 0.6), Needs("optimiser", ("adagrad", "sgd"))),
)

PARAMETERS = tuple(dict.fromkeys(dimension.parameter for dimension in SPACE))


@dataclass(frozen=True, slots=True)
class Space:
    """The part of SPACE that one search draws from, and what it leaves as it is."""

    dimensions: tuple[Dimension, ...]
    fixed: Values
    """The parameters that are not drawn, and which context there is: input, gap, both or none."""

    def draw(self, trial: BaseTrial) -> dict[str, Any]:
        """A value for each parameter that has an effect given the others."""
        drawn: dict[str, Any] = {}
        for dimension in self.dimensions:
            if _is_met(dimension.needs, {**self.fixed, **drawn}):
                drawn[dimension.parameter] = dimension.values.suggest(trial, dimension.name)
        return drawn

    def nearest(self, values: Values) -> dict[str, Any]:
        """What a trial must draw, by name in the study, to be as near to `values` as possible."""
        near, point = {**values, **self.fixed}, {}
        for dimension in self.dimensions:
            if _is_met(dimension.needs, near):
                value = dimension.values.nearest(near[dimension.parameter])
                near[dimension.parameter] = point[dimension.name] = value
        return point

    def never_drawn(self) -> dict[str, Needs]:
        """Parameters that have no effect in any trial, and what they need."""
        choices: dict[str, Sequence[Any]] = {name: (value,) for name, value in self.fixed.items()}
        never: dict[str, Needs] = {}
        for dimension in self.dimensions:
            name, needs = dimension.parameter, dimension.needs
            if needs is not None and set(needs.values).isdisjoint(choices[needs.parameter]):
                if name not in choices:
                    never[name] = needs
                continue
            choices[name] = dimension.values.values if isinstance(dimension.values, Choice) else ()
            never.pop(name, None)
        return never


def space_of(names: Sequence[str], fixed: Values, fits: Callable[[str, Any], bool]) -> Space:
    """The space of these parameters, without choices that cannot be combined with the fixed."""
    dimensions = []
    for dimension in (d for d in SPACE if d.parameter in names):
        name, values = dimension.parameter, dimension.values
        if isinstance(values, Choice):
            values = Choice(tuple(value for value in values.values if fits(name, value)))
        dimensions.append(dimension._replace(values=values))
    return Space(tuple(dimensions), fixed)


def _is_met(needs: Needs | None, values: Values) -> bool:
    return needs is None or values[needs.parameter] in needs.values
