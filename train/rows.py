"""A log's file becomes rows: each a click, or bad for a reason from a closed list."""

import csv
import gzip
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from pydantic import BaseModel, ConfigDict, model_validator

WIRE_COLUMNS = ("session_id", "item_id", "timestamp_ms")
# What a click may look like is the clicks topic's rule (docs/contract.md), so that whatever a
# model was trained on can also be served.
MAX_ID_BYTES = 256
MAX_VISITOR_BYTES = 240  # leaves room for the "-k" that makes a visitor a session
MAX_FUTURE_MS = 5 * 60 * 1000

_PRESETS: dict[str, dict[str, str]] = {
    "wire": {"session": "session_id", "item": "item_id", "time": "timestamp_ms", "time_unit": "ms"},
    "public": {"session": "SessionId", "item": "ItemId", "time": "Time", "time_unit": "s"},
}


class ClickLogError(Exception):
    """A click log that cannot be used: one sentence with the file, the found and the expected."""


class Reason(StrEnum):
    """Why a row of a log is no click."""

    BAD_FIELD = "bad_field"
    """More fields than the header has names."""
    NOT_UTF8 = "not_utf8"
    BAD_SESSION_ID = "bad_session_id"
    """Missing, longer than 256 bytes (a visitor: 240), or begins with NUL."""
    BAD_ITEM_ID = "bad_item_id"
    """Missing, longer than 256 bytes, or has a control character."""
    BAD_TIMESTAMP = "bad_timestamp"
    """Not readable in the declared unit, before 1970, or more than 5 minutes from now."""


class Columns(BaseModel):
    """Where a click log keeps what; fields that are not given come from the preset."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
    """Seconds (fractions kept to the millisecond), milliseconds, or ISO 8601 (UTC if it names no
    zone). A column that is only an order is read as a number too; cut no sessions in such a log."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**_PRESETS.get(given.get("preset", "wire"), {}), **given}


class Rows(NamedTuple):
    """A log's rows under the wire's names, those that are clicks apart from those that are not."""

    good: pl.DataFrame
    """session_id (or the visitor's), item_id, timestamp_ms, context; in the order of the file."""
    bad: pl.DataFrame
    """Row number (the first is 1), reason, and the columns as the file has them."""


def read_rows(path: Path, columns: Columns) -> Rows:
    """The rows of a .parquet, .csv or .tsv file (text also .gz).

    Raises ClickLogError if the file is unreadable, lacks a column or has no rows.
    """
    table, surplus = _read_table(path)
    if table.is_empty():
        raise ClickLogError(f"{path} is empty: a header and no click")
    parsed = _parse(path, table, columns)
    reason = _reasons(parsed, surplus, MAX_VISITOR_BYTES if columns.visitor else MAX_ID_BYTES)
    bad = reason.is_not_null()
    # Columns of lists or structs cannot stand in a CSV file.
    shown = table.drop(pl.selectors.nested(), "row", "reason", strict=False)
    numbered = shown.insert_column(0, reason.alias("reason")).with_row_index("row", offset=1)
    return Rows(good=parsed.filter(~bad), bad=numbered.filter(bad))


def _read_table(path: Path) -> tuple[pl.DataFrame, pl.Series]:
    """The file's rows (of a text file: all text), and which have more fields than the header."""
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith((".csv", ".tsv")):
            return _read_text(path, "," if name.endswith(".csv") else "\t")
        if path.name.lower().endswith((".parquet", ".pq")):
            table = pl.read_parquet(path)
            return table, pl.repeat(False, len(table), eager=True)
    except pl.exceptions.NoDataError:
        raise ClickLogError(f"{path} is empty: not even a header") from None
    except FileNotFoundError:
        raise ClickLogError(f"{path} does not exist") from None
    except (OSError, EOFError, csv.Error, pl.exceptions.PolarsError) as error:
        raise ClickLogError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    raise ClickLogError(f"{path}: a click log is .parquet, .csv, .tsv, .csv.gz or .tsv.gz")


def _read_text(path: Path, separator: str) -> tuple[pl.DataFrame, pl.Series]:
    quote = '"' if separator == "," else None  # tab-separated logs know no quotes
    try:
        table = pl.read_csv(
            path,
            separator=separator,
            quote_char=quote,
            infer_schema=False,
            encoding="utf8-lossy",
        )
        return table, pl.repeat(False, len(table), eager=True)
    except pl.exceptions.ComputeError:
        # One row with more fields than the header, or with a stray quote, makes Polars refuse
        # the whole file. Read it again row by row, many times slower, to find such rows.
        return _read_ragged_text(path, separator)


def _read_ragged_text(path: Path, separator: str) -> tuple[pl.DataFrame, pl.Series]:
    opened: Callable[..., Any] = gzip.open if path.suffix.lower() == ".gz" else open
    rows: list[list[str | None]] = []
    surplus: list[bool] = []
    with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(
            lines,
            delimiter=separator,
            quoting=csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE,
        )
        header = next(reader)
        last = len(header) - 1
        for row in reader:
            fields = [*row[:last], separator.join(row[last:])]  # what is too much stays visible
            rows.append([field or None for field in fields] + [None] * (last + 1 - len(fields)))
            surplus.append(len(row) > len(header))
    schema = dict.fromkeys(header, pl.String)
    return pl.DataFrame(rows, schema=schema, orient="row"), pl.Series(surplus, dtype=pl.Boolean)


def _parse(path: Path, table: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    """The table under the wire's names; null where a value cannot be read."""
    sources = (columns.visitor or columns.session, columns.item, columns.time)
    context = [name for name in table.columns if name not in sources]
    for name in sources:
        if name not in table.columns:
            raise ClickLogError(f"{path} has no column {name!r}, only {', '.join(table.columns)}")
    for name in WIRE_COLUMNS:
        if name in context:
            raise ClickLogError(f"{path}: column {name!r} is not what it is read as; rename it")
    parse: list[Callable[[pl.Series], pl.Series]] = [
        _parse_ids,
        _parse_ids,
        lambda values: _parse_times(values, columns.time_unit),
    ]
    parsed = []
    for source, name, parse_values in zip(sources, WIRE_COLUMNS, parse, strict=True):
        try:
            parsed.append(parse_values(table[source]).alias(name))
        except pl.exceptions.PolarsError as error:
            raise ClickLogError(
                f"{path}: column {source!r} holds {table[source].dtype}, which is no {name}"
            ) from error
    return pl.DataFrame([*parsed, *table.select(context)])


def _parse_ids(values: pl.Series) -> pl.Series:
    if values.dtype.is_float():  # what pandas makes of whole numbers where one is missing
        values = values.fill_nan(None)
        whole = values.cast(pl.Int64, strict=False)
        return whole.cast(pl.String).zip_with(whole == values, values.cast(pl.String))
    return values.cast(pl.String)


def _parse_times(values: pl.Series, unit: str) -> pl.Series:
    if isinstance(values.dtype, pl.Datetime | pl.Date):
        return values.cast(pl.Datetime("ms")).dt.epoch("ms")
    if unit == "iso":
        text = values.str.replace(" ", "T", literal=True).str.replace("[Zz]$", "+00:00")
        zoned = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="ms", strict=False)
        plain = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="ms", strict=False)
        return zoned.dt.epoch("ms").fill_null(plain.dt.epoch("ms"))
    # float64 holds today's milliseconds exactly (2^41 of 2^53)
    number = values.cast(pl.Float64, strict=False) * (1000 if unit == "s" else 1)
    return number.round().cast(pl.Int64, strict=False)


def _reasons(parsed: pl.DataFrame, surplus: pl.Series, max_session_bytes: int) -> pl.Series:
    """Why each row is bad; null where it is good."""

    def bad_id(name: str, max_bytes: int) -> pl.Expr:
        return ~pl.col(name).str.len_bytes().is_between(1, max_bytes).fill_null(False)

    latest_ms = time.time_ns() // 1_000_000 + MAX_FUTURE_MS
    good_time = pl.col("timestamp_ms").is_between(0, latest_ms).fill_null(False)
    bad_session = bad_id("session_id", max_session_bytes) | pl.col("session_id").str.starts_with(
        "\0"
    )
    bad_item = bad_id("item_id", MAX_ID_BYTES) | pl.col("item_id").str.contains(r"\p{Cc}")
    # Bytes that are no UTF-8 were read as U+FFFD.
    broken = pl.any_horizontal(pl.col("session_id", "item_id").str.contains("\ufffd", literal=True))
    reason = (
        pl.when(surplus)
        .then(pl.lit(Reason.BAD_FIELD.value))
        .when(broken)
        .then(pl.lit(Reason.NOT_UTF8.value))
        .when(bad_session)
        .then(pl.lit(Reason.BAD_SESSION_ID.value))
        .when(bad_item)
        .then(pl.lit(Reason.BAD_ITEM_ID.value))
        .when(~good_time)
        .then(pl.lit(Reason.BAD_TIMESTAMP.value))
    )
    return parsed.select(reason=reason).to_series()
