"""Going on from a checkpoint against training anew.

``python -m bench.training.incremental DATASET...``.

A model learns from the older part of the training sessions; then the newest part of them has come,
with items of its own. Three ways to have a model of all: train anew, go on with the whole log, go
on with what is new alone. Validation picks each one's epoch, and all rank the same predictions.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, which is next

import polars as pl
import torch
from pydantic import Field, PositiveInt
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from bench.lab.grid import DATASETS, DataSet, Setting
from bench.lab.run import SHOWN, Parts, load_parts, widen
from bench.provenance import provenance
from bench.settings import parse
from train.data.clicks import split_by_time
from train.data.sessions import build_catalogue, build_sessions
from train.fit.loop import fit
from train.fit.training_log import TrainingLog
from train.measure.metrics import figures
from train.measure.predictor import ModelPredictor
from train.measure.ranking import rank_targets
from train.network.checkpoint import Checkpoint, load_checkpoint

RESULT = Path(__file__).parents[1] / "results" / "incremental.json"

Row = dict[str, Any]


class IncrementalBench(BaseSettings):
    """Train on the older sessions, then on the newer ones in three ways, and keep the figures."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="python -m bench.training.incremental",
        use_attribute_docstrings=True,
    )
    datasets: CliPositionalArg[list[str]]
    """Names in bench/lab/grid.py."""
    seeds: list[PositiveInt] = [1, 2, 3]
    """Seeds to train with."""
    new_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training sessions that come later, the newest."""


class Way(NamedTuple):
    """A way to have a model of all sessions."""

    name: str
    clicks: pl.DataFrame
    goes_on: bool


def main() -> int:
    """Print a line a model, and keep them in bench/results/incremental.json."""
    torch.set_num_threads(1)
    settings = parse(IncrementalBench)
    for name in settings.datasets:
        if name not in DATASETS:
            sys.exit(
                f"{name!r} is no data set of bench/lab/grid.py, which has {', '.join(DATASETS)}"
            )
    rows: list[Row] = []
    for data in (DATASETS[name] for name in settings.datasets):
        parts = load_parts(data)
        for seed in settings.seeds:
            for row in compare(data, parts, seed, settings.new_fraction):
                print(json.dumps(row), flush=True)
                rows.append(row)
    kept = {**provenance(), "new_fraction": settings.new_fraction, "rows": rows}
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


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
    hyperparameters = Setting().hyperparameters(data, seed)
    with tempfile.TemporaryDirectory() as folder:
        before: Checkpoint | None = None
        for way in (
            Way("the older part alone", older, goes_on=False),
            Way("anew, whole log", everything, goes_on=False),
            Way("going on, whole log", everything, goes_on=True),
            Way("going on, what is new", newest, goes_on=True),
        ):
            known = before if way.goes_on else None
            catalogue = build_catalogue(way.clicks, None if known is None else known.catalogue)
            sessions = build_sessions(way.clicks, catalogue).sessions
            log = TrainingLog(
                sessions, build_sessions(validation, catalogue).sessions, catalogue, None
            )
            out = Path(folder, way.name)
            clock = time.process_time
            fit(log, hyperparameters, data.schedule, out, warm_start=known, clock=clock)
            checkpoint = load_checkpoint(out)
            before = before or checkpoint
            history = checkpoint.info.history
            model = ModelPredictor(widen(checkpoint.model, catalogue, whole))
            row: Row = {"dataset": data.name, "seed": seed, "way": way.name}
            row |= {"clicks": sessions.n_clicks, "items": len(catalogue)}
            row |= {"epoch": checkpoint.info.epoch, "epochs": len(history)}
            row["seconds"] = round(sum(record.seconds for record in history), 1)
            for split, asked in later.items():
                reached = figures(rank_targets(model, asked, len(whole)))
                row[split] = {name: round(reached[name], 5) for name in ("predictions", *SHOWN)}
            yield row


if __name__ == "__main__":
    sys.exit(main())
