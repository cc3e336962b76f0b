"""Every baseline on every data set: ``python -m bench.baselines [DATASET...] [--fresh]``.

Parameters are chosen from a small grid on the newest part of the training file, by Recall@20 times
MRR@20; then the test file, where there is one, is looked at once. The base of `bench/grid.py` goes
the same way, its epochs being what is chosen: it learns from as much as the baselines it stands
beside. Rows that are kept already are not measured again, so a run that was stopped goes on.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded, which is next
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same of torch

import numpy as np
import torch
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, SettingsConfigDict

from bench.grid import BASE, DATASETS
from bench.record import provenance
from train.baselines import Pop, SessionPop, count_transitions, item_support
from train.baselines.content import content_based, read_items
from train.baselines.factors import fit_als, fit_bpr
from train.baselines.novel import NovelOnly
from train.baselines.popularity import recent_popularity
from train.baselines.rules import (
    association_rules,
    decayed_transitions,
    item_knn,
    sequential_rules,
)
from train.baselines.stan import stan
from train.baselines.vmis import vmis_knn
from train.blend.blend import Blend, BlendWeights
from train.blend.fit import fit_blend
from train.data.clicks import Columns, read_clicks, split_by_time
from train.data.sessions import Catalogue, Sessions, build_sessions
from train.fit import Schedule, fit
from train.measure.evaluate import PROTOCOL, Predictor, rank_targets
from train.measure.figures import CUTOFFS, figures
from train.measure.predictor import ModelPredictor
from train.network.checkpoint import load_checkpoint
from train.training_log import TrainingLog

RESULT = Path(__file__).parent / "results" / "baselines.json"
VALIDATION_FRACTION = {
    "rsc15-100k": 0.12,
    "globo-5d": 0.1,
    "foursquare-nyc": 0.1,
    "diginetica-sessions": 0.1,
}
NUMERIC = {"globo-5d": ("Created", "Words"), "foursquare-nyc": ("lat", "lon")}
GRID_SESSIONS = 4000
"""A grid is searched on about so many of the validation sessions."""
NO_REPEATS = "-no-repeats"
"""Models of this ending never list a known item. Globo's publisher has removed all repeats."""
HYBRIDS = {
    "hybrid-vmis": ("vmis-knn", "decayed-markov", "als"),
    "hybrid-stan": ("stan", "decayed-markov", "als"),
    "hybrid-content": ("vmis-knn", "decayed-markov", "als", "content"),
    "hybrid-no-repeats": ("vmis-knn-no-repeats", "decayed-markov", "sequential-rules"),
    "hybrid-gru": ("gru", "stan", "decayed-markov", "als"),
    "hybrid-gru-no-repeats": (
        "gru",
        "vmis-knn-no-repeats",
        "decayed-markov",
        "sequential-rules",
    ),
}
"""Blends, their weights fitted on the validation sessions: there they flatter a little."""

Parameters = dict[str, Any]


class BaselinesSettings(BaseSettings):
    """Measure every baseline on the named data sets, by default all of them."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
    )
    datasets: CliPositionalArg[list[str]] = list(VALIDATION_FRACTION)
    """Folders under NEXTCLICK_DATA."""
    fresh: bool = False
    """Measure rows again that are kept already."""


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
    parts = {"validation": split_by_time(clicks, VALIDATION_FRACTION[folder.name])}
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


def choose(model: str, split: Split, choices: list[Parameters]) -> Parameters:
    """The choice that lists the next click highest in a sample of the sessions asked about."""
    if len(choices) == 1:
        return choices[0]
    first = max(0, len(split.asked) - GRID_SESSIONS)
    sample = split.asked.slice(first, len(split.asked))

    def worth(parameters: Parameters) -> float:
        found = figures(rank_targets(build(model, split, parameters), sample, split.n_items))
        return found["recall_at_20"] * found["mrr_at_20"]

    return max(choices, key=worth)


def measure(predictor: Predictor, split: Split) -> dict[str, float]:
    """Figures, and predictions per second of this process's own time, compiled before."""
    rank_targets(predictor, split.asked.slice(0, 20), split.n_items)
    begin = time.process_time()
    ranks = rank_targets(predictor, split.asked, split.n_items)
    seconds = time.process_time() - begin
    found = figures(ranks)
    kept = [f"{metric}_at_{k}" for k in CUTOFFS for metric in ("recall", "mrr")]
    return {
        **{name: round(found[name], 4) for name in kept},
        "predictions": len(ranks),
        "predictions_per_second": round(len(ranks) / seconds),
    }


class Results:
    """The kept rows, written after each one."""

    def __init__(self, fresh: bool) -> None:
        kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() and not fresh else []
        self.rows: dict[tuple[str, str, str], dict[str, Any]] = {
            (row["dataset"], row["split"], row["model"]): row for row in kept
        }

    def add(self, row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        self.rows[row["dataset"], row["split"], row["model"]] = row
        kept = {"protocol": PROTOCOL, **provenance(), "rows": list(self.rows.values())}
        RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def run(folder: Path, results: Results) -> None:
    """Measure what is not kept of one data set."""
    chosen: dict[str, Parameters] = {}
    for name, split in load_splits(folder):
        models = grid(split)
        for model, choices in models.items():
            kept = results.rows.get((folder.name, name, model))
            if kept is not None:
                chosen[model] = kept["parameters"]
                continue
            if name == "validation":
                chosen[model] = choose(model, split, choices)
            begin = time.process_time()
            predictor = build(model, split, chosen[model])
            seconds = time.process_time() - begin
            results.add(_row(name, split, model, chosen[model], predictor, seconds))

        for hybrid, part_names in HYBRIDS.items():
            kept = results.rows.get((folder.name, name, hybrid))
            if kept is not None:
                chosen[hybrid] = kept["parameters"]
            elif all(part in models for part in part_names):
                parts = {part: build(part, split, chosen[part]) for part in part_names}
                begin = time.process_time()
                if name == "validation":
                    fitted = fit_blend(parts, split.asked, split.n_items)
                    chosen[hybrid] = fitted.weights.model_dump(mode="json")
                blend = Blend(parts, BlendWeights.model_validate(chosen[hybrid]))
                seconds = time.process_time() - begin
                results.add(_row(name, split, hybrid, chosen[hybrid], blend, seconds))


def _row(
    name: str,
    split: Split,
    model: str,
    parameters: Parameters,
    predictor: Predictor,
    build_seconds: float,
) -> dict[str, Any]:
    """One kept row; a hybrid's build is the fit of its weights, on validation alone."""
    return {
        "dataset": split.dataset,
        "split": name,
        "model": model,
        "parameters": parameters,
        **measure(predictor, split),
        "build_seconds": round(build_seconds, 2),
    }


def main(settings: BaselinesSettings) -> int:
    """Measure the data sets that are there; 2 if one is not."""
    torch.set_num_threads(1)
    data = Path(os.environ.get("NEXTCLICK_DATA", "../shared/data"))
    results = Results(settings.fresh)
    for dataset in settings.datasets:
        if dataset not in VALIDATION_FRACTION or not (data / dataset).is_dir():
            print(
                f"{data / dataset} is not there or not one of {', '.join(VALIDATION_FRACTION)}: "
                "set NEXTCLICK_DATA to the folder that holds them",
                file=sys.stderr,
            )
            return 2
        run(data / dataset, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(CliApp.run(BaselinesSettings)))
