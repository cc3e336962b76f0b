"""Where the public click logs are, and how one is read."""

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from train.command import TrainError
from train.data.clicks import Columns, read_clicks

PUBLIC = Columns(preset="public")


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

    Raises TrainError where the data set is missing.
    """
    train, test = (folder_of(name) / f"{part}.tsv.gz" for part in ("train", "test"))
    clicks = read_clicks(train, PUBLIC).clicks
    return clicks, read_clicks(test, PUBLIC).clicks if test.exists() else None


def check_known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise TrainError for a name that bench/lab/grid.py does not have."""
    for name in names:
        if name not in known:
            raise TrainError(f"unknown {kind} {name!r}: bench/lab/grid.py has {', '.join(known)}")
