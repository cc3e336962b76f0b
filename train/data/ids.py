"""The ids of a log's clicks as text, words for none, and why a row is not a click."""

import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import polars as pl
import structlog

from stream.contract.click import MAX_FUTURE_MS, MAX_ID_BYTES
from train.data.text import MALFORMED

MAX_VISITOR_BYTES = 240  # leaves room for the "-k" that makes a visitor a session
SESSION, ITEM, TIME, REASON = "\0session", "\0item", "\0time", "\0reason"
"""Columns added to the log's own, which may have any name."""
NOTHING = frozenset(
    form
    for word in (
        *(
            "na",
            "n/a",
            "#n/a",
            "<na>",
            "nan",
            "NaN",
            "nat",
            "NaT",
            "null",
            "(null)",
            "none",
            "(none)",
            "\\n",
        ),
        *("(not set)", "undefined", "unknown", "-", ""),
    )
    for form in (word, word.upper(), word.capitalize(), word.title())
)
"""What tools write where a visitor or a session has no id: one visitor of that name would be many.
Numbers such as 0 and -1 may be somebody's."""
_WHOLE = r"^(?:-?[1-9]\d*|0)\.0+$"
"""A whole number that was a float or a decimal, as no id is written otherwise."""
_WITH_OR_WITHOUT = r"^(?:-?[1-9]\d*|0)(?:\.0+)?$"
_NAMES_AT_ONCE = 100_000
_UUID_BYTES = 16
_UUID_PARTS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))

log = structlog.get_logger()


class Reason(StrEnum):
    """Why a row of a log is not a click."""

    BAD_FIELD = "bad_field"
    """More fields than the header, or a quote that is not closed."""
    NOT_UTF8 = "not_utf8"
    NO_SESSION_ID = "no_session_id"
    """Missing, or a word for nothing such as NA."""
    BAD_SESSION_ID = "bad_session_id"
    """Longer than 256 bytes (a visitor: 240), or begins with NUL."""
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
    text = value.cast(pl.String, strict=False)
    if isinstance(dtype, pl.Decimal) and dtype.scale:  # as of a float: without zeros at its end
        return text.str.strip_chars_end("0").str.strip_chars_end(".")
    return text


def id_column(path: str | Path, table: pl.LazyFrame, name: str, dtype: pl.DataType) -> pl.Expr:
    """A column of ids as text, the same from a text file as from Parquet; null where there is none.

    Whole numbers that were written as floats or decimals, all of the column, are the ids of those
    numbers, and a warning says so; of a column of text ``written_as_float`` tells it. Bytes are
    text where all of the column are UTF-8, or else UUIDs.
    """
    value = pl.col(name)
    if dtype == pl.Binary:
        return _text_of_bytes(table, name)
    if dtype.is_float():
        value = value.fill_nan(None)
        is_whole, text = value % 1 == 0, text_column(name, dtype)
    elif dtype.is_decimal():
        is_whole, text = value.cast(pl.String).str.contains(_WHOLE), text_column(name, dtype)
    else:
        return text_column(name, dtype)
    filled = table.filter(value.is_not_null())
    # Most columns are known to be other ids by their first.
    for some in (filled.head(100), filled):
        found = some.select(is_whole.all().alias("all"), value.first().alias("first"))
        all_whole, first = found.collect(engine="streaming").row(0)
        if first is None or not all_whole:
            return value.cast(pl.String)
    _warn_of_whole(path, name, str(first), str(int(first)))
    return text


def written_as_float(ids: pl.Series) -> str | None:
    """One of the categorical ids that has a fraction of zeros, if all are whole numbers.

    Others may have none: pandas writes 1004.0 on a day on which some row has no id, else 1004.
    """
    found = None
    for piece in ids.unique().to_frame().iter_slices(_NAMES_AT_ONCE):
        names = piece.to_series().cast(pl.String)
        names = names.filter(~names.is_in(NOTHING))
        if not names.str.contains(_WITH_OR_WITHOUT).all():
            return None
        with_fraction = names.filter(names.str.contains(_WHOLE))
        if found is None and len(with_fraction):
            found = str(with_fraction.min())
    return found


def whole_number_column(path: str | Path, name: str, found: str) -> pl.Expr:
    """A column of text as the ids of its whole numbers, of which ``found`` is written as a float;
    a warning says so."""
    _warn_of_whole(path, name, found, found.partition(".")[0])
    text = pl.col(name).str.replace(r"\.0+$", "")
    return pl.when(~text.is_in(NOTHING)).then(text)  # what was NaN or missing among numbers


def _warn_of_whole(path: str | Path, name: str, found: str, read_as: str) -> None:
    log.warning(
        "ids_are_whole_numbers",
        clicks=str(path),
        column=name,
        found=found,
        read_as=read_as,
        note="the stream must send them without the fraction, too",
    )


def warn_of_nothing(
    path: str | Path, column: str, words: Mapping[str | None, int], kept_as: str | None = None
) -> None:
    """Say how often each word for nothing stands in a column, unless all are empty."""
    if not any(words):
        return
    counts = {word or "empty": n for word, n in sorted(words.items(), key=lambda w: -w[1])}
    log.warning(
        "words_for_nothing",
        clicks=str(path),
        column=column,
        found=", ".join(f"{word} {n}" for word, n in counts.items()),
        read_as=kept_as or "clicks without a session, which are left out",
    )


def nothing_among(ids: pl.Series) -> dict[str | None, int]:
    """How often each word for nothing is one of the categorical ids."""
    words = ids.unique().cast(pl.String)
    words = words.filter(words.is_in(NOTHING))
    if words.is_empty():
        return {}
    counts = ids.filter(ids.is_in(words.cast(ids.dtype))).value_counts()
    return dict(counts.cast({ids.name: pl.String}).iter_rows())


def _text_of_bytes(table: pl.LazyFrame, name: str) -> pl.Expr:
    value = pl.col(name)
    text = value.map_batches(_decode, return_dtype=pl.String, is_elementwise=True)
    checks = text.is_null().any() & (value.bin.size() == _UUID_BYTES).all()
    if not table.filter(value.is_not_null()).select(checks).collect(engine="streaming").item():
        return text
    digits = value.bin.encode("hex")
    return pl.concat_str([digits.str.slice(*part) for part in _UUID_PARTS], separator="-")


def _decode(values: pl.Series) -> pl.Series:
    """Bytes as text; null where they are not UTF-8."""
    try:
        return values.cast(pl.String)
    except pl.exceptions.ComputeError:
        texts = [None if v is None else v.decode(errors="replace") for v in values]
        decoded = pl.Series(values.name, texts, dtype=pl.String)
        return decoded.set(decoded.cast(pl.Binary) != values, None)


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
        Reason.NO_SESSION_ID: session.is_null() | session.is_in(NOTHING),
        Reason.BAD_SESSION_ID: bad_id(SESSION, max_session_bytes) | session.str.starts_with("\0"),
        Reason.BAD_ITEM_ID: bad_id(ITEM, MAX_ID_BYTES) | item.str.contains(r"\p{Cc}"),
        Reason.BAD_TIMESTAMP: ~pl.col(TIME).is_between(0, latest_ms).fill_null(False),
    }
    first = [pl.when(bad).then(pl.lit(reason.value)) for reason, bad in is_bad.items()]
    return pl.coalesce(first)
