"""The ids of a log's clicks as text, and why a row is not a click."""

import time
from enum import StrEnum

import polars as pl

from stream.contract.click import MAX_FUTURE_MS, MAX_ID_BYTES
from train.data.text import MALFORMED

MAX_VISITOR_BYTES = 240  # leaves room for the "-k" that makes a visitor a session
SESSION, ITEM, TIME, REASON = "\0session", "\0item", "\0time", "\0reason"
"""Columns added to the log's own, which may have any name."""


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


def text_column(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column as text; null where a value is null, NaN or has none."""
    value = pl.col(name)
    if dtype.is_float():  # what pandas makes of whole numbers where one is missing
        value = value.fill_nan(None)
        whole = value.cast(pl.Int64, strict=False)
        return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
    return value.cast(pl.String, strict=False)


def why_bad(schema: pl.Schema, *, is_text: bool, of_visitors: bool) -> pl.Expr:
    """The reason why each row with the columns SESSION, ITEM and TIME is bad; null where it is
    good."""

    def bad_id(name: str, max_bytes: int) -> pl.Expr:
        return ~pl.col(name).str.len_bytes().is_between(1, max_bytes).fill_null(False)

    latest_ms = time.time_ns() // 1_000_000 + MAX_FUTURE_MS
    max_session_bytes = MAX_VISITOR_BYTES if of_visitors else MAX_ID_BYTES
    session, item = pl.col(SESSION), pl.col(ITEM)
    # Bytes that are not UTF-8 were read as U+FFFD.
    broken = pl.any_horizontal(pl.col(SESSION, ITEM).str.contains("\ufffd", literal=True))
    is_bad = {
        Reason.BAD_FIELD: pl.col(MALFORMED) if MALFORMED in schema else pl.lit(False),
        Reason.NOT_UTF8: broken if is_text else pl.lit(False),
        Reason.BAD_SESSION_ID: bad_id(SESSION, max_session_bytes) | session.str.starts_with("\0"),
        Reason.BAD_ITEM_ID: bad_id(ITEM, MAX_ID_BYTES) | item.str.contains(r"\p{Cc}"),
        Reason.BAD_TIMESTAMP: ~pl.col(TIME).is_between(0, latest_ms).fill_null(False),
    }
    first = [pl.when(bad).then(pl.lit(reason.value)) for reason, bad in is_bad.items()]
    return pl.coalesce(first)
