"""The rows of a log: each is a click, or bad for a reason from a closed list.

The limits are those of the clicks topic (docs/contract.md), so that whatever a model was trained on
can also be served.
"""

import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from pydantic import model_validator

from stream.contract.click import MAX_FUTURE_MS, MAX_ID_BYTES
from train.command import Settings, TrainError
from train.data.context import text_column
from train.data.order import ITEM_ID, KAFKA_COLUMNS, SESSION_ID, VISITOR_ID
from train.data.source import FILE, MALFORMED, Source, open_log, reading

WIRE_COLUMNS = ("session_id", "item_id", "timestamp_ms")
MAX_VISITOR_BYTES = 240  # leaves room for the "-k" that makes a visitor a session
# Added to the log's own columns, which may have any name.
_SESSION, _ITEM, _TIME, _REASON = "\0session", "\0item", "\0time", "\0reason"

_PRESETS: dict[str, dict[str, str]] = {
    "wire": {"session": "session_id", "item": "item_id", "time": "timestamp_ms", "time_unit": "ms"},
    "public": {"session": "SessionId", "item": "ItemId", "time": "Time", "time_unit": "s"},
}


class Reason(StrEnum):
    """Why a row of a log is not a click."""

    BAD_FIELD = "bad_field"
    """More fields than the header, or a quote that is not closed."""
    NOT_UTF8 = "not_utf8"
    BAD_SESSION_ID = "bad_session_id"
    """Missing, longer than 256 bytes (a visitor: 240), or begins with NUL."""
    BAD_ITEM_ID = "bad_item_id"
    """Missing, longer than 256 bytes, or has a control character."""
    BAD_TIMESTAMP = "bad_timestamp"
    """Not readable in the declared unit, before 1970, or more than 5 minutes in the future."""


class Columns(Settings):
    """The columns of a click log; those that are not given come from the preset."""

    preset: Literal["wire", "public"] = "wire"
    """wire: session_id, item_id, timestamp_ms in milliseconds, as clicks come through Kafka.
    public: SessionId, ItemId, Time in seconds, as the public data sets have them."""
    session: str = ""
    """Column of the session's name."""
    visitor: str | None = None
    """Column of the visitor, for a log without sessions: cut at idle gaps, named visitor-k."""
    item: str = ""
    """Column of the item's name."""
    time: str = ""
    """Column of the click's time."""
    time_unit: Literal["s", "ms", "iso"] = "ms"
    """Seconds (fractions are kept to the millisecond), milliseconds, or ISO 8601 (UTC without a
    zone). A column that is only an order is read as a number too; in such a log cut no sessions
    and keep no last days."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**_PRESETS.get(given.get("preset", "wire"), {}), **given}

    def sources(self) -> tuple[str, str, str]:
        """The columns of session (or visitor), item and time."""
        return (self.visitor or self.session, self.item, self.time)


class Rows(NamedTuple):
    """A log's rows under the names of the wire: the clicks, and the bad rows."""

    good: pl.DataFrame
    """session_id (or the visitor's id) and item_id, categorical, timestamp_ms, and further columns;
    in the order of the file."""
    n_bad: dict[Reason, int]
    """Bad rows by reason, the most frequent first."""
    bad: pl.LazyFrame
    """Row number (from 1, through all files), reason, file where there are several, and the log's
    columns; collecting it reads the log again."""
    unwanted: list[str] | None
    """Of a collected log, kafka_partition and kafka_offset as far as ``keep`` does not name them;
    None of any other log."""


def read_rows(path: str | Path, columns: Columns, keep: Sequence[str] | None = None) -> Rows:
    """The rows of a log, which is anything that ``train/data/source.py`` opens.

    ``keep`` names the further columns to read, of those that the log has; None reads them all.
    Raises TrainError if the log is unreadable, lacks a column or has no rows.
    """
    source = open_log(path)
    with reading(path):
        return _read_rows(path, source, columns, keep)


def _read_rows(
    path: str | Path, source: Source, columns: Columns, keep: Sequence[str] | None
) -> Rows:
    schema = source.table.collect_schema()
    further = [name for name in schema if name not in (*columns.sources(), MALFORMED, FILE)]
    if reserved := [name for name in WIRE_COLUMNS if name in further]:
        raise TrainError(f"{path}: column {reserved[0]!r} has a reserved name; rename it")
    context = [name for name in further if keep is None or name in keep]
    is_collected = columns.sources() == WIRE_COLUMNS and all(
        name in further and schema[name].is_integer() for name in KAFKA_COLUMNS[1:]
    )
    offset = [name for name in KAFKA_COLUMNS[1:] if is_collected and name not in context]
    judged = source.table.with_columns(_parse(path, source, schema, columns)).with_columns(
        _reason(source, schema, columns)
    )
    good = judged.filter(pl.col(_REASON).is_null()).select(
        pl.col(_SESSION).cast(VISITOR_ID if columns.visitor else SESSION_ID).alias("session_id"),
        pl.col(_ITEM).cast(ITEM_ID).alias("item_id"),
        pl.col(_TIME).alias("timestamp_ms"),
        *context,
        *offset,
    )
    # A CSV file cannot hold lists, structs, durations or bytes.
    shown = [
        name
        for name, dtype in schema.items()
        if not (dtype.is_nested() or dtype in (pl.Duration, pl.Binary, pl.Object))
        and name not in ("row", "reason", "file", MALFORMED, FILE)
    ]
    renamed = {"\0row": "row", _REASON: "reason"} | ({FILE: "file"} if FILE in schema else {})
    bad = (
        judged.with_row_index("\0row", offset=1)
        .filter(pl.col(_REASON).is_not_null())
        .select(*(pl.col(name).alias(new) for name, new in renamed.items()), *shown)
    )
    clicks = good.collect(engine="streaming").rechunk()
    n_rows = int(source.table.select(pl.len()).collect(engine="streaming").item())
    if n_rows == 0:
        raise TrainError(f"{path} is empty: it has a header but no clicks")
    n_bad: dict[Reason, int] = {}
    if len(clicks) < n_rows:
        reasons = bad.select("reason").collect(engine="streaming")["reason"]
        n_bad = {Reason(name): count for name, count in reasons.value_counts(sort=True).iter_rows()}
    return Rows(clicks, n_bad, bad, offset if is_collected else None)


def _parse(path: str | Path, source: Source, schema: pl.Schema, columns: Columns) -> list[pl.Expr]:
    """The three columns of a click; null where a value cannot be read."""
    for name, wire in zip(columns.sources(), WIRE_COLUMNS, strict=True):
        if name in source.conflicts:
            raise TrainError(
                f"{path}: column {name!r} has types {source.conflicts[name]} in its files; "
                "expected one type"
            )
        if name not in schema:
            own = ", ".join(column for column in schema if column not in (MALFORMED, FILE))
            raise TrainError(f"{path} has no column {name!r}; its columns are {own}")
        dtype, is_iso = schema[name], wire == "timestamp_ms" and columns.time_unit == "iso"
        if dtype.is_nested() or (is_iso and dtype not in (pl.String, pl.Datetime, pl.Date)):
            raise TrainError(f"{path}: column {name!r} has type {dtype}, which cannot be a {wire}")
    session, item, at = columns.sources()
    return [
        text_column(session, schema[session]).alias(_SESSION),
        text_column(item, schema[item]).alias(_ITEM),
        _parse_time(at, schema[at], columns.time_unit).alias(_TIME),
    ]


def _parse_time(name: str, dtype: pl.DataType, unit: str) -> pl.Expr:
    value = pl.col(name)
    if isinstance(dtype, pl.Datetime | pl.Date):
        return value.cast(pl.Datetime("ms")).dt.epoch("ms")
    if unit == "iso":
        text = value.str.replace(" ", "T", literal=True).str.replace("[Zz]$", "+00:00")
        zoned = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="ms", strict=False)
        plain = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="ms", strict=False)
        return zoned.dt.epoch("ms").fill_null(plain.dt.epoch("ms"))
    if unit == "ms" and dtype.is_integer():
        return value.cast(pl.Int64, strict=False)
    # float64 holds today's milliseconds exactly (2^41 of 2^53)
    number = value.cast(pl.Float64, strict=False) * (1000 if unit == "s" else 1)
    return number.round().cast(pl.Int64, strict=False)


def _reason(source: Source, schema: pl.Schema, columns: Columns) -> pl.Expr:
    """Why each row is bad; null where it is good."""

    def bad_id(name: str, max_bytes: int) -> pl.Expr:
        return ~pl.col(name).str.len_bytes().is_between(1, max_bytes).fill_null(False)

    latest_ms = time.time_ns() // 1_000_000 + MAX_FUTURE_MS
    max_session_bytes = MAX_VISITOR_BYTES if columns.visitor else MAX_ID_BYTES
    session, item = pl.col(_SESSION), pl.col(_ITEM)
    # Bytes that are not UTF-8 were read as U+FFFD.
    broken = pl.any_horizontal(pl.col(_SESSION, _ITEM).str.contains("\ufffd", literal=True))
    is_bad = {
        Reason.BAD_FIELD: pl.col(MALFORMED) if MALFORMED in schema else pl.lit(False),
        Reason.NOT_UTF8: broken if source.is_text else pl.lit(False),
        Reason.BAD_SESSION_ID: bad_id(_SESSION, max_session_bytes) | session.str.starts_with("\0"),
        Reason.BAD_ITEM_ID: bad_id(_ITEM, MAX_ID_BYTES) | item.str.contains(r"\p{Cc}"),
        Reason.BAD_TIMESTAMP: ~pl.col(_TIME).is_between(0, latest_ms).fill_null(False),
    }
    first = [pl.when(bad).then(pl.lit(reason.value)) for reason, bad in is_bad.items()]
    return pl.coalesce(first).alias(_REASON)
