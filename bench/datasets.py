"""The public click logs: where they are, how one is read, and the small network tried on each."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from train.command import TrainError
from train.data.clicks import read_clicks
from train.data.columns import Columns

PUBLIC = Columns(preset="public")
COMMON: dict[str, Any] = {
    **{"loss": "bpr-max", "normalise": 0.0, "sample_alpha": 0.5, "hidden_size": 100, "seed": 1},
    **{"embedding": "shared", "n_negatives": 512, "bptt": 1, "order": "random"},
    **{"momentum": 0.0, "initial_accumulator": 0.0, "learning_rate": 0.05},
}
"""Part of every base, so that no base changes with the defaults of `fit`."""


class DataSet(NamedTuple):
    """A folder of the data, and the base of its experiments: 100 units, chosen on validation."""

    validation_fraction: float
    epochs: int
    base: dict[str, Any]


def _base(dropout_embedding: float, dropout_hidden: float, **own: float) -> dict[str, Any]:
    dropout = {"dropout_embedding": dropout_embedding, "dropout_hidden": dropout_hidden}
    return {**COMMON, **dropout, **own}


DATASETS = {
    "foursquare-nyc": DataSet(0.1, 8, _base(0.3, 0.2, batch_size=32, bptt=2)),
    "rsc15-100k": DataSet(0.12, 8, _base(0.4, 0.2, batch_size=32, bptt=2)),
    "globo-5d": DataSet(0.1, 6, _base(0.2, 0.2, batch_size=64)),
    "diginetica-sessions": DataSet(0.1, 3, _base(0.3, 0.1, batch_size=128, learning_rate=0.07)),
}


def folder_of(name: str) -> Path:
    """The folder of a data set. Raises TrainError where it does not exist."""
    folder = Path(os.environ.get("NEXTCLICK_DATA", "../shared/data")) / name
    if not folder.is_dir():
        raise TrainError(
            f"{folder} does not exist: set NEXTCLICK_DATA to the folder that holds {name}/"
        )
    return folder


def read_log(name: str) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """The clicks of the training file with all their columns, and of the test file if there is one.
    Raises TrainError where the data set is missing."""
    train, test = (folder_of(name) / f"{part}.tsv.gz" for part in ("train", "test"))
    clicks = read_clicks(train, PUBLIC).clicks
    return clicks, read_clicks(test, PUBLIC).clicks if test.exists() else None


def check_known(names: Sequence[str]) -> None:
    """Raise TrainError for a name of no data set."""
    for name in names:
        if name not in DATASETS:
            has = ", ".join(DATASETS)
            raise TrainError(f"unknown data set {name!r}: bench/datasets.py has {has}")
