"""What `bench.training.baselines` measures: models by name, with parameters to try, and their logs.

The base of `bench/lab/grid.py` is one of them: beside baselines it learns from as much as they do.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench.lab.grid import BASE, DATASETS, SHOP
from train.baselines.content import content_based, read_items
from train.baselines.factors import fit_als, fit_bpr
from train.baselines.novel import NovelOnly
from train.baselines.popularity import Pop, SessionPop, recent_popularity
from train.baselines.rules import (
    association_rules,
    count_transitions,
    decayed_transitions,
    item_knn,
    sequential_rules,
)
from train.baselines.stan import stan
from train.baselines.support import item_support
from train.baselines.vmis import vmis_knn
from train.data.clicks import Columns, read_clicks, split_by_time
from train.data.sessions import Catalogue, Sessions, build_sessions
from train.fit.loop import Schedule, fit
from train.fit.training_log import TrainingLog
from train.measure.predictor import ModelPredictor
from train.measure.ranking import Predictor
from train.network.checkpoint import load_checkpoint

NAMES = [name for name in DATASETS if name != SHOP]
"""Of the data sets: folders of click logs."""
NUMERIC = {"globo-5d": ("Created", "Words"), "foursquare-nyc": ("lat", "lon")}
NO_REPEATS = "-no-repeats"
"""Models of this ending never list a known item. Globo's publisher has removed all repeats."""
Parameters = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Sessions to learn from and sessions to be asked about."""

    dataset: str
    train: Sessions
    asked: Sessions
    catalogue: Catalogue
    folder: Path

    @property
    def n_items(self) -> int:
        return len(self.catalogue)

    @property
    def span_s(self) -> float:
        """Length of the training log; Diginetica's time is an order, a click a second."""
        return float(np.ptp(self.train.timestamp_ms)) / 1000.0


def load_splits(folder: Path) -> Iterator[tuple[str, Split]]:
    """validation, then test where there is a test file."""
    clicks = read_clicks(folder / "train.tsv.gz", Columns(preset="public")).clicks
    parts = {"validation": split_by_time(clicks, DATASETS[folder.name].validation_fraction)}
    if (folder / "test.tsv.gz").exists():
        test = read_clicks(folder / "test.tsv.gz", Columns(preset="public")).clicks
        parts["test"] = type(parts["validation"])(clicks, test)
    for name, (older, newer) in parts.items():
        train = build_sessions(older)
        asked = build_sessions(newer, train.catalogue).sessions
        yield name, Split(folder.name, train.sessions, asked, train.catalogue, folder)


def build(model: str, split: Split, parameters: Parameters) -> Predictor:
    """The predictor of this name, from the split's training sessions."""
    sessions, n_items = split.train, split.n_items
    support = item_support(sessions, n_items)
    builders: dict[str, Callable[..., Predictor]] = {
        "pop": lambda: Pop(support.astype(np.float64)),
        "recent-pop": lambda **p: Pop(recent_popularity(sessions, n_items, **p)),
        "s-pop": lambda: SessionPop(support),
        "markov": partial(count_transitions, sessions, n_items),
        "decayed-markov": partial(decayed_transitions, sessions, n_items),
        "association-rules": partial(association_rules, sessions, n_items),
        "sequential-rules": partial(sequential_rules, sessions, n_items),
        "item-knn": partial(item_knn, sessions, n_items),
        "vmis-knn": partial(vmis_knn, sessions, n_items),
        "stan": partial(stan, sessions, n_items),
        "als": partial(fit_als, sessions, n_items),
        "bpr": partial(fit_bpr, sessions, n_items),
        "content": lambda **p: content_based(
            read_items(split.folder / "items.tsv.gz"),
            split.catalogue,
            support,
            numeric=NUMERIC[split.dataset],
            **p,
        ),
        "gru": partial(fit_network, split),
    }
    if model.endswith(NO_REPEATS):
        return NovelOnly(builders[model.removesuffix(NO_REPEATS)](**parameters))
    return builders[model](**parameters)


def fit_network(split: Split, epochs: int) -> Predictor:
    """The base of the experiments, seed 1."""
    log = TrainingLog(split.train, None, split.catalogue, None)
    hyperparameters = BASE.hyperparameters(DATASETS[split.dataset], seed=1)
    with tempfile.TemporaryDirectory() as folder:
        fit(log, hyperparameters, Schedule(epochs=epochs), Path(folder))
        return ModelPredictor(load_checkpoint(Path(folder)).model)


def grid(split: Split) -> dict[str, list[Parameters]]:
    """What is tried for each model; times as fractions of the training log's length."""
    half_lives = [round(split.span_s / 2**halvings) for halvings in (0, 2, 4, 6, 8)]
    epochs = DATASETS[split.dataset].schedule.epochs
    models: dict[str, list[Parameters]] = {
        "pop": [{}],
        "recent-pop": _combine(half_life_s=half_lives),
        "s-pop": [{}],
        "markov": [{}],
        "decayed-markov": _combine(
            half_life_s=half_lives[:4],
            popularity_half_life_s=half_lives[1:],
            popularity_weight=[0.1, 1.0],
        ),
        "association-rules": [{}],
        "sequential-rules": _combine(steps=[3, 10]),
        "item-knn": _combine(shrinkage=[0.0, 20.0]),
        "vmis-knn": [
            {"m": m, "k": k} for m, k in ((500, 100), (1000, 200), (2500, 500), (5000, 1000))
        ],
        "stan": [
            {"session_scale_s": scale, "click_scale": click, "distance_scale": distance}
            for scale, click, distance in product(
                (None, half_lives[0], half_lives[2]), (1.0, 4.0), (1.0, 4.0, 100.0)
            )
        ],
        "als": _combine(alpha=[10.0, 40.0], regularization=[10.0]),
        "bpr": _combine(learning_rate=[0.1], regularization=[0.001]),
        "content": _combine(decay=[0.5, 0.8, 1.0]),
        "gru": _combine(epochs=[epochs, 3 * epochs // 4, epochs // 2]),
    }
    if split.dataset not in NUMERIC:
        del models["content"]
    if split.dataset == "globo-5d":
        models |= {model + NO_REPEATS: models[model] for model in ("vmis-knn", "stan", "als")}
    return models


def _combine(**choices: list[Any]) -> list[Parameters]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
