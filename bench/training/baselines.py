"""Every baseline on every data set: ``python -m bench.training.baselines [DATASET...] [--fresh]``.

Parameters are chosen from a small grid on the newest part of the training file, by Recall@20 times
MRR@20; then the test file, where there is one, is looked at once. The base of `bench/datasets.py`
goes the same way, with its epochs as the choice: it learns from as much as the baselines it is
compared with. Rows that are kept already are not measured again, so a run that was stopped goes on.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded, which is next
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for torch

import numpy as np
import torch
from pydantic import Field
from pydantic_settings import CliPositionalArg

from bench.datasets import DATASETS, check_known, folder_of, read_log
from bench.fitting import trained
from bench.provenance import RESULTS, keep
from train.baselines.named import BASELINES
from train.blend.blend import Blend, BlendWeights
from train.blend.fit import fit_blend
from train.command import Settings, run_command
from train.data.clicks import split_by_time
from train.data.sessions import Catalogue, Sessions, build_sessions
from train.fit.loop import Schedule
from train.fit.training_log import TrainingLog
from train.measure.metrics import CUTOFFS, figures
from train.measure.predictor import ModelPredictor
from train.measure.ranking import PROTOCOL, Predictor, rank_targets
from train.network.hyperparameters import Hyperparameters

RESULT = RESULTS / "baselines.json"
GRID_SESSIONS = 4000
"""A grid is searched on about so many of the validation sessions."""
KEPT = [f"{metric}_at_{k}" for k in CUTOFFS for metric in ("recall", "mrr")]
HYBRIDS = {
    "hybrid-vmis": ("vmis-knn", "decayed-markov", "als"),
    "hybrid-stan": ("stan", "decayed-markov", "als"),
    "hybrid-gru": ("gru", "stan", "decayed-markov", "als"),
}
"""Blends; their weights are fitted on the validation sessions, which flatters them there."""

Parameters = dict[str, Any]
Row = dict[str, Any]


class BaselinesSettings(Settings):
    """Measure every baseline on the named data sets, by default all of them."""

    datasets: CliPositionalArg[list[str]] = Field(default=[*DATASETS])
    """Folders under NEXTCLICK_DATA."""
    fresh: bool = False
    """Measure again what is kept already."""


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
    """Every model of the split's training sessions; times are fractions of the log's length.
    Diginetica's time is an order, one click per second."""
    span_s = float(np.ptp(split.train.timestamp_ms)) / 1000.0
    half_lives = [round(span_s / 2**halvings) for halvings in (0, 2, 4, 6, 8)]
    tried: dict[str, dict[str, list[Any]]] = {
        "recent-pop": {"half_life_s": half_lives},
        "decayed-markov": {
            "half_life_s": half_lives[:4],
            "popularity_half_life_s": half_lives[1:],
            "popularity_weight": [0.1, 1.0],
        },
        "sequential-rules": {"steps": [3, 10]},
        "item-knn": {"shrinkage": [0.0, 20.0]},
        "stan": {
            "session_scale_s": [None, half_lives[0], half_lives[2]],
            "click_scale": [1.0, 4.0],
            "distance_scale": [1.0, 4.0, 100.0],
        },
        "als": {"alpha": [10.0, 40.0], "regularization": [10.0]},
        "bpr": {"learning_rate": [0.1], "regularization": [0.001]},
    }
    models = {
        name: Candidate(partial(build, split.train, split.n_items), _combine(**tried.get(name, {})))
        for name, build in BASELINES.items()
    }
    neighbours = [{"m": m, "k": m // 5} for m in (500, 1000, 2500, 5000)]
    models["vmis-knn"] = models["vmis-knn"]._replace(choices=neighbours)
    epochs = DATASETS[split.dataset].epochs
    tried_epochs = _combine(epochs=[epochs, 3 * epochs // 4, epochs // 2])
    models["gru"] = Candidate(partial(fit_network, split), tried_epochs)
    return models


def fit_network(split: Split, epochs: int) -> Predictor:
    """The base of the experiments."""
    log = TrainingLog(split.train, None, split.catalogue, None)
    hyperparameters = Hyperparameters.model_validate(DATASETS[split.dataset].base)
    return ModelPredictor(trained(log, hyperparameters, Schedule(epochs=epochs)).model)


def _combine(**choices: list[Any]) -> list[Parameters]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def choose(candidate: Candidate, split: Split) -> Parameters:
    """The choice that ranks the next click highest in a sample of the sessions asked about."""
    if len(candidate.choices) == 1:
        return candidate.choices[0]
    sample = split.asked.slice(max(0, len(split.asked) - GRID_SESSIONS), len(split.asked))

    def worth(parameters: Parameters) -> float:
        found = figures(rank_targets(candidate.build(**parameters), sample, split.n_items))
        return found["recall_at_20"] * found["mrr_at_20"]

    return max(candidate.choices, key=worth)


def measure(predictor: Predictor, split: Split) -> dict[str, float]:
    """Figures, and predictions per second of this process's own time, compilation excluded."""
    rank_targets(predictor, split.asked.slice(0, 20), split.n_items)
    begin = time.process_time()
    ranks = rank_targets(predictor, split.asked, split.n_items)
    rate = round(len(ranks) / (time.process_time() - begin))
    found = {name: round(figure, 4) for name, figure in figures(ranks).items() if name in KEPT}
    return found | {"predictions": len(ranks), "predictions_per_second": rate}


def measure_missing(dataset: str, rows: dict[tuple[str, str, str], Row]) -> None:
    """Measure what `rows` lacks of one data set, and keep each row. A hybrid's `build_seconds` are
    those of fitting its weights, on the validation alone."""
    chosen: dict[str, Parameters] = {}
    for name, split in load_splits(dataset):
        models, built = candidates(split), dict[str, Predictor]()
        for model in (*models, *HYBRIDS):
            if kept := rows.get((dataset, name, model)):
                chosen[model] = kept["parameters"]
                continue
            for part in HYBRIDS.get(model, ()):
                if part not in built:  # its row was kept
                    built[part] = models[part].build(**chosen[part])
            if model in models and name == "validation":
                chosen[model] = choose(models[model], split)
            begin = time.process_time()
            if model in models:
                built[model] = models[model].build(**chosen[model])
            else:
                parts = {part: built[part] for part in HYBRIDS[model]}
                if name == "validation":
                    fitted = fit_blend(parts, split.asked, split.n_items)
                    chosen[model] = fitted.weights.model_dump(mode="json")
                built[model] = Blend(parts, BlendWeights.model_validate(chosen[model]))
            seconds = round(time.process_time() - begin, 2)
            row: Row = {
                "dataset": dataset,
                "split": name,
                "model": model,
                "parameters": chosen[model],
            }
            row |= measure(built[model], split) | {"build_seconds": seconds}
            print(json.dumps(row), flush=True)
            rows[dataset, name, model] = row
            keep(RESULT, {"protocol": PROTOCOL, "rows": [*rows.values()]})


def run(settings: BaselinesSettings) -> None:
    torch.set_num_threads(1)
    check_known(settings.datasets)
    for dataset in settings.datasets:
        folder_of(dataset)
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() and not settings.fresh else []
    rows = {(row["dataset"], row["split"], row["model"]): row for row in kept}
    for dataset in settings.datasets:
        measure_missing(dataset, rows)


if __name__ == "__main__":
    sys.exit(run_command(BaselinesSettings, run))
