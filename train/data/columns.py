"""Which columns of a log are a click."""

import codecs
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import field_validator, model_validator

from train.command import Settings, TrainError
from train.data.dialect import Form
from train.data.source import Source
from train.data.times import TimeUnit

WIRE_COLUMNS = ("session_id", "item_id", "timestamp_ms")
IDLE_TIMEOUT_S = 1800
"""Of a log of visitors for which none is given: half an hour, as web analytics has it."""
KNOWN_COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "session": (
        ("session_id", "user_session", "session"),
        ("session_key", "session_uuid", "domain_sessionid", "ga_session_id", "visit_id", "sid"),
    ),
    "visitor": (
        (
            "visitor_id",
            "visitor",
            "anonymous_id",
            "user_pseudo_id",
            "domain_userid",
            "full_visitor_id",
        ),
        ("user_id", "user", "customer_id", "customer", "member_id"),
        ("cookie_id", "device_id", "client_id", "uid"),
    ),
    "item": (
        ("item_id", "item"),
        ("product_id", "article_id", "track_id"),
        ("product", "article", "sku", "asin", "news_id", "song_id", "movie_id", "content_id"),
    ),
    "time": (
        ("timestamp_ms", "timestamp", "event_time", "event_timestamp"),
        ("time", "datetime", "ts", "click_time", "derived_tstamp"),
        ("eventdate+timeframe", "collector_tstamp", "created_at", "unix_time"),
        ("date", "event_date", "day", "t_dat"),
    ),
    "event_type": (
        ("event_type", "event", "event_name"),
        ("action_type", "action", "behavior_type", "behavior", "behaviour", "interaction"),
        ("type",),
    ),
}
"""What logs call the columns of a click. Of the names in one row none is better than another; those
of a later row count where the log has none of an earlier one."""
_OF_TIME = re.compile(
    r"(?i:(?:^|[ _.-])(?:at|time|date|datetime|ts|timestamp|when)(?:$|[ _-]))"
    r"|^(?:date|time)(?=[A-Z])|(?<=[a-z])(?:At|Time|Date|DateTime|Ts|TS|Timestamp)$|(?i:timestamp|datetime)"
)
"""What the names of other columns of times have in them: visited_at, dateAdded, TS."""
_EVENT_TYPE = "event_type"
_PRESETS: dict[str, dict[str, str]] = {
    "wire": {"session": "session_id", "item": "item_id", "time": "timestamp_ms"},
    "public": {"session": "SessionId", "item": "ItemId", "time": "Time", "time_unit": "s"},
}
_NO_FILES = ("utf-7", "unicode-escape", "raw-unicode-escape", "idna", "punycode")
"""Codecs that write text in ASCII, or names: what they read may be no text."""
_SEPARATORS = {"comma": ",", "tab": "\t", "\\t": "\t", "semicolon": ";", "pipe": "|"}


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
    event_type: str = _EVENT_TYPE
    """Column of the type of event, where types are asked for."""
    time_unit: TimeUnit | None = None
    """s, ms, us, ns: numbers since 1970 (seconds to the millisecond). days: since 30 December 1899,
    as spreadsheets count. iso: the year first, as in ISO 8601; compact: that without separators;
    dmy, mdy: the day or the month first; all in UTC where they have no zone. order: numbers that
    are no times; in such a log cut no sessions and keep no last days. Unset: found out from the
    values."""

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
            name = codecs.lookup(encoding).name
            if name in _NO_FILES:
                raise LookupError(name)
            return name
        except LookupError:
            raise ValueError("expected an encoding that Python knows, such as cp1252") from None

    def form(self) -> Form:
        """What is said about a text file."""
        return Form(self.separator, self.encoding, self.quoting, self.header)

    def idle_timeout_s(self, given: int | None) -> int | None:
        """The gap to cut sessions at: what is given, and for a log of visitors always one."""
        return IDLE_TIMEOUT_S if given is None and self.visitor else given

    def times(self) -> tuple[str, ...]:
        """The columns of the time."""
        return tuple(self.time.split("+"))

    def sources(self) -> tuple[str, ...]:
        """The columns of session (or visitor), item and time."""
        return (self.visitor or self.session, self.item, *self.times())

    def wanted(self) -> tuple[str, ...]:
        """Columns that the log should have, unless others are found in their place."""
        named = () if self.event_type == _EVENT_TYPE else (self.event_type,)
        return (*self.sources(), *named)


def find_columns(path: str | Path, names: Collection[str], columns: Columns) -> Columns:
    """The columns as a log with these names has them: in place of a preset's column that the log
    lacks, the one that is known for it. A session's column is preferred to a visitor's.

    Raises TrainError, with the likely columns and the flag, where a column is missing and not
    exactly one is known for it.
    """
    found: dict[str, str] = {}
    preset = _PRESETS[columns.preset] | {"event_type": _EVENT_TYPE}
    if columns.visitor is None and not _has(names, columns.session):
        if columns.session != preset["session"]:
            raise _missing(path, names, columns.session, "session", "visitor")
        # A visitor's column is no answer where two columns may be the session's.
        role = "session" if likely_columns(names, "session") else "visitor"
        if (one := _only(names, role)) is None:
            raise _missing(path, names, columns.session, "session", "visitor")
        found[role] = one
    elif columns.visitor is not None and not _has(names, columns.visitor):
        raise _missing(path, names, columns.visitor, "visitor")
    for role in ("item", "time", "event_type"):
        name = getattr(columns, role)
        if _has(names, name):
            continue
        one = _only(names, role) if name == preset[role] else None
        if one is not None:
            found[role] = one
        elif role != "event_type":  # which is missed where event types are asked for
            raise _missing(path, names, name, role)
    return columns.model_copy(update=found)


def likely_columns(names: Iterable[str], role: str) -> list[list[str]]:
    """The log's columns that are known for a role, equally good ones together, the best first."""
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    rows = [
        [
            "+".join(plain[_plain(part)] for part in known.split("+"))
            for known in row
            if all(_plain(part) in plain for part in known.split("+"))
        ]
        for row in KNOWN_COLUMNS[role]
    ]
    return [row for row in rows if row]


def found_pairs(given: Columns, found: Columns) -> str:
    """What was found out, as ``--columns`` takes it, but for milliseconds and what is an order."""
    pairs = {name: value for name, value in found if value not in (None, "ms", "order")}
    return ",".join(
        f"{name}={pairs[name]}" for name in pairs if pairs[name] != getattr(given, name)
    )


def _plain(name: str) -> str:
    return re.sub(r"^#|[ _-]", "", name.casefold())


def _has(names: Collection[str], name: str) -> bool:
    return name in names or ("+" in name and set(name.split("+")) <= set(names))


def _only(names: Iterable[str], role: str) -> str | None:
    """The best column known for the role, if there is one that is better than all others."""
    best, *_ = likely_columns(names, role) or [[]]
    return best[0] if len(best) == 1 else None


def _missing(path: str | Path, names: Iterable[str], name: str, *roles: str) -> TrainError:
    own = [column for column in names if not column.startswith("\0")]
    likely = [f"{r}={c}" for r in roles for row in likely_columns(own, r) for c in row]
    if "time" in roles and not likely:
        likely = [f"time={column}" for column in own if _OF_TIME.search(column)]
    advice = " or ".join(likely or [f"{role}=NAME" for role in roles])
    return TrainError(
        f"{path} has no column {name!r}; its columns are {', '.join(own)}: set {advice} in "
        "--columns"
    )


def check_columns(path: str | Path, source: Source, schema: pl.Schema, columns: Columns) -> None:
    """Raise TrainError unless the log's columns have types that a click can be read from."""
    for name in columns.sources():
        if name in source.unusable:
            raise TrainError(f"{path}: column {name!r} {source.unusable[name]}")
        dtype, is_time = schema[name], name in columns.times()
        if dtype.is_nested() or (is_time and dtype in (pl.Binary, pl.Time, pl.Duration)):
            what = "a time" if is_time else "an id"
            advice = ": name a path into it, or write a row for each of its elements"
            raise TrainError(
                f"{path}: column {name!r} has type {dtype}, which cannot be {what}"
                f"{advice * dtype.is_nested()}"
            )
