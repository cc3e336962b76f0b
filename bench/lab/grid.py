"""What the experiments try: the data sets with their frozen bases, and one factor at a time.

A base is a small network (100 units) whose settings were chosen on validation before the grid was
run; a variant is the base with one thing changed. Where a change needs another learning rate to be
compared fairly, a few are tried and validation picks one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

from train.fit.loop import Schedule
from train.network.hyperparameters import Hyperparameters

Changes = dict[str, Any]

SYNTHETIC = "synthetic"
SYNTHETIC_CLICKS = 200_000
CELLS = ("rnn", "lstm", "gru")
LOSSES = ("bpr-max", "cross-entropy", "softmax", "top1-max", "bpr", "top1")
EMBEDDINGS = ("one-hot", "separate", "shared")
WAYS = ("concat", "multiply")
"""How context enters the network."""
COMMON: Changes = {
    "loss": "bpr-max",
    "normalise": 0.0,
    "sample_alpha": 0.5,
    "hidden_size": 100,
    "embedding": "shared",
    "n_negatives": 512,
    "bptt": 1,
    "order": "random",
    "momentum": 0.0,
    "initial_accumulator": 0.0,
}
"""Part of every base, so that no base changes with the defaults of `fit`."""


@dataclass(frozen=True)
class DataSet:
    """A folder of the data, the context of its clicks, and the network that variants start from."""

    name: str
    own: Changes
    """What the base has besides COMMON."""
    schedule: Schedule
    validation_fraction: float = 0.1
    seeds: tuple[int, ...] = (1,)
    input_context: tuple[str, ...] = ()
    """Fields of the click itself, given to all variants with input context."""
    alone: tuple[str, ...] = ()
    """Fields that are also given on their own."""
    has_time: bool = True
    """Timestamps are times, not just an order: there are gaps and a last day."""
    utc_offset_s: int = 0
    last_days: tuple[float, ...] = ()
    refit: bool = False
    """Before the test, train again on the whole training file for the epochs that validation chose:
    where its newest part holds most of what the test asks for."""
    crossed: bool = False
    """Also cells with layers, losses with embeddings, cells with context; and all tries."""

    @property
    def transition_context(self) -> tuple[str, ...]:
        """What lies between a click and the one before."""
        return ("gap",) if self.has_time else ()

    @property
    def base(self) -> Changes:
        return COMMON | self.own

    @property
    def frozen(self) -> dict[str, Any]:
        """What all runs of the data set share; runs with another base cannot be compared."""
        return {
            "base": self.base,
            "schedule": self.schedule.model_dump(mode="json", exclude_none=True),
            "validation_fraction": self.validation_fraction,
            "utc_offset_s": self.utc_offset_s,
            "refit": self.refit,
        }


@dataclass(frozen=True)
class Setting:
    """Everything that decides a training besides its seed."""

    changes: Changes = field(default_factory=dict)
    """Relative to the data set's base."""
    context: tuple[str, ...] = ()
    shuffled: tuple[str, ...] = ()
    """Fields whose values are shuffled among the clicks, in training and evaluation, as a control:
    only noise is left of them."""
    last_days: float | None = None
    """Train only on sessions that begin in the last so many days."""
    refit: bool = False
    """As the data set's, for this setting; it is asked about the same clicks as the others."""

    @property
    def reading(self) -> tuple[object, ...]:
        """How the log is read: settings that agree in it share their sessions."""
        return self.context, self.shuffled, self.last_days, self.refit

    def hyperparameters(self, data: DataSet, seed: int) -> Hyperparameters:
        return Hyperparameters.model_validate({**data.base, **self.changes, "seed": seed})


@dataclass(frozen=True)
class Variant:
    """A row of a factor's table: what is changed, and which further settings are tried with it."""

    factor: str
    name: str
    setting: Setting
    tries: tuple[Changes, ...] = ({},)
    against: Setting = field(default_factory=Setting)
    """What it is compared with; the base unless it says otherwise."""

    @cached_property
    def settings(self) -> list[Setting]:
        """One for each try; validation picks one."""
        own = self.setting
        return [replace(own, changes={**own.changes, **more}) for more in self.tries]


DATASETS = {
    data.name: data
    for data in (
        DataSet(
            "foursquare-nyc",
            {"batch_size": 32, "bptt": 2, "learning_rate": 0.05}
            | {"dropout_embedding": 0.3, "dropout_hidden": 0.2},
            Schedule(epochs=8, patience=2),
            seeds=(1, 2, 3),
            input_context=("Hour", "Weekday", "Area"),
            alone=("Hour", "Weekday", "Area"),
            last_days=(60, 120, 180),
            crossed=True,
        ),
        DataSet(
            "rsc15-100k",
            {"batch_size": 32, "bptt": 2, "learning_rate": 0.05}
            | {"dropout_embedding": 0.4, "dropout_hidden": 0.2},
            Schedule(epochs=8, patience=2),
            validation_fraction=0.12,
            seeds=(1, 2, 3),
            input_context=("hour",),
            last_days=(1, 2, 4),
            crossed=True,
        ),
        DataSet(
            "globo-5d",
            {"batch_size": 64, "learning_rate": 0.05}
            | {"dropout_embedding": 0.2, "dropout_hidden": 0.2},
            Schedule(epochs=6, patience=1),
            input_context=("hour", "Category", "Referrer", "Device", "Region"),
            alone=("hour", "Category", "Referrer", "Device", "Region"),
            utc_offset_s=-3 * 3600,
            last_days=(0.125, 0.25, 0.5, 1, 2),
            refit=True,  # without its last evening 9,160 of 16,375 predictions would be lost
        ),
        DataSet(
            "diginetica-sessions",
            {"batch_size": 128, "learning_rate": 0.07}
            | {"dropout_embedding": 0.3, "dropout_hidden": 0.1},
            Schedule(epochs=3, patience=1),
            has_time=False,
        ),
        DataSet(
            SYNTHETIC,
            {"batch_size": 96, "embedding": "separate", "learning_rate": 0.07}
            | {"dropout_embedding": 0.2, "dropout_hidden": 0.1},
            Schedule(epochs=6, patience=2),
            seeds=(1, 2, 3),
            input_context=("hour", "event_type"),
            alone=("hour", "event_type"),
        ),
    )
}

BASE = Setting()


def variants(data: DataSet) -> list[Variant]:
    """All rows of a data set's tables, the most telling factors first."""
    rows = [Variant("base", "base", BASE), *_context(data)]
    if data.name == SYNTHETIC:
        return rows
    rows += [*_architecture(data), *_learning(data), *_regularisation(data), *_recency(data)]
    if data.crossed:
        return [*rows, *_crossed(data)]
    return [replace(row, tries=row.tries[:2]) for row in rows]  # the larger logs: the likelier two


def _architecture(data: DataSet) -> Iterator[Variant]:
    rates = _rates(data, 1, 0.5)
    for cell in CELLS:
        # The base's own rate was chosen among these already.
        yield Variant("cell", cell, Setting({"cell": cell}), ({},) if cell == "gru" else rates)
    yield Variant("cell", "window of 3", Setting({"cell": "window"}), rates)
    for n_layers, residual in ((1, False), (2, False), (3, False), (1, True), (2, True), (3, True)):
        name = f"{n_layers}, residual" if residual else str(n_layers)
        yield Variant("layers", name, Setting({"n_layers": n_layers, "residual": residual}))
    for embedding in EMBEDDINGS:
        # A row of a one-hot table holds three gates, which no dropout of entries was made for.
        tries = ({}, {"dropout_embedding": 0.0}) if embedding == "one-hot" else ({},)
        yield Variant("embedding", embedding, Setting({"embedding": embedding}), tries)


def _learning(data: DataSet) -> Iterator[Variant]:
    for loss in LOSSES:
        tries = ({},) if loss == "bpr-max" else _rates(data, 1, 0.5, 2)
        yield Variant("loss", loss, Setting({"loss": loss}), tries)
    rates: dict[str, tuple[Changes, tuple[Changes, ...]]] = {
        "adagrad": ({}, ({},)),
        "adagrad with momentum": ({"momentum": 0.3}, _rates(data, 1, 0.5)),
        "adam": ({"optimiser": "adam"}, _rates(data, 0.03, 0.1, 0.01)),
        "sgd": ({"optimiser": "sgd"}, _rates(data, 10, 40, 2)),
        "sgd with momentum": ({"optimiser": "sgd", "momentum": 0.9}, _rates(data, 4, 10, 1)),
    }
    for name, (changes, tries) in rates.items():
        yield Variant("optimiser", name, Setting(changes), tries)
    size, clicks = data.base["batch_size"], data.base["batch_size"] * data.base["bptt"]
    for bptt in (1, 2, 4, 8):
        # As many sessions as the base, or as many clicks a step: whichever validates better.
        sizes = dict.fromkeys((size, max(1, clicks // bptt)))
        tries = tuple({"batch_size": size} for size in sizes)
        yield Variant("clicks back-propagated through", str(bptt), Setting({"bptt": bptt}), tries)


def _regularisation(data: DataSet) -> Iterator[Variant]:
    embedding, hidden = ("dropout_embedding", (0.4, 0.2)), ("dropout_hidden", (0.2, 0.4))
    off: Changes = dict.fromkeys((embedding[0], hidden[0]), 0.0)
    for name, places in (
        ("none", []),
        ("of the embedding", [embedding]),
        ("of the hidden state", [hidden]),
        ("of both", [embedding, hidden]),
    ):
        names = [place for place, _ in places]
        shares = product(*(values for _, values in places))
        dropouts: list[Changes] = [dict(zip(names, share, strict=True)) for share in shares]
        if name == "of both":
            dropouts.insert(0, {place: data.base[place] for place in names})
        yield Variant("dropout", name, Setting(off), tuple(dropouts))
    yield Variant("score", "inner product", BASE)
    tries = tuple({"normalise": factor} for factor in (12.0, 8.0, 16.0))
    yield Variant("score", "cosine", BASE, tries)
    for n_negatives in (0, 128, 512, 2048):
        yield Variant("negatives", str(n_negatives), Setting({"n_negatives": n_negatives}))


def _context(data: DataSet) -> Iterator[Variant]:
    of_input, of_transition = data.input_context, data.transition_context
    both = of_input + of_transition
    if not both:
        return
    yield Variant("context", "none", BASE)
    for fields, name, of in (
        (of_input, "input", ("input_context",)),
        (of_transition, "transition", ("transition_context",)),
        (both, "both", ("input_context", "transition_context")),
    ):
        for way in (*WAYS, "matrices") if name == "transition" else WAYS:
            changes: Changes = dict.fromkeys(of, way)
            yield Variant("context", f"{name}, {way}", Setting(changes, fields))
            if way == "concat" or name == "both":
                shuffled = Setting(changes, fields, fields)
                yield Variant("context", f"{name}, {way}, shuffled", shuffled)
    for name in data.alone:
        yield Variant("context", f"{name} alone, concat", Setting(context=(name,)))


def _recency(data: DataSet) -> Iterator[Variant]:
    factor = "training on the last"
    for days in data.last_days:
        period = f"{days:g} days" if days > 1 else f"{24 * days:g} hours"
        yield Variant(factor, period, Setting(last_days=days))
    if data.last_days:
        yield Variant(factor, "whole log", BASE)


def _crossed(data: DataSet) -> Iterator[Variant]:
    for cell, n_layers, residual in product(CELLS, (1, 2, 3), (False, True)):
        changes: Changes = {"cell": cell, "n_layers": n_layers, "residual": residual}
        name = f"{cell}, {n_layers}{', residual' if residual else ''}"
        yield Variant("cell and layers", name, Setting(changes))
    for loss, embedding in product(("bpr-max", "cross-entropy", "softmax"), EMBEDDINGS):
        changes = {"loss": loss, "embedding": embedding}
        yield Variant("loss and embedding", f"{loss}, {embedding}", Setting(changes))
    both = data.input_context + data.transition_context
    for cell in (*CELLS, "window"):
        without = Setting({"cell": cell})
        yield Variant("cell and context", f"{cell}, none", without)
        setting = replace(without, context=both)
        yield Variant("cell and context", f"{cell}, both", setting, against=without)
    factor, again = "the training file's newest part", Setting(refit=True)
    yield Variant(factor, "chooses the epoch", BASE)
    yield Variant(factor, "then is learnt from too", again)
    setting = replace(again, context=both)
    yield Variant(factor, "the same, both contexts", setting, against=again)


def _rates(data: DataSet, *factors: float) -> tuple[Changes, ...]:
    rate = data.base["learning_rate"]
    return tuple({"learning_rate": round(rate * factor, 6)} for factor in factors)
