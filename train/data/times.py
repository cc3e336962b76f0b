"""The times of a log's clicks: their unit found out from the values, read, and explained where it
is not the right one.

Everything but the reading itself looks at a sample from all over the log, so that a wrong unit is
refused before a large log is read.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import polars as pl
import structlog

from stream.contract.click import EARLIEST_MS, MAX_FUTURE_MS
from train.command import TrainError
from train.data.filters import DAY_MS

TimeUnit: TypeAlias = Literal[
    "s", "ms", "us", "ns", "days", "iso", "compact", "dmy", "mdy", "order"
]
SAMPLED = 10_000
"""Values that a unit is found out from: a form that a twentieth of the log has is among them."""
ONE_MOMENT_CLICKS = 100
"""So many clicks at one time are no log; fewer may be a test's."""
_PER_MS = {"s": 1e-3, "ms": 1.0, "us": 1e3, "ns": 1e6}
_EPOCH_S = (3e8, 4e9)
"""1979 to 2096. A thousand times as much is another unit's time, so that no number has two; what is
less is an order, or a spreadsheet's day."""
_MOST_BELOW = 0.05
"""Share of a unit's numbers that may lie before its first year: times that are counted from 0 would
be decades of another unit."""
_SPREADSHEET_DAYS = (20_000, 70_000)
"""1954 to 2091, counted from 30 December 1899."""
_SPREADSHEET_1970 = 25_569
_YEAR_MS = 365 * DAY_MS
_SHOWN = 40
"""Characters of a value in a sentence."""
_LOST_DIGITS = r"^\s*\d[.,]?\d{0,6}[eE]\+?(?:0?9|1\d)\s*$"
_POINTS = r"^\s*\d{1,2}\."
_OF_DAY = (
    r"(?:[T ,:]+(?P<hour>\d{1,2}):(?P<minute>\d{2})"
    r"(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?\s*(?P<half>[AP]M)?)?"
    r"\s*(?:Z|UTC|GMT)?(?P<zone>[+-]\d{2}(?::?\d{2})?)?\s*(?:UTC|GMT)?\s*(?:\(.*\))?\s*$"
)
_WEEKDAY = r"(?i)^\s*(?:[A-Z]{3,9},?\s+)?"
_MONTH = r"(?P<month>\d{1,2}|[A-Z]{3,9})"
_FORMS = {
    "iso": r"(?i)^\s*(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})" + _OF_DAY,
    "dmy": rf"{_WEEKDAY}(?P<day>\d{{1,2}})[-/. ]{_MONTH}[-/., ]+(?P<year>\d{{4}}|\d{{2}})"
    + _OF_DAY,
    "mdy": rf"{_WEEKDAY}{_MONTH}[-/. ](?P<day>\d{{1,2}})[-/., ]+(?P<year>\d{{4}}|\d{{2}})"
    + _OF_DAY,
    "compact": r"(?i)^\s*(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})"
    r"(?:T?(?P<hour>\d{2})(?P<minute>\d{2})(?P<second>\d{2})(?P<fraction>\d{3})?)?Z?\s*$",
}
_REWRITTEN = {
    # Oracle: 21-SEP-26 02.13.20.000000 PM
    "dmy": (
        r"(?i)^\s*([0-9]{1,2}-[A-Z]{3}-[0-9]{2,4}) ([0-9]{1,2})\.([0-9]{2})\.([0-9]{2})",
        "${1} ${2}:${3}:${4}",
    ),
    # Java and C: Mon Sep 21 14:13:20 UTC 2026
    "mdy": (
        r"(?i)^\s*[A-Z]{3} ([A-Z]{3}) +([0-9]{1,2}) ([0-9]{2}:[0-9]{2}:[0-9]{2})"
        r"( (?:UTC|GMT)?(?:[+-][0-9]{2}:?[0-9]{2})?)? ([0-9]{4})\s*$",
        "${1} ${2} ${5} ${3}${4}",
    ),
}
"""Times with their parts in other places, and how the form has them."""
_FORMS = {unit: form.replace(r"\d", "[0-9]") for unit, form in _FORMS.items()}  # ASCII alone
_NUMBERS = ("year", "month", "day", "hour", "minute", "second")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


log = structlog.get_logger()


def parse_time(names: Sequence[str], schema: pl.Schema, unit: TimeUnit | None) -> pl.Expr:
    """The times of a column, int64 milliseconds; null where one cannot be read in the unit. Of two
    columns the second has milliseconds after the first."""
    first = _parse(names[0], schema[names[0]], unit)
    for name in names[1:]:
        first = first + _parse(name, schema[name], "ms")
    return first


def sample_times(table: pl.LazyFrame, name: str) -> pl.Series:
    """Values of the column from all over the log."""
    n_rows = int(table.select(pl.len()).collect(engine="streaming").item())
    step = max(1, n_rows // SAMPLED)
    return table.select(pl.col(name).gather_every(step)).collect(engine="streaming").to_series()


def find_unit(
    path: str | Path, table: pl.LazyFrame, name: str, given: TimeUnit | None
) -> TimeUnit | None:
    """The unit to read a column's times in: the one that is given, or else the one that most of its
    values have. None for a column that has times by its type.

    Raises TrainError, with one of the values and the unit it is likely to have, if most values
    cannot be read in the unit or are years off, or if days and months cannot be told apart.
    """
    values = sample_times(table, name).drop_nulls()
    where = f"{path}: column {name!r}"
    if values.dtype.is_temporal():
        if isinstance(values.dtype, pl.Datetime | pl.Date):
            return None
        raise TrainError(f"{where} has type {values.dtype}, which cannot be a timestamp_ms")
    if values.is_empty():
        return given or "ms"  # a click without a time is bad for that reason
    likely, rivals = _likely_unit(values)
    if given is None and rivals:
        likely = _day_or_month(where, table, name, rivals, values)
    unit = given or likely or "ms"
    _check_digits(where, values)
    if given != "order":
        _check_unit(where, values, unit, likely)
    return unit


def check_moments(path: str | Path, name: str, timestamp_ms: pl.Series) -> None:
    """Raise TrainError if all clicks of a log have one time."""
    earliest = timestamp_ms.min()
    if len(timestamp_ms) >= ONE_MOMENT_CLICKS and earliest == timestamp_ms.max():
        raise TrainError(
            f"{path}: all {len(timestamp_ms)} clicks have one time in column {name!r}, "
            f"{_moment(earliest)}; name the column of the clicks' own times with time=NAME"  # type: ignore[arg-type]  # an integer
        )


def _parse(name: str, dtype: pl.DataType, unit: TimeUnit | None) -> pl.Expr:
    value = pl.col(name)
    if isinstance(dtype, pl.Datetime | pl.Date):
        return value.cast(pl.Datetime("ms")).dt.epoch("ms")
    if dtype.is_numeric() and unit not in _FORMS:
        return _ms_of(value, dtype, unit or "ms")
    return value.cast(pl.String).map_batches(
        partial(_read_text, unit=unit or "ms"), return_dtype=pl.Int64, is_elementwise=True
    )


def _ms_of(number: pl.Expr, dtype: pl.DataType, unit: str) -> pl.Expr:
    per_ms = _PER_MS.get(unit, 1.0)
    if per_ms >= 1 and dtype.is_integer():
        return number.cast(pl.Int64, strict=False) // int(per_ms)
    # float64 holds today's milliseconds exactly (2^41 of 2^53), and nanoseconds to 256 ns.
    number = number.cast(pl.Float64, strict=False)
    if unit == "days":
        number = (number - _SPREADSHEET_1970) * DAY_MS
    # Seconds and days were rounded when they were written; us and ns are cut, as in a datetime.
    whole = (number / per_ms).floor() if per_ms > 1 else (number * round(1 / per_ms)).round()
    return whole.cast(pl.Int64, strict=False)


def _read_text(text: pl.Series, unit: str) -> pl.Series:
    if unit in _FORMS:
        return _read_form(text, unit)
    numbers = text.cast(pl.Int64 if _PER_MS.get(unit, 1.0) > 1 else pl.Float64, strict=False)
    if numbers.null_count() > text.null_count():  # Polars reads no number with blanks around it
        numbers = numbers.cast(pl.Float64).fill_null(
            text.str.strip_chars().cast(pl.Float64, strict=False)
        )
    frame = numbers.alias("number").to_frame()
    return frame.select(_ms_of(pl.col("number"), numbers.dtype, unit)).to_series()


def _read_form(text: pl.Series, unit: str) -> pl.Series:
    """The text's parts are found in one pass, and the time is computed from them: Polars' own
    formats would need a pass for each form of fraction and zone, and take longer."""
    if unit in _REWRITTEN and text.str.contains(_REWRITTEN[unit][0]).any():
        text = text.str.replace(*_REWRITTEN[unit])
    found = text.alias("text").to_frame().select(pl.col("text").str.extract_groups(_FORMS[unit]))
    parts = found.unnest("text")
    numbers = [name for name in _NUMBERS if name in parts.columns]
    month, year, hour = pl.col("month"), pl.col("year"), pl.col("hour")
    if unit in ("dmy", "mdy"):
        names = (
            month.str.head(3)
            .str.to_lowercase()
            .replace(_MONTHS, [str(number) for number in range(1, 13)])
        )
        parts = parts.with_columns(names)
    parts = parts.with_columns(
        pl.col(numbers).cast(pl.Int32, strict=False),
        pl.concat_str("fraction", pl.lit("000")).str.head(3).cast(pl.Int64, strict=False),
    )
    if "half" in parts.columns:
        half = pl.col("half").str.to_uppercase()
        of_half = pl.when(hour.is_between(1, 12)).then(hour % 12 + 12 * (half == "PM"))
        parts = parts.with_columns(pl.when(half.is_null()).then(hour).otherwise(of_half), half)
        lacks_hour = hour.is_null() & pl.col("half").is_not_null()
    else:
        lacks_hour = pl.lit(False)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    parts = parts.with_columns(
        pl.when(year < 100).then(year + 2000).otherwise(year),
        pl.when(month == 2)
        .then(28 + leap.cast(pl.Int32))
        .when(month.is_in([4, 6, 9, 11]))
        .then(30)
        .otherwise(31)
        .alias("days"),
        lacks_hour.alias("wrong"),
    ).with_columns(pl.col("hour", "minute", "second", "fraction").fill_null(0))
    day, wrong = pl.col("day"), pl.col("wrong")
    # The 60th second is a leap second. Polars raises on a date that does not exist.
    exists = month.is_between(1, 12) & (day >= 1) & (day <= pl.col("days")) & ~wrong
    exists &= (hour < 24) & (pl.col("minute") < 60) & (pl.col("second") <= 60)
    parts = parts.with_columns(pl.when(exists).then(pl.col("year", "month", "day")))
    at = pl.date(year, month, day).cast(pl.Datetime("ms")).dt.epoch("ms") + pl.col("fraction")
    at = at + 1000 * (3600 * hour.cast(pl.Int64) + 60 * pl.col("minute") + pl.col("second"))
    zone = pl.col("zone")
    if "zone" in parts.columns and parts["zone"].null_count() < len(parts):
        digits = zone.str.replace_all("[+:-]", "").str.pad_end(4, "0")
        minutes = 60 * digits.str.head(2).cast(pl.Int64) + digits.str.tail(2).cast(pl.Int64)
        east = pl.when(zone.str.starts_with("-")).then(-minutes).otherwise(minutes)
        at = at - 60_000 * east.fill_null(0)
    return parts.select(at.alias("at")).to_series()


def _likely_unit(values: pl.Series) -> tuple[TimeUnit | None, tuple[str, ...]]:
    """The unit that most of the values have; None without one. With dmy and mdy both possible,
    those two as well."""
    half = len(values) / 2
    text = values if values.dtype.is_numeric() else values.cast(pl.String).str.strip_chars()
    size = text.cast(pl.Float64, strict=False)
    if size.count() > half:
        for unit, per_ms in _PER_MS.items():
            low, high = (1000 * per_ms * edge for edge in _EPOCH_S)
            if unit == "ns":
                low = EARLIEST_MS * per_ms  # below are the 100 ns since the year 1 of .NET
            n_below = size.is_between(0, low, closed="none").sum()
            if size.is_between(low, high).sum() > half and n_below < _MOST_BELOW * len(values):
                return unit, ()  # type: ignore[return-value]  # a key of _PER_MS
        days = size.is_between(*_SPREADSHEET_DAYS)
        if days.sum() > half and (size.filter(days) % 1 != 0).any():
            return "days", ()
        if (size % 1 == 0).sum() > half and _reads(values, "compact") > half:
            return "compact", ()
        return "order", ()
    reads = {unit: _reads(values, unit) for unit in _FORMS}
    if not values.cast(pl.String).str.contains("[0-9]{4}|[-/ ][A-Za-z]{3,9}[-/ ]").any():
        # Of 26-03-01 nobody knows which is the year.
        reads = dict.fromkeys(reads, 0)
    best = max(reads.values())
    if best <= half:
        return None, ()
    found = [unit for unit in reads if reads[unit] == best]
    return found[0], tuple(found) if len(found) > 1 else ()  # type: ignore[return-value]  # keys of _FORMS


def _reads(values: pl.Series, unit: TimeUnit | str) -> int:
    return _read(values, unit).count()


def _read(values: pl.Series, unit: TimeUnit | str) -> pl.Series:
    frame = values.alias("time").to_frame()
    return frame.select(_parse("time", values.dtype, unit)).to_series()  # type: ignore[arg-type]


def _day_or_month(
    where: str, table: pl.LazyFrame, name: str, rivals: Sequence[str], values: pl.Series
) -> TimeUnit:
    """Which of two forms the whole log has, where a sample has no day above 12."""
    reads = [_parse(name, values.dtype, unit).count().alias(unit) for unit in rivals]  # type: ignore[arg-type]
    counts = table.select(reads).collect(engine="streaming").row(0, named=True)
    best = max(counts.values())
    found = [unit for unit in rivals if counts[unit] == best]
    if "dmy" in found and values.str.contains(_POINTS).all():
        return "dmy"  # nobody writes the month first with points
    if len(found) > 1:
        raise TrainError(
            f"{where} has times such as {_shown(values[0])}, and none tells days from months; set "
            "time_unit=dmy (the day first) or time_unit=mdy (the month first) in --columns"
        )
    return found[0]  # type: ignore[return-value]  # a key of _FORMS


def _check_digits(where: str, values: pl.Series) -> None:
    if values.dtype != pl.String:
        return
    lost = values.str.contains(_LOST_DIGITS)
    if lost.mean() > 0.5:  # type: ignore[operator]  # a share
        raise TrainError(
            f"{where} has times such as {_shown(values.filter(lost)[0])}, which have lost their "
            "digits in a spreadsheet; export the log again with that column as text"
        )


def _check_unit(where: str, values: pl.Series, unit: TimeUnit, likely: TimeUnit | None) -> None:
    times = _read(values, unit)
    latest_ms = time.time_ns() // 1_000_000 + MAX_FUTURE_MS
    early = times.is_between(0, _YEAR_MS).fill_null(False)
    bad = (~times.is_between(0, latest_ms)).fill_null(True)
    wrong = early if early.sum() > bad.sum() else bad
    if wrong.sum() <= len(values) / 2:
        return
    value, at = values.filter(wrong)[0], times.filter(wrong)[0]
    read_as = "ms" if unit == "order" else unit
    found = f"{where} has times such as {_shown(value)}, which " + (
        f"cannot be read in {read_as}" if at is None else f"in {read_as} is {_moment(at)}"
    )
    if likely not in (None, unit, "order"):
        raise TrainError(
            f"{found}; they look like {likely}: set time_unit={likely} in --columns, or "
            "time_unit=order where they are no times"
        )
    if wrong is early:
        note = "clicks are put in this order, and nothing else is known of their times"
        log.warning("times_are_an_order", found=found, note=note)
    elif bad.all():
        raise TrainError(
            f"{found}; expected times since 1970 that are not in the future: set time_unit in "
            f"--columns to one of {', '.join(get_args(TimeUnit))}, name another column with "
            "time=NAME, or write the times as ISO 8601, such as 2026-09-21T14:13:20Z"
        )
    else:
        log.warning("times_not_read", found=found)


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _moment(timestamp_ms: int) -> str:
    try:
        at = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return "after the year 9999" if timestamp_ms > 0 else "before the year 1"
    return at.isoformat(" ", "seconds").removesuffix("+00:00")
