"""The names of a log as numbers that know their text, and the one order that logs stand in.

A hundred million names of 36 bytes are 5 GB of text; as Categorical columns they are 0.4 GB and
each name is kept once. Logs share the numbering, so their columns can be compared and appended.
"""

import numpy as np
import polars as pl
from jaxtyping import Int, Int64, UInt32

SESSION_ID = pl.Categorical(pl.Categories("session_id", namespace="nextclick"))
ITEM_ID = pl.Categorical(pl.Categories("item_id", namespace="nextclick"))
VISITOR_ID = pl.Categorical(pl.Categories("visitor_id", namespace="nextclick"))
"""Names that are gone once their sessions are cut, apart so that their memory is freed then."""

KAFKA_COLUMNS = ("kafka_topic", "kafka_partition", "kafka_offset")
"""Where a click of a collected log stands."""
OWN_MS = "\0own_ms"
"""What a late click of a collected log says of its time; no log has a column of this name."""

NEVER_MS = np.iinfo(np.int64).max


def number_ids(log: pl.DataFrame) -> pl.DataFrame:
    """The log with categorical session_id and item_id; unchanged if they are."""
    names = {"session_id": SESSION_ID, "item_id": ITEM_ID}
    text = {name: dtype for name, dtype in names.items() if log.schema.get(name) == pl.String}
    return log.cast(text) if text else log  # type: ignore[arg-type]  # a dict of names is fine


def codes(names: pl.Series) -> UInt32[np.ndarray, "T"]:
    """The number behind every name of a categorical column."""
    return names.to_physical().to_numpy()


def n_names(names: pl.Series) -> int:
    """How many different names a categorical column holds."""
    code = codes(names)
    seen = np.zeros(int(code.max(initial=0)) + 1, dtype=bool)
    seen[code] = True
    return int(np.count_nonzero(seen))


def session_starts(
    clicks: pl.DataFrame,
) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "S"]]:
    """The first row of every session of a log in order, and its time, which never falls."""
    length = clicks.select(pl.col("session_id").rle().struct.field("len")).to_series().to_numpy()
    start = np.cumsum(length, dtype=np.int64) - length
    return start, clicks["timestamp_ms"].to_numpy()[start]


def in_order(log: pl.DataFrame) -> pl.DataFrame:
    """Sessions by their first click, ties by name; clicks of a session by time, ties as they come.

    The log itself if it stands so already. session_id is categorical.
    """
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
        # A topic is in order of time nearly everywhere; most logs never come here.
        by_time = _stable_order(timestamp_ms)
        rows = by_time[_stable_order(session[by_time])]
    return log[pl.Series(rows)]


def as_served(log: pl.DataFrame) -> pl.DataFrame:
    """A collected log with every late click at the time of its session's latest click before it.

    So the stream takes them (docs/contract.md, "Late clicks"): in the order of their offsets, as a
    gap of 0 s. If there are any, the clicks' own times stand in OWN_MS. The log itself where a
    session's rows are not in the order of their offsets, in which ``collect`` wrote them.
    """
    code, timestamp_ms = codes(log["session_id"]), log["timestamp_ms"].to_numpy(writable=True)
    rows = _stable_order(code)
    is_late = (np.diff(code[rows]) == 0) & (np.diff(timestamp_ms[rows]) < 0)
    # Few sessions have a late click, and looking at all of them takes ten times as long.
    has_late = np.zeros(int(code.max(initial=0)) + 1, dtype=bool)
    has_late[code[rows[1:]][is_late]] = True
    to_mend = has_late[code]
    # By partition too: where partitions were added, a session's older clicks may stand behind.
    key = ("session_id", "kafka_partition")
    mended = log.filter(pl.Series(to_mend)).select(
        pl.col("timestamp_ms").cum_max().over(key),
        ascends=(pl.col("kafka_offset").diff() > 0).over(key),
    )
    if mended.is_empty() or not mended["ascends"].all():
        return log
    timestamp_ms[to_mend] = mended["timestamp_ms"].to_numpy()
    return log.with_columns(
        pl.col("timestamp_ms").alias(OWN_MS), pl.Series("timestamp_ms", timestamp_ms)
    )


def with_own_times(log: pl.DataFrame) -> pl.DataFrame:
    """The log with the times that its clicks said, in the order in which it stands."""
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
        # Comparing texts is dear, and few sessions begin in the same millisecond.
        is_tied = np.zeros(len(first_ms), dtype=bool)
        is_tied[order[tied]] = True
        names = session_id.filter(pl.Series(is_tied[codes(session_id)])).unique()
        ties = pl.DataFrame({"first_ms": first_ms[codes(names)], "name": names})
        order[tied] = codes(ties.sort("first_ms", "name")["name"])
    return order


def _stable_order(key: Int[np.ndarray, "T"]) -> UInt32[np.ndarray, "T"]:
    """The rows in order of their keys. Sorting by one key takes a third of the memory of two."""
    return (
        pl.DataFrame({"key": key})
        .select(pl.arg_sort_by("key", maintain_order=True))
        .to_series()
        .to_numpy()
    )


def _is_sorted(session: UInt32[np.ndarray, "T"], timestamp_ms: Int[np.ndarray, "T"]) -> bool:
    same = session[1:] == session[:-1]
    later = timestamp_ms[1:] >= timestamp_ms[:-1]
    return bool(((session[1:] > session[:-1]) | (same & later)).all())
