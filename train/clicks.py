"""Click logs from disk: read, check, cut, filter, split, write.

A log in memory is a frame with the columns session_id and item_id (text), timestamp_ms (int64)
and the log's further columns as they came (a text file's are text). Sessions stand in order of
their first click, ties by name; clicks of a session in order of time, ties as in the file.
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import polars as pl
import structlog
from pydantic import BaseModel, ConfigDict, PositiveInt

from train.rows import ClickLogError, Columns, Reason, read_rows

__all__ = [
    "ClickLogError",
    "Columns",
    "Filtered",
    "Filters",
    "Log",
    "Reason",
    "Split",
    "cut_sessions",
    "filter_clicks",
    "read_clicks",
    "split_by_time",
    "write_clicks",
]

DAY_MS = 86_400_000

log = structlog.get_logger()


class Filters(BaseModel):
    """Which clicks are worth learning from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_item_support: PositiveInt = 1
    """Items with fewer clicks are left out."""
    min_session_length: PositiveInt = 2
    """Sessions with fewer clicks are left out."""
    drop_repeats: bool = False
    """Keep one click of a run of clicks on the same item."""


class Log(NamedTuple):
    """A log's good clicks, and what became of the bad rows."""

    clicks: pl.DataFrame
    rejected: dict[Reason, int]
    rejected_path: Path | None
    """Where the bad rows were written; None if there were none."""


class Filtered(NamedTuple):
    """The clicks that passed, and how many did not."""

    clicks: pl.DataFrame
    rare_item_clicks: int
    short_session_clicks: int
    repeat_clicks: int


class Split(NamedTuple):
    """Two logs, every session whole in one of them; each test session begins after training's."""

    train: pl.DataFrame
    test: pl.DataFrame


def read_clicks(
    path: Path,
    columns: Columns | None = None,
    *,
    idle_timeout_s: int | None = None,
    rejected_path: Path | None = None,
) -> Log:
    """The clicks of a .parquet, .csv or .tsv log (text also .gz), default columns: the wire's.

    Bad rows go to ``rejected_path`` (default: the log's name + ``.rejected.csv``) with their
    row number and reason; a warning counts them. Sessions are cut at gaps longer than
    ``idle_timeout_s``; a log of visitors needs it. Raises ClickLogError for a log that is
    unreadable, lacks a column or has no good click.
    """
    columns = columns or Columns()
    if columns.visitor and idle_timeout_s is None:
        raise ClickLogError(
            f"{path}: sessions of the visitors in {columns.visitor!r} need an idle timeout"
        )
    rows = read_rows(path, columns)
    rejected = {
        Reason(name): count
        for name, count in rows.bad["reason"].value_counts(sort=True).iter_rows()
    }
    if rejected:
        rejected_path = rejected_path or path.with_name(path.name + ".rejected.csv")
        _write_rejected(rows.bad, rejected_path)
        log.warning("rows_rejected", clicks=str(path), rejected=str(rejected_path), **rejected)
        if rows.good.is_empty():
            counts = ", ".join(f"{name} {count}" for name, count in rejected.items())
            raise ClickLogError(f"{path} has no good click ({counts}), see {rejected_path}")
    clicks = _in_order(rows.good)
    if idle_timeout_s is not None:
        clicks = cut_sessions(clicks, idle_timeout_s, number_all=columns.visitor is not None)
    return Log(clicks, rejected, rejected_path if rejected else None)


def cut_sessions(
    clicks: pl.DataFrame, idle_timeout_s: int, *, number_all: bool = False
) -> pl.DataFrame:
    """The log with a new session after every gap longer than ``idle_timeout_s``.

    A session that is cut becomes session-1, session-2 and so on; one that is not keeps its
    name, unless ``number_all``. Raises ClickLogError if a new name is another session's.
    """
    same = pl.col("session_id") == pl.col("session_id").shift()
    cut = same & (pl.col("timestamp_ms").diff() > idle_timeout_s * 1000)
    cuts = clicks.select(cut=cut.fill_null(False)).to_series()
    if not (number_all or cuts.any()):
        return clicks
    session = clicks["session_id"].rle_id()
    part = pl.col("part") - pl.col("part").first().over(session) + 1
    parts = clicks.select("session_id", part=cuts.cum_sum()).with_columns(part)
    renamed = (pl.col("part").last().over(session) > 1) | number_all
    name = pl.when(renamed).then(pl.format("{}-{}", "session_id", "part")).otherwise("session_id")
    named = clicks.with_columns(parts.select(session_id=name).to_series())
    if named["session_id"].n_unique() != parts.n_unique():
        raise ClickLogError(
            "cutting sessions at idle gaps makes names like session-2 that other sessions "
            "already have; rename those first"
        )
    return _in_order(named)


def filter_clicks(clicks: pl.DataFrame, filters: Filters) -> Filtered:
    """The part of the log that passes every filter, found by repeating them.

    A dropped item shortens sessions and a dropped session takes support from items, so one
    round is not enough; filtering the result again changes nothing.
    """
    left = clicks.select(
        row=pl.int_range(pl.len()),
        session=pl.col("session_id").rle_id(),
        item=pl.col("item_id").cast(pl.Categorical).to_physical(),
    )
    repeat = (
        (pl.col("item") == pl.col("item").shift())
        & (pl.col("session") == pl.col("session").shift())
    ).fill_null(False)
    keeps = {
        "repeat": ~repeat if filters.drop_repeats else pl.lit(True),
        "rare": pl.len().over("item") >= filters.min_item_support,
        "short": pl.len().over("session") >= filters.min_session_length,
    }
    dropped = dict.fromkeys(keeps, 0)
    before = -1
    while before != len(left):
        before = len(left)
        for name, keep in keeps.items():
            passed = left.filter(keep)
            dropped[name] += len(left) - len(passed)
            left = passed
    return Filtered(
        clicks=clicks[left["row"]],
        rare_item_clicks=dropped["rare"],
        short_session_clicks=dropped["short"],
        repeat_clicks=dropped["repeat"],
    )


def split_by_time(clicks: pl.DataFrame, fraction: float = 0.1, days: int | None = None) -> Split:
    """The log without its newest sessions, and those: the last ``fraction``, or ``days``.

    A session's time is that of its first click; with ``days`` the test sessions are those that
    begin less than so many days before the log's last click. Test clicks on items that
    training never saw stay in: build_sessions drops and counts them, a replay sends them.
    Raises ClickLogError if one side would be empty.
    """
    session = clicks["session_id"].rle_id()
    n_sessions = clicks["session_id"].n_unique()
    if days is None:
        n_test = round(n_sessions * fraction)
        in_test = session >= n_sessions - n_test
    else:
        at = pl.col("timestamp_ms")
        begins_late = at.first().over(session) > at.max() - days * DAY_MS
        in_test = clicks.select(begins_late).to_series()
    split = Split(clicks.filter(~in_test), clicks.filter(in_test))
    if split.train.is_empty() or split.test.is_empty():
        part = f"the last {fraction:g} of the sessions" if days is None else f"the last {days} days"
        found = "no session" if split.test.is_empty() else "every session"
        raise ClickLogError(
            f"{part} of this log hold {found} of {n_sessions}; both sides need some"
        )
    return split


def write_clicks(clicks: pl.DataFrame, path: Path) -> None:
    """Write a log that ``read_clicks`` reads back: .parquet, .csv or .csv.gz."""
    name = path.name.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        clicks.write_parquet(path)
    elif name.endswith(".csv"):
        clicks.write_csv(path)
    elif name.endswith(".csv.gz"):
        with gzip.open(path, "wb", compresslevel=6) as file:
            file.write(clicks.write_csv().encode())
    else:
        raise ClickLogError(f"{path}: click logs are written as .parquet, .csv or .csv.gz")


def _in_order(clicks: pl.DataFrame) -> pl.DataFrame:
    return clicks.sort(
        pl.col("timestamp_ms").min().over("session_id"),
        "session_id",
        "timestamp_ms",
        maintain_order=True,
    )


def _write_rejected(bad: pl.DataFrame, path: Path) -> None:
    try:
        bad.write_csv(path)
    except OSError as error:
        raise ClickLogError(
            f"{path} cannot be written ({error.strerror}); name another file for the bad rows"
        ) from error
