"""What the item processor has counted, from the topics alone.

The reference is arithmetic over the clicks that were accepted, without the code that counts:
which events each click teaches, and what is left of each of them at the time that a record names.
"""

import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.faults.traffic import Stored
from stream.contract.items import ItemRecord, decode_events, head_of, partition_of
from stream.contract.messages import Outcome
from stream.live.rules import BACKWARD, DISTANCES, Rules
from stream.position import POSITION_KEY

ACCEPTED = {Outcome.MODEL, Outcome.LIVE, Outcome.FALLBACK, Outcome.UNKNOWN_ITEM}
TOLERANCE = 1e-5
"""Of an item's total. Weights go through float32 in every batch, which in runs of a minute makes
less than 1e-6; the least event of a thousand is 2e-5."""


class Taught(NamedTuple):
    """One event of an item: ``other`` came so many clicks after it, or (below 0) before; 0: it was
    clicked."""

    other: str
    step: int
    at_ms: int


@dataclass(frozen=True)
class Counted:
    """All zeros where every event of an accepted click is counted once.

    over_counted, under_counted: events that items count too often; that none counts. wrong_counts:
    items whose decayed counts are not those of their events, or whose published records are not a
    history of them.
    """

    over_counted: int
    under_counted: int
    wrong_counts: int
    told: str


class Topics(NamedTuple):
    """All records of the topics: what came in, what workers published of it, what items count of
    that, and what was published of their counts."""

    clicks: Sequence[Stored]
    events: Sequence[Stored]
    changelog: Sequence[Stored]
    view: Sequence[Stored]


def counted(topics: Topics, rules: Rules, outcomes: Mapping[tuple[int, int], str]) -> Counted:
    """Compare the items' counts with what the clicks have taught.

    outcomes: how each was answered, by partition and offset. Topics have as many partitions as
    clicks are in. No session may have ended, and no item been forgotten: both take longer than a
    run.
    """
    n_partitions = len({record.partition for record in topics.clicks})
    taught = what_clicks_teach(topics.clicks, outcomes)
    expected = {(partition_of(item, n_partitions), item): of for item, of in taught.items()}
    found = {
        (record.partition, (record.key or b"").decode()): record.value or b""
        for record in topics.changelog
        if record.key != POSITION_KEY
    }
    n_counted = {name: head_of(raw).n_counted for name, raw in found.items()}
    over = under = wrong = 0
    for name in expected.keys() | found.keys():
        more = n_counted.get(name, 0) - len(expected.get(name, ()))
        over += max(0, more)
        under += max(0, -more)
        wrong += more != 0 or not _is_right(found[name], expected[name], rules)
    history: dict[tuple[int, str], list[int]] = {name: [] for name in expected}
    for record in topics.view:
        name = record.partition, (record.key or b"").decode()
        history.setdefault(name, []).append(head_of(record.value or b"").n_counted)
    for name, published in history.items():
        # Each record goes beyond the one before it, and none beyond the state.
        wrong += not published or sorted({*published}) != published
        wrong += max(published, default=0) > n_counted.get(name, 0)
    n_published = sum(len(decode_events(record.value or b"").item) for record in topics.events)
    told = (
        f"clicks teach {sum(map(len, taught.values()))} events, {n_published} were published, "
        f"items count {sum(n_counted.values())}"
    )
    return Counted(over, under, wrong, told)


def what_clicks_teach(
    clicks: Sequence[Stored], outcomes: Mapping[tuple[int, int], str]
) -> dict[str, list[Taught]]:
    """Return by item the events that accepted clicks teach, each partition's in its order."""
    taught: defaultdict[str, list[Taught]] = defaultdict(list)
    trails: defaultdict[tuple[int, str], deque[str]] = defaultdict(
        lambda: deque(maxlen=len(DISTANCES))
    )
    for record in clicks:
        if outcomes.get((record.partition, record.offset)) not in ACCEPTED:
            continue
        click = json.loads(record.value or b"")
        item, at_ms = click["item_id"], click["timestamp_ms"]
        trail = trails[record.partition, click["session_id"]]
        taught[item].append(Taught(item, 0, at_ms))
        for step, former in enumerate(trail, start=1):
            if former != item:
                taught[former].append(Taught(item, step, at_ms))
                taught[item].append(Taught(former, -step, at_ms))
        trail.appendleft(item)
    return taught


def _is_right(raw: bytes, events: Sequence[Taught], rules: Rules) -> bool:
    """Whether an item's record has the decayed counts of these events, and of no others."""
    head, totals, successors, weights = ItemRecord.decode(raw)
    at_ms = np.array([event.at_ms for event in events], np.float64)
    steps = np.array([event.step for event in events])
    if head.as_of_ms != at_ms.max():
        return False
    clicks = 2.0 ** ((at_ms[steps == 0] - head.as_of_ms) / rules.popularity_half_life_ms)
    worth = np.array(DISTANCES)[np.abs(steps) - 1] * np.where(steps < 0, BACKWARD, 1.0)
    worth[steps == 0] = 0.0
    others = [event.other for event in events]
    of_step = {other for other, step in zip(others, steps, strict=True) if step}
    columns = np.frombuffer(weights, "<f4").reshape(len(totals), len(successors))
    differences = [abs(clicks.sum() - head.clicks) / max(1.0, head.clicks)]
    for of_rate, total, half_life_ms in zip(columns, totals, rules.half_lives_ms, strict=True):
        grown = worth * 2.0 ** ((at_ms - head.landmark_ms) / half_life_ms)
        differences.append(abs(grown.sum() - total) / max(1.0, total))
        for successor, weight in zip(successors, of_rate.tolist(), strict=True):
            is_it = np.array([other == successor for other in others])
            differences.append(abs(grown[is_it].sum() - weight) / max(1.0, total))
    return {*successors} == of_step and max(differences) < TOLERANCE
