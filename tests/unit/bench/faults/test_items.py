"""What the verdict makes of the item processor's topics, whole and damaged, without a broker."""

import json
from collections.abc import Callable

import pytest

from bench.faults.items import Counted, Topics, counted
from bench.faults.traffic import LOG_BEGIN_MS, Stored, session_load
from stream.contract.items import ItemHead, ItemRecord, head_of
from stream.contract.messages import Target, item_events
from stream.contract.records import Message, Record
from stream.items import ItemPlanner
from stream.live.counts import steps
from stream.live.rules import Rules
from stream.position import BadClickLimit, Position
from stream.table import States

RULES = Rules(3_600_000, 225_000, excludes_seen=False)
N_PARTITIONS = 4
Outcomes = dict[tuple[int, int], str]


def stored(partition: int, offset: int, key: bytes | None, value: bytes | None) -> Stored:
    record = Record(partition, offset, LOG_BEGIN_MS + 10**9, key, value)
    return Stored(partition, offset, record.timestamp_ms, key, value, {}, record)


def published(messages: list[Message]) -> list[Stored]:
    offsets = [0] * N_PARTITIONS
    found = []
    for message in messages:
        partition = message.partition
        assert partition is not None
        found.append(stored(partition, offsets[partition], message.key, message.value))
        offsets[partition] += 1
    return found


def some_clicks() -> tuple[list[Stored], Outcomes]:
    """Clicks in all partitions, and how they were answered: every ninth is a duplicate."""
    clicks = [
        stored(n % N_PARTITIONS, n // N_PARTITIONS, *of_click)
        for n, of_click in enumerate(session_load(400, n_sessions=20, n_items=10))
    ]
    kinds = ("model", "live", "fallback", "unknown_item")
    outcomes = {
        (r.partition, r.offset): "duplicate" if n % 9 == 0 else kinds[n % 4]
        for n, r in enumerate(clicks)
    }
    return clicks, outcomes


def events_of(clicks: list[Stored], outcomes: Outcomes) -> list[Stored]:
    """What workers publish of them, click by click."""
    trails: dict[tuple[int, str], list[str]] = {}
    messages = []
    for record in clicks:
        if outcomes[record.partition, record.offset] == "duplicate":
            continue
        fields = json.loads(record.value or b"")
        item, at_ms = fields["item_id"], fields["timestamp_ms"]
        trail = trails.setdefault((record.partition, fields["session_id"]), [])
        events = [(item, item, 0, at_ms)] + [(a, b, s, at_ms) for a, b, s in steps(trail, item)]
        messages += item_events(events, N_PARTITIONS)
        trail.append(item)
    return published(messages)


def count(events: list[Stored], batch: int = 16) -> tuple[list[Stored], list[Stored]]:
    """The changelog and the view that the item processor makes of them."""
    planner, states = ItemPlanner(RULES, "events", BadClickLimit(10, 0.9)), States()
    for partition in range(N_PARTITIONS):
        table = planner.new_partition()
        table.position = Position(0, "t")
        states.own({partition: table})
    changelog: list[Message] = []
    view: list[Message] = []
    for partition in range(N_PARTITIONS):
        records = [r.record for r in events if r.partition == partition]
        for begin in range(0, len(records), batch):
            positions = {partition: states.partitions[partition].position}
            plan = planner.plan({partition: records[begin : begin + batch]}, positions, states.get)
            planner.advance(plan)
            states.apply(plan.transaction)
            changes = plan.transaction.changelog[partition].items()
            changelog += [Message(key, raw, partition=partition) for key, raw in changes]
            of_view = plan.transaction.messages[Target.ITEM_VIEW][partition]
            view += [Message(m.key, m.value, partition=partition) for m in of_view]
    return published(changelog), published(view)


def judged(damage: Callable[[list[Stored]], list[Stored]] = list) -> Counted:
    """The verdict where the item processor gets these events in place of what was published."""
    clicks, outcomes = some_clicks()
    events = events_of(clicks, outcomes)
    changelog, view = count(damage(events))
    return counted(Topics(clicks, events, changelog, view), RULES, outcomes)


def test_whatever_the_batches_every_event_is_counted_once() -> None:
    found = judged()
    assert (found.over_counted, found.under_counted, found.wrong_counts) == (0, 0, 0)
    n_events = found.told.split()[2]
    assert found.told.count(n_events) == 3


def test_a_record_that_is_missing_or_counted_twice_is_found() -> None:
    without = judged(lambda events: events[:50] + events[51:])
    assert without.under_counted > 0 and not without.over_counted and without.wrong_counts > 0

    def twice(events: list[Stored]) -> list[Stored]:
        again = events[50]
        behind = stored(again.partition, 10**6, again.key, again.value)
        return [*events, behind]

    double = judged(twice)
    assert double.over_counted == without.under_counted and not double.under_counted


def test_one_lost_and_another_one_doubled_is_found_though_the_numbers_agree() -> None:
    clicks, outcomes = some_clicks()
    events = events_of(clicks, outcomes)
    changelog, view = count(events)
    last = {(r.partition, r.key): n for n, r in enumerate(changelog)}
    at = next(iter(last.values()))
    record = ItemRecord.decode(changelog[at].value or b"")
    other = record._replace(totals=[1.0001 * total for total in record.totals]).encode()
    changelog[at] = stored(changelog[at].partition, at, changelog[at].key, other)
    found = counted(Topics(clicks, events, changelog, view), RULES, outcomes)
    assert (found.over_counted, found.under_counted, found.wrong_counts) == (0, 0, 1)


@pytest.mark.parametrize("damage", ["none", "again", "ahead"])
def test_a_view_that_is_no_history_of_the_counts_is_found(damage: str) -> None:
    clicks, outcomes = some_clicks()
    events = events_of(clicks, outcomes)
    changelog, view = count(events)
    item = view[-1]
    head = head_of(item.value or b"")
    record = ItemRecord.decode(item.value or b"")
    if damage == "none":
        view = [r for r in view if r.key != item.key]
    elif damage == "again":
        view.append(item)
    else:
        ahead = ItemHead(*head)._replace(n_counted=10**6)
        view.append(stored(item.partition, 10**6, item.key, record._replace(head=ahead).encode()))
    found = counted(Topics(clicks, events, changelog, view), RULES, outcomes)
    assert (found.over_counted, found.under_counted, found.wrong_counts) == (0, 0, 1)


def test_an_item_that_no_click_has_taught_is_found() -> None:
    clicks, outcomes = some_clicks()
    events = events_of(clicks, outcomes)
    stray = item_events([("stranger", "stranger", 0, LOG_BEGIN_MS)], N_PARTITIONS)
    behind = [stored(m.partition or 0, 10**6, m.key, m.value) for m in stray]
    changelog, view = count([*events, *behind])
    found = counted(Topics(clicks, events, changelog, view), RULES, outcomes)
    assert found.over_counted == 1
