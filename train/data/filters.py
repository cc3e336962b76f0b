"""Which clicks of a log are worth learning from, and which types of event are to be predicted."""

from collections.abc import Callable, Iterable
from typing import Annotated, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, UInt32
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from train.command import Settings, TrainError
from train.data.context import texts
from train.data.order import codes, number_ids, session_starts
from train.data.sessions import TARGET_WEIGHT

DAY_MS = 86_400_000
MAX_TARGET = 1e6
"""Far above any use, and far below the limits of a sum in float32."""
LONGEST_SESSION = 500
"""Above the longest session of every public log that we use (442 clicks) and of any visit."""
_KIND = "\0event_type"


class Filters(Settings):
    """Which clicks are worth learning from."""

    last_days: PositiveFloat | None = None
    """Only sessions that begin less than so many days before the newest one; applied before the
    other filters. 0.125 is three hours. Meaningless where the log's time is only an order."""
    min_item_support: PositiveInt = 1
    """Drop items with fewer clicks."""
    min_session_length: PositiveInt = 2
    """Drop sessions with fewer clicks."""
    max_session_length: NonNegativeInt = LONGEST_SESSION
    """Drop sessions with more clicks, since no person made them (0: none)."""
    drop_repeats: bool = False
    """Keep one click of consecutive clicks on the same item."""

    @model_validator(mode="after")
    def _leaves_sessions(self) -> "Filters":
        if 0 < self.max_session_length < self.min_session_length:
            raise ValueError(
                f"max_session_length={self.max_session_length} is below min_session_length="
                f"{self.min_session_length}: no session would be left"
            )
        return self


class Filtered(NamedTuple):
    """The clicks that are left, and how many each filter dropped."""

    clicks: pl.DataFrame
    rare_item_clicks: int
    short_session_clicks: int
    repeat_clicks: int
    old_clicks: int
    long_session_clicks: int


def filter_clicks(clicks: pl.DataFrame, filters: Filters) -> Filtered:
    """The clicks that pass every filter; filtering them again changes nothing.

    The filters are repeated, since a dropped item shortens sessions and a dropped session lowers
    the support of items.
    """
    n_before = len(clicks)
    if filters.last_days is not None and n_before:
        # Sessions that begin less than so many days before the newest one does.
        start, first_ms = session_starts(clicks)
        oldest_ms = first_ms[-1] - filters.last_days * DAY_MS
        clicks = clicks[int(start[np.searchsorted(first_ms, oldest_ms, "right")]) :]
    session = clicks["session_id"].rle_id().to_numpy()
    item = codes(number_ids(clicks.select("item_id"))["item_id"])
    keeps: dict[str, Callable[[], Bool[np.ndarray, T]]] = {
        "repeat": lambda: ~_is_repeat(session, item),
        # Before the support is counted: a robot's clicks would lift every item that it visits.
        "long": lambda: _counts(session) <= filters.max_session_length,
        "rare": lambda: _counts(item) >= filters.min_item_support,
        "short": lambda: _counts(session) >= filters.min_session_length,
    }
    dropped = dict.fromkeys(keeps, 0)
    if not filters.drop_repeats:
        del keeps["repeat"]
    if not filters.max_session_length:
        del keeps["long"]
    row, before = np.arange(len(clicks), dtype=np.uint32), -1
    while before != len(row):
        before = len(row)
        for name, keep in keeps.items():
            passes = keep()
            n_dropped = len(passes) - int(np.count_nonzero(passes))
            if n_dropped:
                dropped[name] += n_dropped
                row, session, item = row[passes], session[passes], item[passes]
    return Filtered(
        clicks=clicks if len(row) == len(clicks) else clicks[pl.Series(row)],
        rare_item_clicks=dropped["rare"],
        short_session_clicks=dropped["short"],
        repeat_clicks=dropped["repeat"],
        old_clicks=n_before - len(clicks),
        long_session_clicks=dropped["long"],
    )


def _counts(code: UInt32[np.ndarray, "T"]) -> Int[np.ndarray, "T"]:
    """How often each click's code occurs."""
    return np.asarray(np.bincount(code)[code])


def _is_repeat(
    session: UInt32[np.ndarray, "T"], item: UInt32[np.ndarray, "T"]
) -> Bool[np.ndarray, "T"]:
    """Clicks on the item of the click before them in their session."""
    repeat = (item[1:] == item[:-1]) & (session[1:] == session[:-1])
    return np.asarray(np.r_[False, repeat][: len(item)])


TargetWeight = Annotated[float, Field(ge=0, le=MAX_TARGET)]


class EventTypes(Settings):
    """What a click's type decides; by default nothing."""

    column: str = "event_type"
    """Column of the type; numbers are compared as text."""
    inputs: tuple[str, ...] | None = None
    """Types that advance a session; clicks of other types, or without one, are dropped first.
    Unset: all do."""
    targets: dict[str, TargetWeight] | None = None
    """Weight of a type's clicks as targets, such as purchase=3; other types have weight 0: they are
    read but never predicted. Unset: every click has weight 1."""

    @model_validator(mode="after")
    def _check(self) -> "EventTypes":
        if self.inputs is not None and not self.inputs:
            raise ValueError("inputs is empty: no click would be left")
        if self.targets is not None and not any(self.targets.values()):
            raise ValueError("targets have no weight above 0: nothing would be predicted")
        unread = sorted(set(self.targets or ()) - set(self.inputs or self.targets or ()))
        if unread:
            raise ValueError(f"targets have {unread[0]!r}, which is not one of the inputs")
        return self


def weigh_events(clicks: pl.DataFrame, types: EventTypes) -> pl.DataFrame:
    """The log without the clicks that do not advance a session, each with its target_weight.

    Without ``targets`` there is no such column, which means 1. Raises TrainError if the log has
    no column of types, no click of any input type or none of any target type.
    """
    if types.inputs is None and types.targets is None:
        return clicks
    if types.column not in clicks.columns:
        raise TrainError(
            f"the log has no column {types.column!r} of event types; its columns are "
            f"{', '.join(clicks.columns)}"
        )
    kinds = texts(clicks[types.column]).alias(_KIND)
    found = kinds.unique().drop_nulls().sort().to_list()

    def check(wanted: Iterable[str], which: str = "") -> None:
        if not set(wanted) & set(found):
            raise TrainError(
                f"no click of the log has one of the event types {', '.join(sorted(wanted))}"
                f"{which}; the values of {types.column} are {', '.join(found[:20]) or 'all empty'}"
            )

    clicks, kind = clicks.with_columns(kinds), pl.col(_KIND)
    if types.inputs is not None:
        check(types.inputs)
        clicks = clicks.filter(kind.is_in(sorted(types.inputs)))
    if types.targets is not None:
        counted = [name for name, weight in types.targets.items() if weight]
        check(counted, ", the ones of a weight above 0")
        weight = kind.replace_strict(types.targets, default=0.0, return_dtype=pl.Float32)
        clicks = clicks.with_columns(weight.alias(TARGET_WEIGHT))
    return clicks.drop(_KIND)
