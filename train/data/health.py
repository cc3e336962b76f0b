"""How a click log looks before anything is learnt from it: figures, and what seems to be wrong.

Each warning says what was found, from where on it is odd and why, and what to do. None of the
public logs that we use has one. Shares are of the log's good clicks, once its sessions are cut and
before any filter.
"""

import textwrap
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64, UInt32
from pydantic import Field

from stream.contract.click import EARLIEST_MS
from train.command import Settings
from train.data.filters import DAY_MS, LONGEST_SESSION
from train.data.ids import Reason
from train.data.order import codes

ENOUGH_CLICKS = 100
"""With fewer, one person's habit looks like a fault of the log."""
LARGE_SHARE = 0.01
"""Of the clicks, in one session or of one visitor. In the public logs the largest has .4 %."""
OUTSIZED = 10
"""Times the 99th percentile: in a small log alone 1 % is no sign of a robot."""
SMALL_CATALOGUE = 20
"""Items: one list would show them all."""
CLICKS_PER_ITEM = 50
"""At so few items and as many clicks on each, the column is rather a category or an event type."""
LARGE_ITEM = 0.5
MANY_REJECTED = 0.05
MANY_DUPLICATES = 0.05
"""A shop's double clicks and reloads reach 1 to 2 %; a log that was exported twice has 50 %."""
MANY_SINGLES = 0.9
"""Of the sessions; a shop's are 40 to 60 %. A session of one click has no next click."""
MANY_UNSHARED = 0.5
"""Of the clicks, on items that one session alone has: nothing is to be learnt about them."""
SHORTEST_SPAN_MS = 60_000
LONGEST_SPAN_MS = 20 * 366 * DAY_MS
LAST_DAYS = 7
"""So many of the newest days are shown."""
SOUND = "nothing looks wrong"
_ROWS_AT_ONCE = 4_000_000
_WIDTH = 100


class Finding(Settings):
    """Something that seems to be wrong with a log."""

    name: str
    found: str
    """What was found, in numbers."""
    limit: str
    """From where on that is odd, and why."""
    advice: str
    """What to do."""

    def __str__(self) -> str:
        return f"{self.name}: {self.found} ({self.limit}); {self.advice}"


class Largest(NamedTuple):
    """The one of its kind with the most clicks."""

    name: str
    clicks: int
    of: int
    """How many there are of its kind."""


class Health(Settings):
    """A log in figures."""

    records: int
    filtered: int
    """Records of event types that are not wanted."""
    filtered_types: dict[str, int] = Field(default={})
    """The most frequent of those types."""
    rejected: dict[str, int]
    """Bad records by reason."""
    clicks: int
    sessions: int
    items: int
    visitors: int | None
    """None where the log names its sessions itself."""
    lengths: dict[str, float]
    """Clicks of a session: median, p90, p99 and longest."""
    single_click_sessions: float
    """Share of the sessions; all others are shares of the clicks."""
    repeats: float
    """Share of the clicks with one before them in their session, on the same item."""
    top_percent: float
    """Clicks on the most clicked 1 % of the items."""
    top_10: float
    largest_session: float
    largest_visitor: float | None
    largest_item: float
    duplicates: float
    """Clicks with the same session, item and time as another one."""
    unshared: float
    """Clicks on items that only one session has."""
    first_timestamp_ms: int
    last_timestamp_ms: int
    is_clock: bool
    """Whether the times are dates; if not, an order."""
    clicks_by_hour: list[int]
    """Of the day, UTC; empty without a clock."""
    last_days: list[tuple[str, int, int]]
    """The newest days: the date, clicks, and items that were never clicked before."""
    findings: list[Finding]


def largest_of(names: pl.Series) -> Largest:
    """The most frequent value of a categorical column that is not empty."""
    code = codes(names)
    counts = np.bincount(code)
    most = int(counts.argmax())
    row = int((code == most).argmax())
    return Largest(str(names[row]), int(counts[most]), int(np.count_nonzero(counts)))


def examine(
    clicks: pl.DataFrame,
    *,
    filtered: int = 0,
    filtered_types: Mapping[str, int] | None = None,
    rejected: Mapping[Reason, int] | None = None,
    visitor: Largest | None = None,
) -> Health:
    """The health of a log as ``read_clicks`` returns it, not empty; ``visitor`` is the one with the
    most clicks, of a log of visitors. Takes a second for ten million clicks."""
    bad = {reason.value: count for reason, count in (rejected or {}).items()}
    session, item = codes(clicks["session_id"]), codes(clicks["item_id"])
    at_ms = clicks["timestamp_ms"].to_numpy()
    n = len(clicks)
    begins = np.r_[True, session[1:] != session[:-1]]
    lengths = np.diff(np.r_[np.flatnonzero(begins), n])
    same_item = item[1:] == item[:-1]
    support = np.bincount(item)
    by_support = np.sort(support[support > 0])[::-1]
    first_ms, last_ms = int(at_ms.min()), int(at_ms.max())
    is_clock = last_ms >= EARLIEST_MS
    largest, most = largest_of(clicks["session_id"]), largest_of(clicks["item_id"])
    quantiles = np.quantile(lengths, [0.5, 0.9, 0.99, 1], method="inverted_cdf")
    health = Health(
        records=n + filtered + sum(bad.values()),
        filtered=filtered,
        filtered_types=dict(filtered_types or {}),
        rejected=bad,
        clicks=n,
        sessions=len(lengths),
        items=len(by_support),
        visitors=None if visitor is None else visitor.of,
        lengths=dict(zip(("median", "p90", "p99", "longest"), quantiles.tolist(), strict=True)),
        single_click_sessions=float((lengths == 1).mean()),
        repeats=np.count_nonzero(same_item & ~begins[1:]) / max(n - len(lengths), 1),
        top_percent=float(by_support[: max(1, len(by_support) // 100)].sum()) / n,
        top_10=float(by_support[:10].sum()) / n,
        largest_session=largest.clicks / n,
        largest_visitor=None if visitor is None else visitor.clicks / n,
        largest_item=most.clicks / n,
        duplicates=_n_duplicates(begins, item, at_ms) / n,
        unshared=_n_unshared(session, item, support) / n,
        first_timestamp_ms=first_ms,
        last_timestamp_ms=last_ms,
        is_clock=is_clock,
        clicks_by_hour=_by_hour(at_ms) if is_clock else [],
        last_days=_last_days(item, at_ms, first_ms, last_ms) if is_clock else [],
        findings=[],
    )
    findings = [
        *_robots(health, lengths, largest, visitor),
        *_items_that_are_odd(health, clicks["item_id"], most),
        *_counts_that_are_odd(health),
        *_times_that_are_odd(health, at_ms),
    ]
    return health.model_copy(update={"findings": findings})


def describe(health: Health, name: str) -> str:
    """The log on one screen of text, warnings last."""
    lines = [name, *(f"{label:<24}{text}" for label, text in figures_of(health))]
    for finding in health.findings:
        lines += textwrap.wrap(
            f"! {finding}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(lines if health.findings else [*lines, SOUND])


def figures_of(health: Health) -> list[tuple[str, str]]:
    """What people read of the figures: labels, those of a part indented, and texts."""
    h, share = health, "{:.1%}".format
    rejected = ", ".join(f"{reason} {n:,}" for reason, n in h.rejected.items())
    lengths = ", ".join(f"{which} {n:,.0f}" for which, n in h.lengths.items())
    return [
        ("records", f"{h.records:,}"),
        ("  read", f"{h.clicks:,}"),
        ("  filtered", _filtered(h)),
        ("  rejected", rejected or "0"),
        ("sessions", f"{h.sessions:,}; {share(h.single_click_sessions)} have one click"),
        *([] if h.visitors is None else [("visitors", f"{h.visitors:,}")]),
        ("clicks of a session", lengths),
        ("repeats", f"{share(h.repeats)} of the next clicks are on the item before"),
        ("items", f"{h.items:,}"),
        ("  most clicked", f"1 % have {share(h.top_percent)} of the clicks, ten {share(h.top_10)}"),
        ("  of one session alone", f"{share(h.unshared)} of the clicks"),
        ("largest session", share(h.largest_session)),
        *([] if h.largest_visitor is None else [("largest visitor", share(h.largest_visitor))]),
        ("largest item", share(h.largest_item)),
        ("duplicates", f"{share(h.duplicates)} (same session, item and time)"),
        ("time", _period(h)),
        *_hours(h),
        *(
            (f"  {day}", f"{clicks:,} clicks, {new:,} new items")
            for day, clicks, new in h.last_days
        ),
    ]


def _filtered(h: Health) -> str:
    if not h.filtered:
        return "0"
    types = [f"{name} {n:,}" for name, n in h.filtered_types.items()]
    others = h.filtered - sum(h.filtered_types.values())
    shown = ", ".join([*types, *[f"others {others:,}"] * (others > 0)])
    return f"{h.filtered:,} (event types that are not wanted: {shown})"


def _robots(
    h: Health, lengths: Int64[np.ndarray, "S"], session: Largest, visitor: Largest | None
) -> Iterator[Finding]:
    of_person = f"over {LARGE_SHARE:.0%}, and {OUTSIZED} times the 99th percentile of the sessions"
    if h.lengths["longest"] > LONGEST_SESSION:
        long = lengths[lengths > LONGEST_SESSION]
        yield Finding(
            name="robot_session",
            found=f"sessions of more than {LONGEST_SESSION} clicks: {len(long):,}, with "
            f"{long.sum():,} of the {h.clicks:,} clicks; {session.name!r} has {session.clicks:,}",
            limit="no person makes so many in one visit",
            advice="fit leaves such sessions out: if they are people's, cut them with "
            "--idle-timeout-s, or keep them with --filters max_session_length=0",
        )
    elif _is_outsized(h, session):
        yield Finding(
            name="robot_session",
            found=f"session {session.name!r} has {session.clicks:,} of {h.clicks:,} clicks",
            limit=of_person,
            advice=f"--filters max_session_length={session.clicks - 1} leaves it out of a training",
        )
    if visitor is not None and _is_outsized(h, visitor):
        yield Finding(
            name="robot_visitor",
            found=f"visitor {visitor.name!r} has {visitor.clicks:,} of {h.clicks:,} clicks",
            limit=f"{of_person}: a robot, or a word for no visitor",
            advice="leave its rows out of the log",
        )


def _is_outsized(h: Health, largest: Largest) -> bool:
    return (
        largest.clicks >= ENOUGH_CLICKS
        and largest.clicks > LARGE_SHARE * h.clicks
        and largest.clicks > OUTSIZED * h.lengths["p99"]
    )


def _items_that_are_odd(h: Health, item_id: pl.Series, most: Largest) -> Iterator[Finding]:
    if h.clicks < ENOUGH_CLICKS:
        return
    ids = item_id.unique().cast(pl.String).sort()
    if h.items <= SMALL_CATALOGUE and h.clicks >= CLICKS_PER_ITEM * h.items:
        yield Finding(
            name="few_items",
            found=f"{h.clicks:,} clicks on {h.items:,} items, such as {', '.join(ids[:3])}",
            limit=f"at most {SMALL_CATALOGUE} with {CLICKS_PER_ITEM} clicks each: one list has all",
            advice="look whether it is the items' column: --columns item=NAME",
        )
    elif h.largest_item > LARGE_ITEM:
        yield Finding(
            name="one_item",
            found=f"item {most.name!r} has {h.largest_item:.0%} of the clicks",
            limit="over half: a page that all pass, or a word for no item",
            advice="leave its rows out of the log if nobody would recommend it",
        )
    if h.unshared > MANY_UNSHARED:
        yield Finding(
            name="unshared_items",
            found=f"{h.unshared:.1%} of the clicks are on items that no other session has",
            limit=f"over {MANY_UNSHARED:.0%}: sessions then say nothing about each other",
            advice="look whether it is the items' column, without a session or a time in its "
            "values: --columns item=NAME",
        )
    # Ids that people take for one, and the stream does not.
    bare = ids.str.strip_chars()
    if n_padded := int((bare != ids).sum()):
        yield Finding(
            name="padded_ids",
            found=f"{n_padded:,} items begin or end with blanks, such as "
            f"{ids.filter(bare != ids)[0]!r}",
            limit="any: without them it is another item",
            advice="take the blanks away in the log and in the clicks topic",
        )
    numbers = ids.filter(ids.str.contains(r"^\d+$")).to_frame("id")
    numbers = numbers.with_columns(number=pl.col("id").str.strip_chars_start("0"))
    twice = numbers.filter(pl.col("number").is_duplicated()).sort("number", "id")
    if len(twice):
        yield Finding(
            name="lost_zeros",
            found=f"{len(twice):,} items differ by leading zeros alone, such as "
            f"{twice['id'][0]!r} and {twice['id'][1]!r}",
            limit="any: they are two items",
            advice="write ids as text in the log and in the clicks topic",
        )


def _counts_that_are_odd(h: Health) -> Iterator[Finding]:
    if h.clicks < ENOUGH_CLICKS:
        return
    if sum(h.rejected.values()) > MANY_REJECTED * h.records:
        found = ", ".join(f"{reason} {n:,}" for reason, n in h.rejected.items())
        yield Finding(
            name="many_rejected",
            found=f"of {h.records:,} records, rejected are {found}",
            limit=f"over {MANY_REJECTED:.0%}: more than slips",
            advice="look at the file of rejected records",
        )
    if h.duplicates > MANY_DUPLICATES:
        yield Finding(
            name="duplicates",
            found=f"{h.duplicates:.1%} of the clicks have session, item and time of another one",
            limit=f"over {MANY_DUPLICATES:.0%}: double clicks and reloads are fewer",
            advice="look whether a part was exported twice; --filters drop_repeats=true keeps one "
            "of neighbours",
        )
    if h.single_click_sessions > MANY_SINGLES:
        yield Finding(
            name="single_clicks",
            found=f"{h.single_click_sessions:.1%} of the sessions have one click",
            limit=f"over {MANY_SINGLES:.0%}: they have no next click to learn from",
            advice="look whether it is the session's column: --columns session=NAME, or "
            "visitor=NAME with --idle-timeout-s",
        )


def _times_that_are_odd(h: Health, at_ms: Int64[np.ndarray, "T"]) -> Iterator[Finding]:
    if h.clicks < ENOUGH_CLICKS:
        return
    span_ms = h.last_timestamp_ms - h.first_timestamp_ms
    advice = "look at the unit: --columns time_unit=s (or ms, us, ns, iso)"
    if h.is_clock and h.first_timestamp_ms < EARLIEST_MS:
        n_before = sum(np.count_nonzero(block < EARLIEST_MS) for block in _blocks(at_ms))
        yield Finding(
            name="mixed_times",
            found=f"{n_before:,} of {h.clicks:,} clicks are before 2000, the others are not",
            limit="any: the stream refuses them",
            advice="look whether parts of the log have another unit",
        )
    elif h.is_clock and span_ms > LONGEST_SPAN_MS:
        yield Finding(
            name="long_span",
            found=f"the clicks span {span_ms / DAY_MS / 365.25:.0f} years",
            limit="over 20: no click log is kept that long",
            advice=advice,
        )
    elif span_ms < SHORTEST_SPAN_MS:
        yield Finding(
            name="short_span",
            found=f"{h.clicks:,} clicks within {span_ms / 1000:g} s",
            limit="under a minute: seconds that are read as milliseconds look so",
            advice=advice,
        )
    elif h.is_clock and all(
        (block % DAY_MS == at_ms[0] % DAY_MS).all() for block in _blocks(at_ms)
    ):
        yield Finding(
            name="dates_alone",
            found="all clicks are at the same time of day",
            limit="dates alone: the order of the clicks within a day is that of the file",
            advice="name a column with the time of day; else use no hour, gap or --idle-timeout-s",
        )


def _n_duplicates(
    begins: Bool[np.ndarray, "T"], item: UInt32[np.ndarray, "T"], at_ms: Int64[np.ndarray, "T"]
) -> int:
    """A session's clicks of one time are neighbours, so only such runs are looked at."""
    new_time = begins.copy()
    new_time[1:] |= at_ms[1:] != at_ms[:-1]
    in_run = ~new_time
    in_run[:-1] |= in_run[1:]
    run = np.cumsum(new_time, dtype=np.uint32)[in_run]
    clicks = pl.DataFrame({"run": run, "item": item[in_run]})
    return len(clicks) - clicks.n_unique() if len(clicks) else 0


def _n_unshared(
    session: UInt32[np.ndarray, "T"],
    item: UInt32[np.ndarray, "T"],
    support: Int64[np.ndarray, "codes"],
) -> int:
    """Clicks on items whose first and last session are the same; a session's rows are neighbours,
    and of equal indices the last one is assigned."""
    first, last = (np.zeros(len(support), dtype=session.dtype) for _ in range(2))
    last[item] = session
    first[item[::-1]] = session[::-1]
    return int(support[first == last].sum())


def _blocks(at_ms: Int64[np.ndarray, "T"]) -> Iterator[Int64[np.ndarray, "block"]]:
    """Rows at a time: of a hundred million each intermediate would be 800 MB."""
    for row in range(0, len(at_ms), _ROWS_AT_ONCE):
        yield at_ms[row : row + _ROWS_AT_ONCE]


def _by_hour(at_ms: Int64[np.ndarray, "T"]) -> list[int]:
    hour_ms = DAY_MS // 24
    counts = sum(np.bincount(block // hour_ms % 24, minlength=24) for block in _blocks(at_ms))
    return [int(count) for count in np.asarray(counts)]


def _last_days(
    item: UInt32[np.ndarray, "T"], at_ms: Int64[np.ndarray, "T"], first_ms: int, last_ms: int
) -> list[tuple[str, int, int]]:
    first_day, last_day = first_ms // DAY_MS, last_ms // DAY_MS
    n_days = last_day - first_day + 1
    first_seen = np.full(int(item.max()) + 1, n_days, dtype=np.int32)
    clicks = np.zeros(n_days, dtype=np.int64)
    for row, block in enumerate(_blocks(at_ms)):
        day = (block // DAY_MS - first_day).astype(np.int32)
        clicks += np.bincount(day, minlength=n_days)
        np.minimum.at(first_seen, item[row * _ROWS_AT_ONCE :][: len(block)], day)
    new = np.bincount(first_seen, minlength=n_days + 1)
    return [
        (_date((first_day + day) * DAY_MS), int(clicks[day]), int(new[day]))
        for day in range(max(0, n_days - LAST_DAYS), n_days)
    ]


def _period(h: Health) -> str:
    if not h.is_clock:
        return f"an order, from {h.first_timestamp_ms:,} to {h.last_timestamp_ms:,} ms: no clock"
    days = (h.last_timestamp_ms - h.first_timestamp_ms) / DAY_MS
    return f"{_minute(h.first_timestamp_ms)} to {_minute(h.last_timestamp_ms)} UTC, {days:.1f} days"


def _hours(h: Health) -> Iterator[tuple[str, str]]:
    if h.is_clock:
        hours = np.array(h.clicks_by_hour)
        high, low = int(hours.argmax()), int(hours.argmin())
        yield (
            "  by hour",
            f"most at {high} h UTC ({hours[high] / h.clicks:.1%}), "
            f"fewest at {low} h ({hours[low] / h.clicks:.1%})",
        )


def _date(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


def _minute(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
