"""Click logs from disk: read, check, cut, split, write.

A log in memory is a frame with the columns session_id and item_id (categorical, see order.py, or
text), timestamp_ms (int64) and the log's further columns unchanged (a text file's are text).
Sessions are in order of their first click, ties by name; the clicks of a session in order of time,
ties as in the file, or in a collected log in the order in which the stream saw them.

Each row of a log is a click, or bad for a reason from a closed list. The limits are those of the
clicks topic (docs/contract.md), so that whatever a model was trained on can also be served.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import structlog

from train.command import TrainError
from train.data.columns import WIRE_COLUMNS, Columns, check_columns, find_columns, found_pairs
from train.data.filters import DAY_MS, EventTypes, weigh_events
from train.data.filters import Filters as Filters
from train.data.filters import filter_clicks as filter_clicks
from train.data.health import Largest, largest_of
from train.data.ids import (
    ITEM,
    REASON,
    SESSION,
    TIME,
    Reason,
    id_column,
    nothing_among,
    text_column,
    warn_of_nothing,
    whole_number_column,
    why_bad,
    written_as_float,
)
from train.data.order import (
    ITEM_ID,
    KAFKA_COLUMNS,
    SESSION_ID,
    VISITOR_ID,
    WATERMARK_MS,
    as_served,
    in_order,
    n_names,
    session_starts,
    with_own_times,
)
from train.data.rejected import ADVICE, SHOWN_OF_BAD_LOG, write_rejected
from train.data.rejected import rejected_path as default_path
from train.data.source import FILE, open_log, reading
from train.data.text import MALFORMED
from train.data.times import TimeUnit, check_moments, find_unit, parse_time

_TYPES_SHOWN = 5
NAMES_AT_ONCE = 1_000_000
_IS_GOOD = "\0is_good"

log = structlog.get_logger()


class Log(NamedTuple):
    """A log's good clicks, and its bad rows."""

    clicks: pl.DataFrame
    rejected: dict[Reason, int]
    rejected_path: Path | None
    """Where the bad rows were written; None without any."""
    idle_timeout_s: int | None
    """The gap at which its sessions were cut, given or found; None where they were not."""
    n_records: int
    """Of the log's files. Each is a click, rejected or filtered."""
    n_filtered: int
    """Rows of types of event that do not advance a session, whether good otherwise or not."""
    filtered_types: dict[str, int]
    """The most frequent of those types, with their rows; a row without a type is of (none)."""
    visitor: Largest | None
    """The one with the most clicks; None where the log names its sessions itself."""


class Split(NamedTuple):
    """Two logs that share no session; each test session begins after those of training."""

    train: pl.DataFrame
    test: pl.DataFrame


class Rows(NamedTuple):
    """A log's rows under the names of the wire: the clicks, and the bad rows."""

    good: pl.DataFrame
    """session_id (or the visitor's id) and item_id, categorical, timestamp_ms, and further columns;
    in the order of the file."""
    n_bad: dict[Reason, int]
    """Bad rows by reason, the most frequent first."""
    bad: Callable[[], pl.LazyFrame]
    """All rows as they stand in the log, with their REASON; collecting it reads the log again."""
    unwanted: list[str] | None
    """Of a collected log, kafka_partition and kafka_offset as far as ``keep`` does not name them;
    None of any other log."""
    columns: Columns
    """As they were found."""
    found_out: dict[str, str]
    """What else was found out of the log."""
    doubts: list[str]
    """What of that may have to be said otherwise."""
    n_records: int
    n_filtered: int
    """Bad rows of types of event that do not advance a session."""
    filtered_types: dict[str, int]
    """The most frequent of those types, with all their rows."""


def read_clicks(
    path: str | Path,
    columns: Columns | None = None,
    *,
    idle_timeout_s: int | None = None,
    allowed_lateness_s: int = 600,
    rejected_path: Path | None = None,
    keep: Sequence[str] | None = None,
    event_types: EventTypes | None = None,
) -> Log:
    """The clicks of a log, which is anything that ``source.py`` opens.

    Bad rows go to ``rejected_path`` (default: the log's name + ``.rejected.csv``, for a URL in
    the working directory) with their line and reason, and a warning counts them; of a log without
    a good click, the first hundred of each reason. ``keep`` names the further columns to read, of
    those the log has; None reads them all. Clicks are weighed
    by ``event_types``, and those of types that do not advance a session are dropped. Then sessions
    are cut at gaps longer than ``idle_timeout_s``, those of visitors always; those of a
    collected log also where the stream ended them, by its watermark and ``allowed_lateness_s``.
    Raises TrainError for a log that is unreadable, lacks a column or has no good click.
    """
    given, given_idle_s = columns or Columns(), idle_timeout_s
    rows = read_rows(path, given, keep, event_types)
    rejected = rejected_path or default_path(path)
    columns, said = rows.columns, dict[str, object](rows.found_out)
    idle_timeout_s = columns.idle_timeout_s(given_idle_s)
    if found := found_pairs(given, columns):
        said["columns"] = found
        if columns.time == WIRE_COLUMNS[2] and "time_unit" in found:
            said["note"] = "the stream takes timestamp_ms in milliseconds alone"
    if idle_timeout_s != given_idle_s:
        said["idle_timeout_s"] = idle_timeout_s
    if said:
        log.info("log_format_found", clicks=str(path), **said)
    for doubt in rows.doubts:
        log.warning("log_format_doubtful", clicks=str(path), found=doubt)
    if rows.n_bad:
        is_all_bad = rows.good.is_empty()
        with reading(path):
            write_rejected(rows.bad(), rejected, reasons=list(rows.n_bad) if is_all_bad else None)
        advice = "; ".join(ADVICE[reason] for reason in rows.n_bad if reason in ADVICE)
        log.warning(
            "rows_rejected",
            clicks=str(path),
            rejected=str(rejected),
            **rows.n_bad,
            **({"advice": advice} if advice else {}),
        )
        if is_all_bad:
            counts = ", ".join(f"{name} {count}" for name, count in rows.n_bad.items())
            most = max(rows.n_bad.values())
            shown = f" with the first {SHOWN_OF_BAD_LOG} of each" if most > SHOWN_OF_BAD_LOG else ""
            raise TrainError(f"{path} has no good click ({counts}), see {rejected}{shown}")
    else:
        rejected.unlink(missing_ok=True)  # of a run before the log was mended
    n_bad, clicks, unwanted = rows.n_bad, rows.good, rows.unwanted
    n_records, n_filtered, filtered_types = rows.n_records, rows.n_filtered, rows.filtered_types
    del rows
    check_moments(path, columns.time, clicks["timestamp_ms"])
    if unwanted is not None and idle_timeout_s is not None:
        # The partition's latest time before each click: of all types of event.
        latest = pl.col("timestamp_ms").cum_max().shift(1, fill_value=0)
        by_offset = latest.over("kafka_partition", order_by="kafka_offset")
        clicks = clicks.with_columns(by_offset.alias(WATERMARK_MS))
    if event_types is not None:
        n_before = len(clicks)
        clicks = weigh_events(clicks, event_types)
        n_filtered += n_before - len(clicks)
    visitor = largest_of(clicks["session_id"]) if columns.visitor else None
    if unwanted is not None:
        clicks = as_served(clicks, idle_timeout_s, allowed_lateness_s)
        clicks = clicks.drop(*unwanted, WATERMARK_MS, strict=False)
    clicks = in_order(clicks)
    if idle_timeout_s is not None:
        clicks = cut_sessions(clicks, idle_timeout_s, number_all=columns.visitor is not None)
    # Of the law that no record is lost; a difference would be a mistake of ours.
    assert len(clicks) + n_filtered + sum(n_bad.values()) == n_records
    where = rejected if n_bad else None
    return Log(clicks, n_bad, where, idle_timeout_s, n_records, n_filtered, filtered_types, visitor)


def read_rows(
    path: str | Path,
    columns: Columns,
    keep: Sequence[str] | None = None,
    event_types: EventTypes | None = None,
) -> Rows:
    """The rows of a log, as ``read_clicks`` reads it. Raises TrainError."""
    paths = [name for name in keep or () if "." in name]
    source = open_log(path, columns.form(), (*columns.wanted(), *paths))
    with reading(path):
        schema = source.table.collect_schema()
        columns = find_columns(path, dict.fromkeys([*schema, *source.unusable]), columns)
        check_columns(path, source, schema, columns)
        further = [name for name in schema if name not in (*columns.sources(), MALFORMED, FILE)]
        left_out = [name for name in WIRE_COLUMNS if name in further]
        if keep is not None and (reserved := [name for name in left_out if name in keep]):
            raise TrainError(f"{path}: column {reserved[0]!r} has a reserved name; rename it")
        context = [
            name for name in further if (keep is None or name in keep) and name not in left_out
        ]
        is_collected = columns.sources() == WIRE_COLUMNS and all(
            name in further and schema[name].is_integer() for name in KAFKA_COLUMNS[1:]
        )
        offset = [name for name in KAFKA_COLUMNS[1:] if is_collected and name not in context]
        table = source.table
        if source.is_small:  # each look at it would read the text again
            kinds = {columns.event_type, *([event_types.column] if event_types else [])}
            needed = {*columns.sources(), *context, *offset, *kinds, MALFORMED, FILE}
            table = table.select(sorted(needed & {*schema})).collect(engine="streaming").lazy()
        # The stream has taken a collected log's times as milliseconds, whatever they are.
        unit: TimeUnit | None = "ms"
        if not is_collected:
            unit = find_unit(path, table, columns.times()[0], columns.time_unit)
        columns = columns.model_copy(update={"time_unit": unit})
        session, item, *times = columns.sources()
        # Those of a collected log are what the stream knows them by, whatever they look like.
        parsed = {
            name: text_column(column, schema[column])
            if is_collected
            else id_column(path, table, column, schema[column])
            for name, column in ((SESSION, session), (ITEM, item))
        }
        parsed[TIME] = parse_time(times, schema, unit)
        reason = why_bad(schema, is_text=source.is_text, of_visitors=columns.visitor is not None)
        is_wanted = _is_wanted(event_types, schema)

        def judge(table: pl.LazyFrame) -> pl.LazyFrame:
            # Of a broken record nobody knows the type.
            is_broken = reason.is_in([Reason.BAD_FIELD.value, Reason.NOT_UTF8.value])
            rejected = pl.when(is_wanted | is_broken).then(reason)
            return table.with_columns(**parsed).with_columns(
                rejected.alias(REASON), (reason.is_null()).alias(_IS_GOOD)
            )

        session_type = VISITOR_ID if columns.visitor else SESSION_ID
        # What is bad would stay among the categories.
        good = pl.when(pl.col(_IS_GOOD))

        def read() -> pl.DataFrame:
            return (
                judge(table)
                .select(
                    good.then(SESSION).cast(session_type).alias("session_id"),
                    good.then(ITEM).cast(ITEM_ID).alias("item_id"),
                    pl.col(TIME).alias("timestamp_ms"),
                    *context,
                    *offset,
                    _IS_GOOD,
                    pl.col(REASON).cast(pl.Enum([reason.value for reason in Reason])),
                )
                .collect(engine="streaming")
            )

        rows = read()
        floats = {
            (name, column): first
            for name, column, ids in ((SESSION, session, "session_id"), (ITEM, item, "item_id"))
            if schema[column] == pl.String and not is_collected
            if (first := written_as_float(rows[ids])) is not None
        }
        if floats:
            del rows  # and with it the memory of such ids
            for (name, column), first in floats.items():
                parsed[name] = whole_number_column(path, column, first)
            rows = read()
        if rows.is_empty():
            raise TrainError(f"{path} is empty: it has a header but no clicks")
        # A record that was lost on the way here is a mistake of ours.
        assert len(rows) == source.n_records(), (len(rows), source.n_records())
        reasons = rows[REASON].drop_nulls().value_counts(sort=True)
        n_bad = {Reason(name): n for name, n in reasons.iter_rows()}
        filtered_types = {}
        if event_types is not None and event_types.column in rows.columns:
            filtered = rows.lazy().filter(pl.col(REASON).is_null() & ~is_wanted)
            kind = text_column(event_types.column, schema[event_types.column]).fill_null("(none)")
            counts = filtered.group_by(kind.alias("type")).len()
            most = counts.sort("len", "type", descending=[True, False]).head(_TYPES_SHOWN)
            filtered_types = dict(most.collect(engine="streaming").iter_rows())
        clicks = rows if rows[_IS_GOOD].all() else rows.filter(_IS_GOOD)
        clicks = clicks.drop(_IS_GOOD, REASON).rechunk()
        if Reason.NO_SESSION_ID in n_bad:
            lack = judge(table).filter(pl.col(REASON) == Reason.NO_SESSION_ID)
            words = lack.group_by(SESSION).len().collect(engine="streaming")
            warn_of_nothing(path, session, dict(words.iter_rows()))
        if items := nothing_among(clicks["item_id"]):
            warn_of_nothing(path, item, items, "items of these names, as the stream reads them")
        return Rows(
            clicks,
            n_bad,
            lambda: judge(source.with_records()),
            offset if is_collected else None,
            columns,
            source.found_out() | ({"left_out": ",".join(left_out)} if left_out else {}),
            source.doubts(),
            n_records=len(rows),
            n_filtered=len(rows) - len(clicks) - sum(n_bad.values()),
            filtered_types=filtered_types,
        )


def _is_wanted(event_types: EventTypes | None, schema: pl.Schema) -> pl.Expr:
    """Whether a row's type of event advances a session; one that does not is no bad click."""
    if event_types is None or event_types.inputs is None or event_types.column not in schema:
        return pl.lit(True)
    kind = text_column(event_types.column, schema[event_types.column])
    return kind.is_in(sorted(event_types.inputs)).fill_null(False)


def cut_sessions(
    clicks: pl.DataFrame, idle_timeout_s: int, *, number_all: bool = False
) -> pl.DataFrame:
    """The log with a new session after every gap longer than ``idle_timeout_s``.

    A session that is cut becomes session-1, session-2 and so on; others keep their names, unless
    ``number_all``. Raises TrainError if a new name is another session's.
    """
    if clicks.is_empty():
        return clicks
    session = clicks["session_id"].rle_id().to_numpy()
    same = session[1:] == session[:-1]
    gap = np.diff(clicks["timestamp_ms"].to_numpy()) > idle_timeout_s * 1000
    if not (number_all or (same & gap).any()):
        return clicks
    begins = np.r_[True, ~same | gap]
    start = np.flatnonzero(begins)
    whole = session[start]  # the session that a new one is part of
    n_parts = np.bincount(whole)
    part = np.arange(len(start)) - (np.cumsum(n_parts) - n_parts)[whole] + 1
    renamed = (n_parts > 1)[whole] | number_all
    names = clicks["session_id"].gather(start)
    parts = pl.DataFrame({"name": names, "part": part, "renamed": renamed})
    del whole, part, renamed, start
    whole_name = pl.col("name").cast(pl.String)
    name = pl.when("renamed").then(pl.format("{}-{}", whole_name, "part")).otherwise(whole_name)
    # In pieces: the texts of twenty million names would be 4 GB at once.
    pieces = [piece.select(name.cast(SESSION_ID)) for piece in parts.iter_slices(NAMES_AT_ONCE)]
    names = pl.concat(pieces).to_series().rechunk()
    del parts, pieces
    if n_names(names) != len(names):
        raise TrainError(
            "cutting sessions at idle gaps would create ids such as session-2 that other sessions "
            "already have; rename those first"
        )
    row = np.cumsum(begins, dtype=np.uint32) - 1
    return in_order(clicks.with_columns(session_id=names.gather(pl.Series(row))))


def split_by_time(clicks: pl.DataFrame, fraction: float = 0.1, days: int | None = None) -> Split:
    """The log without its newest sessions, and those: the last ``fraction``, or ``days``.

    With ``days`` the test sessions are those whose first click is less than so many days before the
    log's last click. Test clicks on items that are not in training stay: build_sessions drops and
    counts them, a replay sends them. Raises TrainError if one side would be empty.
    """
    start, first_ms = session_starts(clicks)
    if (n_sessions := len(start)) < 2:
        sessions = "1 session" if n_sessions else "0 sessions"
        raise TrainError(f"a log of {sessions} cannot be split by time: each side needs a session")
    if days is None:
        n_train = n_sessions - round(n_sessions * fraction)
    else:
        latest_ms = clicks["timestamp_ms"].to_numpy().max()
        n_train = int(np.searchsorted(first_ms, latest_ms - days * DAY_MS, "right"))
    if not 0 < n_train < n_sessions:
        part = f"{fraction:g} of the sessions" if days is None else f"{days} days"
        found = "none" if n_train else "all"
        raise TrainError(
            f"the last {part} contain {found} of the log's {n_sessions} sessions; "
            "each side needs a session"
        )
    first_row = int(start[n_train])
    # A copy, since a view of these few clicks would keep the log in memory.
    return Split(clicks[:first_row], clicks[np.arange(first_row, len(clicks))])


def write_clicks(clicks: pl.DataFrame, path: Path) -> None:
    """Write a log that ``read_clicks`` reads back: .parquet, .csv or .csv.gz."""
    clicks = with_own_times(clicks).with_columns(pl.selectors.categorical().cast(pl.String))
    name = path.name.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        clicks.write_parquet(path)
    elif name.endswith(".csv"):
        clicks.write_csv(path)
    elif name.endswith(".csv.gz"):
        clicks.write_csv(path, compression="gzip", compression_level=6)
    else:
        raise TrainError(f"{path}: expected a name ending in .parquet, .csv or .csv.gz")
