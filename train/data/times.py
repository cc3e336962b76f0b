"""The times of a log's clicks."""

from pathlib import Path

import polars as pl
import structlog

EPOCH_SECONDS = (1_000_000_000, 4_000_000_000)
"""2001 to 2096."""

log = structlog.get_logger()


def parse_time(name: str, dtype: pl.DataType, unit: str) -> pl.Expr:
    """The times of a column, int64 milliseconds; null where one cannot be read in the unit."""
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


def warn_of_seconds(path: str | Path, timestamp_ms: pl.Series, column: str) -> None:
    """Say so where times that were read as milliseconds look like seconds. Only a warning, since
    the numbers may be an order rather than times."""
    earliest, latest = timestamp_ms.min(), timestamp_ms.max()
    if EPOCH_SECONDS[0] <= earliest and latest <= EPOCH_SECONDS[1]:  # type: ignore[operator]  # integers
        log.warning(
            "times_look_like_seconds",
            clicks=str(path),
            column=column,
            found=earliest,
            read_as="milliseconds of January 1970; set time_unit=s if they are seconds",
        )
