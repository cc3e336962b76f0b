"""Which clicks of a log are worth learning from."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, UInt32
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from train.data.order import codes, number_ids, session_starts

DAY_MS = 86_400_000


class Filters(BaseModel):
    """Which clicks are worth learning from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    last_days: PositiveFloat | None = None
    """Only sessions that begin less than so many days before the newest one; applied before the
    other filters. 0.125 is three hours. Meaningless where the log's time is only an order."""
    min_item_support: PositiveInt = 1
    """Drop items with fewer clicks."""
    min_session_length: PositiveInt = 2
    """Drop sessions with fewer clicks."""
    drop_repeats: bool = False
    """Keep one click of consecutive clicks on the same item."""


class Filtered(NamedTuple):
    """The clicks that are left, and how many each filter dropped."""

    clicks: pl.DataFrame
    rare_item_clicks: int
    short_session_clicks: int
    repeat_clicks: int
    old_clicks: int


def filter_clicks(clicks: pl.DataFrame, filters: Filters) -> Filtered:
    """The clicks that pass every filter; filtering them again changes nothing.

    The filters are repeated, since a dropped item shortens sessions and a dropped session lowers
    the support of items.
    """
    n_before = len(clicks)
    if filters.last_days is not None:
        clicks = _last_days(clicks, filters.last_days)
    old_clicks = n_before - len(clicks)
    left = _Left(
        row=np.arange(len(clicks), dtype=np.uint32),
        session=clicks["session_id"].rle_id().to_numpy(),
        item=codes(number_ids(clicks.select("item_id"))["item_id"]),
    )
    keeps: dict[str, Callable[[_Left], np.ndarray]] = {
        "rare": lambda left: _counts(left.item) >= filters.min_item_support,
        "short": lambda left: _counts(left.session) >= filters.min_session_length,
    }
    if filters.drop_repeats:
        keeps = {"repeat": _is_no_repeat} | keeps
    dropped = {"repeat": 0, "rare": 0, "short": 0}
    before = -1
    while before != len(left.row):
        before = len(left.row)
        for name, keep in keeps.items():
            passes = keep(left)
            n_dropped = len(passes) - int(np.count_nonzero(passes))
            if n_dropped:
                dropped[name] += n_dropped
                left = _Left(left.row[passes], left.session[passes], left.item[passes])
    return Filtered(
        clicks=clicks if len(left.row) == len(clicks) else clicks[pl.Series(left.row)],
        rare_item_clicks=dropped["rare"],
        short_session_clicks=dropped["short"],
        repeat_clicks=dropped["repeat"],
        old_clicks=old_clicks,
    )


class _Left(NamedTuple):
    """What is left of a log while it is filtered."""

    row: UInt32[np.ndarray, "T"]
    session: UInt32[np.ndarray, "T"]
    item: UInt32[np.ndarray, "T"]


def _counts(code: UInt32[np.ndarray, "T"]) -> Int[np.ndarray, "T"]:
    """How often each click's code occurs."""
    return np.asarray(np.bincount(code)[code])


def _is_no_repeat(left: _Left) -> Bool[np.ndarray, "T"]:
    repeat = (left.item[1:] == left.item[:-1]) & (left.session[1:] == left.session[:-1])
    return np.asarray(np.r_[True, ~repeat][: len(left.row)])


def _last_days(clicks: pl.DataFrame, days: float) -> pl.DataFrame:
    """The sessions that begin less than so many days before the newest one does."""
    if clicks.is_empty():
        return clicks
    start, first_ms = session_starts(clicks)
    return clicks[int(start[np.searchsorted(first_ms, first_ms[-1] - days * DAY_MS, "right")]) :]
