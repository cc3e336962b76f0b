"""Every baseline on every data set: ``python -m bench.training.baselines [DATASET...] [--fresh]``.

Parameters are chosen from a small grid on the newest part of the training file, by Recall@20 times
MRR@20; then the test file, where there is one, is looked at once. The base of `bench/lab/grid.py`
goes the same way, with its epochs as the choice: it learns from as much as the baselines it is
compared with. Rows that are kept already are not measured again, so a run that was stopped goes on.
"""

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded, which is next
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for torch

import torch
from pydantic_settings import CliPositionalArg

from bench.datasets import check_known, folder_of
from bench.provenance import RESULTS, keep
from bench.training.models import NAMES, Candidate, Parameters, Split, candidates, load_splits
from train.blend.blend import Blend, BlendWeights
from train.blend.fit import fit_blend
from train.command import Settings, run_command
from train.measure.metrics import CUTOFFS, figures
from train.measure.ranking import PROTOCOL, Predictor, rank_targets

RESULT = RESULTS / "baselines.json"
GRID_SESSIONS = 4000
"""A grid is searched on about so many of the validation sessions."""

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
"""Blends; their weights are fitted on the validation sessions, which flatters them there."""


class BaselinesSettings(Settings):
    """Measure every baseline on the named data sets, by default all of them."""

    datasets: CliPositionalArg[list[str]] = NAMES
    """Folders under NEXTCLICK_DATA."""
    fresh: bool = False
    """Measure again what is kept already."""


def choose(candidate: Candidate, split: Split) -> Parameters:
    """The choice that ranks the next click highest in a sample of the sessions asked about."""
    if len(candidate.choices) == 1:
        return candidate.choices[0]
    first = max(0, len(split.asked) - GRID_SESSIONS)
    sample = split.asked.slice(first, len(split.asked))

    def worth(parameters: Parameters) -> float:
        found = figures(rank_targets(candidate.build(**parameters), sample, split.n_items))
        return found["recall_at_20"] * found["mrr_at_20"]

    return max(candidate.choices, key=worth)


def measure(predictor: Predictor, split: Split) -> dict[str, float]:
    """Figures, and predictions per second of this process's own time, compilation excluded."""
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
        keep(RESULT, {"protocol": PROTOCOL, "rows": list(self.rows.values())})


def measure_missing(dataset: str, results: Results) -> None:
    """Measure what is not kept of one data set.

    A hybrid's `build_seconds` are those of fitting its weights, on the validation alone.
    """
    chosen: dict[str, Parameters] = {}
    for name, split in load_splits(dataset):
        models, built = candidates(split), dict[str, Predictor]()
        hybrids = {blend: parts for blend, parts in HYBRIDS.items() if {*parts} <= {*models}}
        for model in (*models, *hybrids):
            kept = results.rows.get((dataset, name, model))
            if kept is not None:
                chosen[model] = kept["parameters"]
                continue
            for part in hybrids.get(model, ()):
                if part not in built:  # its row was kept
                    built[part] = models[part].build(**chosen[part])
            if model in models and name == "validation":
                chosen[model] = choose(models[model], split)
            begin = time.process_time()
            if model in models:
                built[model] = models[model].build(**chosen[model])
            else:
                parts = {part: built[part] for part in hybrids[model]}
                if name == "validation":
                    fitted = fit_blend(parts, split.asked, split.n_items)
                    chosen[model] = fitted.weights.model_dump(mode="json")
                built[model] = Blend(parts, BlendWeights.model_validate(chosen[model]))
            seconds = time.process_time() - begin
            row: dict[str, Any] = {
                "dataset": dataset,
                "split": name,
                "model": model,
                "parameters": chosen[model],
            }
            row |= measure(built[model], split)
            results.add(row | {"build_seconds": round(seconds, 2)})


def run(settings: BaselinesSettings) -> None:
    """Measure what is missing, data set by data set."""
    torch.set_num_threads(1)
    check_known("data set", settings.datasets, NAMES)
    for dataset in settings.datasets:
        folder_of(dataset)
    results = Results(settings.fresh)
    for dataset in settings.datasets:
        measure_missing(dataset, results)


if __name__ == "__main__":
    sys.exit(run_command(BaselinesSettings, run))
