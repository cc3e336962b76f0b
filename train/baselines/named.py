"""Baselines by name: `markov`, or with parameters `vmis-knn:m=1000:k=200`."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator

from train.baselines.factors import fit_als, fit_bpr
from train.baselines.neighbours import stan, vmis_knn
from train.baselines.popularity import pop, recent_pop, session_pop
from train.baselines.rules import (
    association_rules,
    count_transitions,
    decayed_transitions,
    item_knn,
    sequential_rules,
)
from train.command import TrainError
from train.data.sessions import Sessions
from train.measure.ranking import Predictor

BASELINES: dict[str, Callable[..., Predictor]] = {
    "pop": pop,
    "recent-pop": recent_pop,
    "s-pop": session_pop,
    "markov": count_transitions,
    "decayed-markov": decayed_transitions,
    "association-rules": association_rules,
    "sequential-rules": sequential_rules,
    "item-knn": item_knn,
    "vmis-knn": vmis_knn,
    "stan": stan,
    "als": fit_als,
    "bpr": fit_bpr,
}
"""Each learns from sessions, given with the number of items; keyword arguments are parameters."""
COMPARED = ("pop", "s-pop", "markov")
"""The three that every training is compared with."""


def build_baseline(text: str, sessions: Sessions, n_items: int) -> Predictor:
    """The baseline of this name and these parameters, learnt from the sessions.

    Raises TrainError for a name or parameter that does not exist, or a value that the method
    cannot work with.
    """
    try:
        name, parameters = _parse(text)
        return BASELINES[name](sessions, n_items, **parameters)
    except ValueError as error:
        raise TrainError(f"{text}: {error}") from error


def build_baselines(sessions: Sessions, n_items: int) -> dict[str, Predictor]:
    """The three that every training is compared with, by name."""
    return {name: build_baseline(name, sessions, n_items) for name in COMPARED}


def is_baseline(text: str) -> bool:
    """Whether that is the name of a baseline, with or without parameters."""
    return text.split(":")[0] in BASELINES


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    name, *words = text.split(":")
    if name not in BASELINES:
        raise ValueError(f"{name!r} is not a baseline, expected one of {', '.join(BASELINES)}")
    parameters = inspect.signature(BASELINES[name]).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    given: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known:
            found = f"{name} has no parameter {key!r}"
            raise ValueError(f"{found}, expected one of {', '.join(known)}" if known else found)
        try:
            given[key] = int(value) if known[key].annotation is int else float(value)
        except ValueError:
            kind = "a whole number" if known[key].annotation is int else "a number"
            raise ValueError(f"{key} of {name} is {value!r}, expected {kind}") from None
    missing = [k for k, p in known.items() if p.default is p.empty and k not in given]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}, as in {name}:{missing[0]}=1")
    return name, given


BaselineName = Annotated[str, AfterValidator(lambda text: _parse(text) and text)]
"""The type of a setting that names a baseline."""
