"""Which columns of a log are a click."""

from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import model_validator

from train.command import Settings, TrainError
from train.data.source import FILE, MALFORMED, Source
from train.data.times import TimeUnit

WIRE_COLUMNS = ("session_id", "item_id", "timestamp_ms")
_PRESETS: dict[str, dict[str, str]] = {
    "wire": {"session": "session_id", "item": "item_id", "time": "timestamp_ms"},
    "public": {"session": "SessionId", "item": "ItemId", "time": "Time", "time_unit": "s"},
}


class Columns(Settings):
    """The columns of a click log; those that are not given come from the preset."""

    preset: Literal["wire", "public"] = "wire"
    """wire: session_id, item_id, timestamp_ms, as clicks come through Kafka.
    public: SessionId, ItemId, Time in seconds, as the public data sets have them."""
    session: str = ""
    """Column of the session's name."""
    visitor: str | None = None
    """Column of the visitor, for a log without sessions: cut at idle gaps, named visitor-k."""
    item: str = ""
    """Column of the item's name."""
    time: str = ""
    """Column of the click's time; date+time_of_day where the second one has the milliseconds since
    the first."""
    time_unit: TimeUnit | None = None
    """s, ms, us, ns: numbers since 1970 (seconds to the millisecond). days: since 30 December 1899,
    as spreadsheets count. iso: the year first, as in ISO 8601; compact: that without separators;
    dmy, mdy: the day or the month first; all in UTC where they have no zone. order: numbers that
    are no times; in such a log cut no sessions and keep no last days. Unset: found out from the
    values."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**_PRESETS.get(given.get("preset", "wire"), {}), **given}

    def times(self) -> tuple[str, ...]:
        """The columns of the time."""
        return tuple(self.time.split("+"))

    def sources(self) -> tuple[str, ...]:
        """The columns of session (or visitor), item and time."""
        return (self.visitor or self.session, self.item, *self.times())


def check_columns(path: str | Path, source: Source, schema: pl.Schema, columns: Columns) -> None:
    """Raise TrainError unless the log has the columns, with types that a click can be read from."""
    for name in columns.sources():
        if name in source.conflicts:
            raise TrainError(
                f"{path}: column {name!r} has types {source.conflicts[name]} in its files; "
                "expected one type"
            )
        if name not in schema:
            own = ", ".join(column for column in schema if column not in (MALFORMED, FILE))
            raise TrainError(f"{path} has no column {name!r}; its columns are {own}")
        dtype, is_time = schema[name], name in columns.times()
        if dtype.is_nested() or (is_time and dtype in (pl.Binary, pl.Time, pl.Duration)):
            what = "time" if is_time else "id"
            raise TrainError(f"{path}: column {name!r} has type {dtype}, which cannot be a {what}")
