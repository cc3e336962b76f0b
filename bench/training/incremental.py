"""Warm starts compared with training anew: ``python -m bench.training.incremental DATASET...``.

A model is trained on the older part of the training sessions; then their newest part arrives, with
new items. There are three ways to get a model of everything: train anew, continue with the whole
log, continue with the new part alone. Validation picks the epoch of each, and all rank the same
predictions.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, which is next

import torch
from pydantic import Field, PositiveInt
from pydantic_settings import CliPositionalArg

from bench.datasets import check_known
from bench.fitting import shown, trained
from bench.lab.grid import BASE, DATASETS, DataSet
from bench.lab.run import Parts, load_parts, widen
from bench.provenance import RESULTS, keep
from train.command import Settings, run_command
from train.data.clicks import split_by_time
from train.data.sessions import build_catalogue, build_sessions
from train.fit.training_log import TrainingLog
from train.measure.predictor import ModelPredictor
from train.measure.ranking import rank_targets
from train.network.checkpoint import Checkpoint

RESULT = RESULTS / "incremental.json"

Row = dict[str, Any]


class IncrementalBench(Settings):
    """Train on the older sessions, then on the newer ones in three ways, and keep the figures."""

    datasets: CliPositionalArg[list[str]]
    """Names in bench/lab/grid.py."""
    seeds: tuple[PositiveInt, ...] = (1, 2, 3)
    """Seeds to train with."""
    new_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training sessions that arrive later, the newest."""


def run(settings: IncrementalBench) -> None:
    torch.set_num_threads(1)
    check_known("data set", settings.datasets, list(DATASETS))
    rows: list[Row] = []
    for data in (DATASETS[name] for name in settings.datasets):
        parts = load_parts(data)
        for seed in settings.seeds:
            for row in compare(data, parts, seed, settings.new_fraction):
                print(json.dumps(row), flush=True)
                rows.append(row)
    keep(RESULT, {"new_fraction": settings.new_fraction, "rows": rows})


def compare(data: DataSet, parts: Parts, seed: int, new_fraction: float) -> Iterator[Row]:
    """The older model, and each way from there."""
    everything, validation, test = parts
    older, newest = split_by_time(everything, new_fraction)
    whole = build_catalogue(everything)
    later = {
        split: build_sessions(clicks, whole).sessions
        for split, clicks in (("validation", validation), ("test", test))
        if clicks is not None
    }
    hyperparameters = BASE.hyperparameters(data, seed)
    with tempfile.TemporaryDirectory() as folder:
        before: Checkpoint | None = None
        for way, clicks, goes_on in (
            ("the older part alone", older, False),
            ("anew, whole log", everything, False),
            ("going on, whole log", everything, True),
            ("going on, what is new", newest, True),
        ):
            known = before if goes_on else None
            catalogue = build_catalogue(clicks, None if known is None else known.catalogue)
            sessions, own_validation = (
                build_sessions(part, catalogue).sessions for part in (clicks, validation)
            )
            log, out = TrainingLog(sessions, own_validation, catalogue, None), Path(folder, way)
            checkpoint = trained(log, hyperparameters, data.schedule, out, warm_start=known)
            before, history = before or checkpoint, checkpoint.info.history
            model = ModelPredictor(widen(checkpoint.model, catalogue, whole))
            yield {
                "dataset": data.name,
                "seed": seed,
                "way": way,
                "clicks": sessions.n_clicks,
                "items": len(catalogue),
                "epoch": checkpoint.info.epoch,
                "epochs": len(history),
                "seconds": round(sum(record.seconds for record in history), 1),
            } | {
                split: shown(rank_targets(model, asked, len(whole)))
                for split, asked in later.items()
            }


if __name__ == "__main__":
    sys.exit(run_command(IncrementalBench, run))
