"""The models that `bench.training.baselines` measures, with parameters to try, and their logs.

The base of `bench/lab/grid.py` is one of them: trained on as much as the baselines it is compared
with.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from bench.datasets import folder_of, read_log
from bench.lab.grid import BASE, DATASETS, SYNTHETIC
from bench.lab.run import train
from train.baselines.content import content_based, read_items
from train.baselines.named import BASELINES
from train.baselines.novel import NovelOnly
from train.baselines.popularity import item_support
from train.data.clicks import split_by_time
from train.data.sessions import Catalogue, Sessions, build_sessions
from train.fit.loop import Schedule
from train.fit.training_log import TrainingLog
from train.measure.predictor import ModelPredictor
from train.measure.ranking import Predictor

NAMES = [name for name in DATASETS if name != SYNTHETIC]
"""Data sets that are folders of click logs."""
NUMERIC = {"globo-5d": ("Created", "Words"), "foursquare-nyc": ("lat", "lon")}
NO_REPEATS = "-no-repeats"
"""Suffix of models that never list a known item. Globo's publisher has removed all repeats."""
Parameters = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Sessions to learn from and sessions to be asked about."""

    dataset: str
    train: Sessions
    asked: Sessions
    catalogue: Catalogue

    @property
    def n_items(self) -> int:
        return len(self.catalogue)

    @property
    def span_s(self) -> float:
        """Length of the training log; Diginetica's time is an order, one click per second."""
        return float(np.ptp(self.train.timestamp_ms)) / 1000.0


class Candidate(NamedTuple):
    """A model: how it is built from parameters, and the ones to try."""

    build: Callable[..., Predictor]
    choices: list[Parameters]


def load_splits(dataset: str) -> Iterator[tuple[str, Split]]:
    """validation, then test where there is a test file."""
    clicks, test = read_log(dataset)
    older, newer = split_by_time(clicks, DATASETS[dataset].validation_fraction)
    for name, known, later in (("validation", older, newer), ("test", clicks, test)):
        if later is not None:
            indexed = build_sessions(known)
            asked = build_sessions(later, indexed.catalogue).sessions
            yield name, Split(dataset, indexed.sessions, asked, indexed.catalogue)


def candidates(split: Split) -> dict[str, Candidate]:
    """Every model of the split's training sessions; times are fractions of the log's length."""
    sessions, n_items, dataset = split.train, split.n_items, DATASETS[split.dataset]
    support = item_support(sessions, n_items)
    half_lives = [round(split.span_s / 2**halvings) for halvings in (0, 2, 4, 6, 8)]
    scales, epochs = (None, half_lives[0], half_lives[2]), dataset.schedule.epochs

    def counted(name: str, **choices: list[Any]) -> Candidate:
        return Candidate(partial(BASELINES[name], sessions, n_items), _combine(**choices))

    models = {
        "pop": counted("pop"),
        "recent-pop": counted("recent-pop", half_life_s=half_lives),
        "s-pop": counted("s-pop"),
        "markov": counted("markov"),
        "decayed-markov": counted(
            "decayed-markov",
            half_life_s=half_lives[:4],
            popularity_half_life_s=half_lives[1:],
            popularity_weight=[0.1, 1.0],
        ),
        "association-rules": counted("association-rules"),
        "sequential-rules": counted("sequential-rules", steps=[3, 10]),
        "item-knn": counted("item-knn", shrinkage=[0.0, 20.0]),
        "vmis-knn": Candidate(
            partial(BASELINES["vmis-knn"], sessions, n_items),
            [{"m": m, "k": m // 5} for m in (500, 1000, 2500, 5000)],
        ),
        "stan": counted(
            "stan",
            session_scale_s=[*scales],
            click_scale=[1.0, 4.0],
            distance_scale=[1.0, 4.0, 100.0],
        ),
        "als": counted("als", alpha=[10.0, 40.0], regularization=[10.0]),
        "bpr": counted("bpr", learning_rate=[0.1], regularization=[0.001]),
        "gru": Candidate(
            partial(fit_network, split), _combine(epochs=[epochs, 3 * epochs // 4, epochs // 2])
        ),
    }
    if split.dataset in NUMERIC:
        models["content"] = Candidate(
            partial(_content, split, support), _combine(decay=[0.5, 0.8, 1.0])
        )
    if split.dataset == "globo-5d":
        for name in ("vmis-knn", "stan", "als"):
            build, choices = models[name]
            models[name + NO_REPEATS] = Candidate(partial(_novel_only, build), choices)
    return models


def fit_network(split: Split, epochs: int) -> Predictor:
    """The base of the experiments, seed 1."""
    log = TrainingLog(split.train, None, split.catalogue, None)
    hyperparameters = BASE.hyperparameters(DATASETS[split.dataset], seed=1)
    return ModelPredictor(train(log, hyperparameters, Schedule(epochs=epochs))[0])


def _content(split: Split, support: Int64[np.ndarray, "N"], **parameters: Any) -> Predictor:
    items, numeric = read_items(folder_of(split.dataset) / "items.tsv.gz"), NUMERIC[split.dataset]
    return content_based(items, split.catalogue, support, numeric=numeric, **parameters)


def _novel_only(build: Callable[..., Predictor], **parameters: Any) -> Predictor:
    return NovelOnly(build(**parameters))


def _combine(**choices: list[Any]) -> list[Parameters]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
