"""Every baseline on every data set: ``python -m bench.training.baselines [DATASET...] [--fresh]``.

Parameters are chosen from a small grid on the newest part of the training file, by Recall@20 times
MRR@20; then the test file, where there is one, is looked at once. The base of `bench/lab/grid.py`
goes the same way, its epochs being what is chosen: it learns from as much as the baselines it
stands beside. Rows that are kept already are not measured again, so a run that was stopped goes on.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded, which is next
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same of torch

import torch
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from bench.provenance import provenance
from bench.settings import parse
from bench.training.models import NAMES, Parameters, Split, build, grid, load_splits
from train.blend.blend import Blend, BlendWeights
from train.blend.fit import fit_blend
from train.measure.metrics import CUTOFFS, figures
from train.measure.ranking import PROTOCOL, Predictor, rank_targets

RESULT = Path(__file__).parents[1] / "results" / "baselines.json"
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
"""Blends, their weights fitted on the validation sessions: there they flatter a little."""


class BaselinesSettings(BaseSettings):
    """Measure every baseline on the named data sets, by default all of them."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
    )
    datasets: CliPositionalArg[list[str]] = NAMES
    """Folders under NEXTCLICK_DATA."""
    fresh: bool = False
    """Measure rows again that are kept already."""


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
        built: dict[str, Predictor] = {}
        for model, choices in models.items():
            kept = results.rows.get((folder.name, name, model))
            if kept is not None:
                chosen[model] = kept["parameters"]
                continue
            if name == "validation":
                chosen[model] = choose(model, split, choices)
            begin = time.process_time()
            built[model] = build(model, split, chosen[model])
            seconds = time.process_time() - begin
            results.add(_row(name, split, model, chosen[model], built[model], seconds))

        for hybrid, part_names in HYBRIDS.items():
            kept = results.rows.get((folder.name, name, hybrid))
            if kept is not None:
                chosen[hybrid] = kept["parameters"]
            elif all(part in models for part in part_names):
                for part in part_names:
                    if part not in built:  # its row was kept
                        built[part] = build(part, split, chosen[part])
                parts = {part: built[part] for part in part_names}
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
        if dataset not in NAMES or not (data / dataset).is_dir():
            print(
                f"{data / dataset} is not there or not one of {', '.join(NAMES)}: "
                "set NEXTCLICK_DATA to the folder that holds them",
                file=sys.stderr,
            )
            return 2
        run(data / dataset, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(parse(BaselinesSettings)))
