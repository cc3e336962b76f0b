"""Ids of a log as categories, the order of a log's rows, and a collected log as it was served.

A hundred million ids of 36 bytes are 5 GB of text, and 0.4 GB as Categorical columns. Logs share
the categories, so their columns can be compared and appended.
"""

import numpy as np
import polars as pl
from jaxtyping import Int, Int64, UInt32

from train.command import TrainError

SESSION_ID = pl.Categorical(pl.Categories("session_id", namespace="nextclick"))
ITEM_ID = pl.Categorical(pl.Categories("item_id", namespace="nextclick"))
VISITOR_ID = pl.Categorical(pl.Categories("visitor_id", namespace="nextclick"))
"""A category of its own, so that its memory is freed once the sessions are cut."""

KAFKA_COLUMNS = ("kafka_topic", "kafka_partition", "kafka_offset")
"""Where a click of a collected log was read."""
OWN_MS = "\0own_ms"
"""The time of a late click of a collected log as it was sent; no log has a column of this name."""
WATERMARK_MS = "\0watermark_ms"
"""The latest time of a good click before this one in its partition."""

NEVER_MS = np.iinfo(np.int64).max


def number_ids(log: pl.DataFrame) -> pl.DataFrame:
    """The log with categorical session_id and item_id."""
    names = {"session_id": SESSION_ID, "item_id": ITEM_ID}
    text = {name: dtype for name, dtype in names.items() if log.schema.get(name) == pl.String}
    return log.cast(text) if text else log  # type: ignore[arg-type]  # a dict of names is fine


def codes(names: pl.Series) -> UInt32[np.ndarray, "T"]:
    """The category number of every row."""
    return names.to_physical().to_numpy()


def n_names(names: pl.Series) -> int:
    """Number of distinct names in a categorical column."""
    code = codes(names)
    seen = np.zeros(int(code.max(initial=0)) + 1, dtype=bool)
    seen[code] = True
    return int(np.count_nonzero(seen))


def session_starts(clicks: pl.DataFrame) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "S"]]:
    """The first row of every session of an ordered log, and its time, which never decreases."""
    length = clicks["session_id"].rle().struct.field("len").to_numpy()
    start = np.cumsum(length, dtype=np.int64) - length
    return start, clicks["timestamp_ms"].to_numpy()[start]


def in_order(log: pl.DataFrame) -> pl.DataFrame:
    """The log by the sessions' first clicks, ties by name, then by time, ties as they are. The log
    itself if it is in this order already. session_id is categorical."""
    if log.is_empty():
        return log
    session_id, timestamp_ms = log["session_id"], log["timestamp_ms"].to_numpy()
    code = codes(session_id)
    first_ms = np.full(int(code.max()) + 1, NEVER_MS)
    np.minimum.at(first_ms, code, timestamp_ms)
    by_first = _by_first_click(session_id, first_ms)
    place = np.zeros(len(first_ms), dtype=np.uint32)
    place[by_first] = np.arange(len(by_first), dtype=np.uint32)
    session = place[code]
    del first_ms, by_first, place
    if _is_sorted(session, timestamp_ms):
        return log
    rows = _stable_order(session)
    if not _is_sorted(session[rows], timestamp_ms[rows]):
        # Rare: most logs are nearly in order of time.
        by_time = _stable_order(timestamp_ms)
        rows = by_time[_stable_order(session[by_time])]
    return log[pl.Series(rows)]


def as_served(
    log: pl.DataFrame, idle_timeout_s: int | None, allowed_lateness_s: int
) -> pl.DataFrame:
    """A collected log with the sessions and times that the stream gave its clicks.

    The stream takes clicks in the order of their offsets (docs/contract.md, "Late clicks"). A late
    click gets the time of its session's latest click, so a gap of 0 s; its own stands in OWN_MS. A
    session ends, for earlier clicks too, once the watermark has gone on since its last click by
    more than ``idle_timeout_s`` and ``allowed_lateness_s`` together: what follows is called
    session+2, session+3 and so on. Gaps longer than the timeout are left to ``cut_sessions``.
    The log itself where a session's rows are not in the order of their offsets, in which they were
    collected. With a timeout it needs the column WATERMARK_MS. Raises TrainError if a
    new name is another session's.
    """
    code, timestamp_ms = codes(log["session_id"]), log["timestamp_ms"].to_numpy(writable=True)
    rows = _stable_order(code)
    is_late = (np.diff(code[rows]) == 0) & (np.diff(timestamp_ms[rows]) < 0)
    # Few sessions have a late click, and looking at all of them takes ten times as long.
    has_late = np.zeros(int(code.max(initial=0)) + 1, dtype=bool)
    has_late[code[rows[1:]][is_late]] = True
    if idle_timeout_s is not None:
        behind_ms = log[WATERMARK_MS].to_numpy() - timestamp_ms
        has_late[code[behind_ms > 1000 * allowed_lateness_s]] = True
    to_mend = np.flatnonzero(has_late[code])
    if not len(to_mend):
        return log
    mended = _serve(log[pl.Series(to_mend)], idle_timeout_s, allowed_lateness_s)
    if mended is None:
        return log
    timestamp_ms[to_mend], part = mended
    log = log.with_columns(
        pl.col("timestamp_ms").alias(OWN_MS), pl.Series("timestamp_ms", timestamp_ms)
    )
    return _with_parts(log, to_mend[part > 1], part[part > 1])


def _serve(
    late: pl.DataFrame, idle_timeout_s: int | None, allowed_lateness_s: int
) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T"]] | None:
    """The times of the clicks, and which part of its session each is in, counted from 1. None where
    a session's clicks are not in the order of their offsets."""
    idle_ms = dead_ms = NEVER_MS
    if idle_timeout_s is not None:
        idle_ms, dead_ms = 1000 * idle_timeout_s, 1000 * (idle_timeout_s + allowed_lateness_s)
    # By partition too: where partitions were added, a session's older clicks may come later.
    last: dict[tuple[int, int], tuple[int, int, int]] = {}  # offset, time, watermark behind it
    parts: dict[int, int] = {}
    served = np.empty((2, len(late)), dtype=np.int64)
    rows = zip(
        codes(late["session_id"]).tolist(),
        *late.select("kafka_partition", "kafka_offset", "timestamp_ms"),
        late.get_column(WATERMARK_MS, default=late["timestamp_ms"]),
        strict=True,
    )
    for row, (session, partition, offset, at_ms, watermark_ms) in enumerate(rows):
        part = parts.setdefault(session, 1)
        seen_ms = max(watermark_ms, at_ms)
        if (before := last.get((session, partition))) is not None:
            last_offset, last_ms, last_seen_ms = before
            if offset <= last_offset:
                return None
            if watermark_ms - last_seen_ms > dead_ms and at_ms - last_ms <= idle_ms:
                part = parts[session] = part + 1
            else:
                at_ms = max(last_ms, at_ms)
        last[session, partition] = offset, at_ms, seen_ms
        served[:, row] = at_ms, part
    return served[0], served[1]


def _with_parts(
    log: pl.DataFrame, rows: Int64[np.ndarray, "P"], part: Int64[np.ndarray, "P"]
) -> pl.DataFrame:
    """The log with the sessions of these rows renamed by their part."""
    if not len(rows):
        return log
    old = log["session_id"].gather(rows).cast(pl.String)
    new = pl.select(pl.format("{}+{}", old, pl.Series(part)).cast(SESSION_ID)).to_series()
    if np.isin(codes(new), codes(log["session_id"])).any():
        raise TrainError(
            "ending sessions at the allowed lateness would create ids such as session+2 that other "
            "sessions already have; rename those first"
        )
    return log.with_columns(session_id=log["session_id"].scatter(rows, new))


def with_own_times(log: pl.DataFrame) -> pl.DataFrame:
    """The log with its clicks' own times, in the same order."""
    if OWN_MS not in log.columns:
        return log
    return log.with_columns(timestamp_ms=OWN_MS).drop(OWN_MS)


def _by_first_click(
    session_id: pl.Series, first_ms: Int64[np.ndarray, "codes"]
) -> Int64[np.ndarray, "S"]:
    """The codes of the log's sessions in order of their first clicks, ties by name."""
    present = np.flatnonzero(first_ms < NEVER_MS)
    order = present[np.argsort(first_ms[present])]
    same = np.diff(first_ms[order]) == 0
    tied = np.r_[False, same] | np.r_[same, False]
    if tied.any():
        # Comparing texts is slow, and few sessions begin in the same millisecond.
        is_tied = np.zeros(len(first_ms), dtype=bool)
        is_tied[order[tied]] = True
        names = session_id.filter(pl.Series(is_tied[codes(session_id)])).unique()
        ties = pl.DataFrame({"first_ms": first_ms[codes(names)], "name": names})
        order[tied] = codes(ties.sort("first_ms", "name")["name"])
    return order


def _stable_order(key: Int[np.ndarray, "T"]) -> UInt32[np.ndarray, "T"]:
    """The rows in order of their keys. Sorting by one key takes a third of the memory of two."""
    rows = pl.DataFrame({"key": key}).select(pl.arg_sort_by("key", maintain_order=True))
    return rows.to_series().to_numpy()


def _is_sorted(session: UInt32[np.ndarray, "T"], timestamp_ms: Int[np.ndarray, "T"]) -> bool:
    same = session[1:] == session[:-1]
    later = timestamp_ms[1:] >= timestamp_ms[:-1]
    return bool(((session[1:] > session[:-1]) | (same & later)).all())
