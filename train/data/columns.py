"""Which columns of a log are a click."""

import codecs
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import field_validator, model_validator

from train.command import Settings, TrainError
from train.data.dialect import Form
from train.data.source import FILE, Source
from train.data.text import MALFORMED

WIRE_COLUMNS = ("session_id", "item_id", "timestamp_ms")
_PRESETS: dict[str, dict[str, str]] = {
    "wire": {"session": "session_id", "item": "item_id", "time": "timestamp_ms", "time_unit": "ms"},
    "public": {"session": "SessionId", "item": "ItemId", "time": "Time", "time_unit": "s"},
}

_SEPARATORS = {"comma": ",", "tab": "\t", "\\t": "\t", "semicolon": ";", "pipe": "|"}


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

    separator: str | None = None
    """Character between the columns of a text file, or comma, tab, semicolon, pipe. Unset: found
    out, as are the next three."""
    encoding: str | None = None
    """Of a text file, such as cp1252 or utf-16."""
    quoting: Literal["rfc", "backslash", "none"] | None = None
    """How a quoted field holds a quote: doubled, behind a backslash; or there are no quotes."""
    header: bool | None = None
    """Whether a text file's first line names its columns. Without one they are called 1, 2, 3."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**_PRESETS.get(given.get("preset", "wire"), {}), **given}

    @field_validator("separator")
    @classmethod
    def _check_separator(cls, separator: str | None) -> str | None:
        separator = _SEPARATORS.get(separator or "", separator)
        if separator is not None and (
            len(separator) != 1 or not separator.isascii() or separator in '\r\n"\\\0'
        ):
            raise ValueError("expected one ASCII character, or comma, tab, semicolon, pipe")
        return separator

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        if encoding is None:
            return None
        try:
            " ".encode(encoding)  # not all codecs are of text
            return codecs.lookup(encoding).name
        except LookupError:
            raise ValueError("expected an encoding that Python knows, such as cp1252") from None

    def form(self) -> Form:
        """What is said about a text file."""
        return Form(self.separator, self.encoding, self.quoting, self.header)

    def sources(self) -> tuple[str, str, str]:
        """The columns of session (or visitor), item and time."""
        return (self.visitor or self.session, self.item, self.time)


def check_columns(path: str | Path, source: Source, schema: pl.Schema, columns: Columns) -> None:
    """Raise TrainError unless the log has the columns, with types that a click can be read from."""
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
