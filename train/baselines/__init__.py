"""What people would use instead of a network, each a `Predictor` of `train/measure/ranking.py`.

Items that a baseline knows nothing of are ordered by their support in the training log.
"""

from collections.abc import Callable
from typing import Literal

from train.baselines.factors import fit_als, fit_bpr
from train.baselines.popularity import Pop, SessionPop
from train.baselines.rules import (
    Markov,
    Rules,
    association_rules,
    count_transitions,
    item_knn,
    sequential_rules,
)
from train.baselines.stan import stan
from train.baselines.vmis import vmis_knn
from train.baselines.votes import item_support
from train.data.sessions import Sessions
from train.measure.ranking import Predictor

__all__ = [
    "BASELINES",
    "Baseline",
    "Markov",
    "Pop",
    "Rules",
    "SessionPop",
    "build_baselines",
    "count_transitions",
    "item_support",
]


Baseline = Literal[
    "pop",
    "s-pop",
    "markov",
    "association-rules",
    "sequential-rules",
    "item-knn",
    "vmis-knn",
    "stan",
    "als",
    "bpr",
]
BASELINES: dict[Baseline, Callable[[Sessions, int], Predictor]] = {
    "pop": lambda sessions, n: Pop(item_support(sessions, n).astype(float)),
    "s-pop": lambda sessions, n: SessionPop(item_support(sessions, n)),
    "markov": count_transitions,
    "association-rules": association_rules,
    "sequential-rules": sequential_rules,
    "item-knn": item_knn,
    "vmis-knn": vmis_knn,
    "stan": stan,
    "als": fit_als,
    "bpr": fit_bpr,
}
"""Baselines that need sessions alone, with their default parameters, by the name of their figures.
Content-based ones need attributes, blends need parts: see content.py and train/blend/blend.py."""


def build_baselines(sessions: Sessions, n_items: int) -> dict[str, Predictor]:
    """The three that every training is held against, by the name figures are kept under."""
    held_against: tuple[Baseline, ...] = ("pop", "s-pop", "markov")
    return {name: BASELINES[name](sessions, n_items) for name in held_against}
