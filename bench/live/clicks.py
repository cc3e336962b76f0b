"""A history and its continuation as one stream of clicks, and when each of them may be sent."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from bench.datasets import PUBLIC
from train.command import TrainError
from train.data.clicks import read_clicks


@dataclass(frozen=True)
class Stream:
    """N clicks in order of time; of those of one time the history's come first."""

    session_id: list[str]
    item_id: list[str]
    timestamp_ms: Int64[np.ndarray, "N"]
    prefix: Int64[np.ndarray, "N"]
    """How many clicks the session has up to this one."""
    next_click: Int64[np.ndarray, "N"]
    """The session's next click; -1 where there is none, or one of the two is the history's."""
    begin: int
    """The continuation's first click."""

    def __len__(self) -> int:
        return len(self.item_id)


def read_log(path: Path) -> pl.DataFrame:
    """The clicks of a public log in order of time. Raises TrainError if it cannot be read."""
    clicks = read_clicks(path, PUBLIC, keep=()).clicks
    clicks = clicks.with_columns(pl.col("session_id", "item_id").cast(pl.String))
    return clicks.sort("timestamp_ms", maintain_order=True)


def as_stream(history: pl.DataFrame, log: pl.DataFrame) -> Stream:
    """Both as they would have come. Raises TrainError where no session has a next click."""
    both = pl.concat([history.with_columns(new=False), log.with_columns(new=True)])
    both = both.sort("timestamp_ms", maintain_order=True).with_row_index("n")
    of_log = both.filter("new").select("n", next=pl.col("n").shift(-1).over("session_id"))
    both = both.join(of_log, "n", "left", maintain_order="left").with_columns(
        prefix=pl.col("n").cum_count().over("session_id"),
        next=pl.col("next").cast(pl.Int64).fill_null(-1),
    )
    if not (both["next"] >= 0).any():
        raise TrainError("the log has no session with a next click to predict")
    return Stream(
        both["session_id"].to_list(),
        both["item_id"].to_list(),
        both["timestamp_ms"].to_numpy(),
        both["prefix"].to_numpy().astype(np.int64),
        both["next"].to_numpy(),
        int(both["new"].to_numpy().argmax()),
    )


def answered_before(
    timestamp_ms: Int64[np.ndarray, "N"], window_ms: int, most_open: int
) -> Int64[np.ndarray, "N"]:
    """How many clicks, from the first on, must have been answered before each one is sent.

    So all clicks under way lie within the window, in every partition, and are ``most_open`` at
    most with the one that is sent.
    """
    too_old = np.searchsorted(timestamp_ms, timestamp_ms - window_ms)
    return np.maximum(too_old, np.arange(len(timestamp_ms)) + 1 - most_open)
