"""What the item processor makes of item events."""

import msgspec
import numpy as np
import pytest

from stream.contract.decoders import BadClick
from stream.contract.items import (
    EVENTS_FORMAT,
    ItemEvents,
    ItemRecord,
    encode_events,
    head_of,
)
from stream.contract.messages import Target
from stream.contract.records import Record
from stream.errors import NewerFormatError, StreamError
from stream.items import EventsParser, ItemPlan, ItemPlanner, PartitionItems
from stream.live.counts import ItemCounts, steps, transitions
from stream.live.rules import VIEW_BURST, Rules
from stream.position import BadClickLimit, Position
from stream.table import States

RULES = Rules(3_600_000, 225_000, excludes_seen=False)
BEGIN_MS = 1_700_000_000_000
Event = tuple[str, str, int, int]


def record_of(events: list[Event], offset: int = 0, partition: int = 0) -> Record:
    columns = [list(column) for column in zip(*events, strict=True)] or [[], [], [], []]
    value = encode_events(ItemEvents(EVENTS_FORMAT, *columns))
    return Record(partition, offset, BEGIN_MS + 10**9, None, value)


def events_of(trail: list[str], item: str, at_ms: int) -> list[Event]:
    """What a click on an item teaches after these."""
    return [(item, item, 0, at_ms)] + [(a, b, step, at_ms) for a, b, step in steps(trail, item)]


class Replay:
    """Batches through a planner, as a worker takes them."""

    def __init__(self) -> None:
        self.planner = ItemPlanner(RULES, "events", BadClickLimit(10, 0.9))
        self.states = States()
        table = self.planner.new_partition()
        table.position = Position(0, "t")
        self.states.own({0: table})
        self.view: dict[bytes, bytes | None] = {}
        self.n_published = 0

    def run(self, *records: Record) -> ItemPlan:
        positions = {0: self.states.partitions[0].position}
        plan = self.planner.plan({0: records}, positions, self.states.get)
        self.planner.score(plan)
        self.planner.advance(plan)
        watermark_ms = plan.transaction.positions[0].watermark_ms
        dead = self.states.partitions[0].collect(
            lambda at_ms: self.planner.is_dead(at_ms, watermark_ms), plan.touched[0], 100
        )
        self.planner.expire(plan, 0, dead)
        self.states.apply(plan.transaction)
        self.planner.answer(plan, 0)
        published = plan.transaction.messages[Target.ITEM_VIEW][0]
        assert plan.counts.published == sum(message.value is not None for message in published)
        for message in published:
            assert message.key is not None
            self.view[message.key] = message.value
            self.n_published += 1
        return plan

    def counts(self, item: str) -> ItemCounts:
        raw = self.states.get(0, item.encode())
        assert raw is not None
        return ItemCounts.decode(RULES, raw)


def test_items_are_counted_once_and_what_changed_is_published() -> None:
    replay, records = Replay(), []
    trail: list[str] = []
    for n, item in enumerate("abcab"):
        records.append(record_of(events_of(trail, item, BEGIN_MS + 1000 * n), n))
        trail.append(item)
    replay.run(*records[:3])
    replay.run(*records[1:])  # the first two of them come again
    a = replay.counts("a")
    assert a.n_counted == sum(e[0] == "a" for e in events_of([], "a", 0)) + sum(
        sum(former == "a" for former, _, _ in steps("abcab"[:n], "abcab"[n])) + ("abcab"[n] == "a")
        for n in range(1, 5)
    )
    expected: dict[str, float] = {}
    for n in range(5):
        for former, successor, weight in transitions("abcab"[:n], "abcab"[n]):
            if former == "a":
                expected[successor] = expected.get(successor, 0.0) + weight
    weights = a.successors.weights
    factor = a.successors.factors(BEGIN_MS + 4000)[1]
    found = {item: of_item[1] * factor for item, of_item in weights.items()}
    assert found == pytest.approx(expected, rel=1e-3)  # seconds of a half-life of eight hours
    assert a.clicks == pytest.approx(2.0, abs=0.02)
    assert {key: head_of(raw or b"").n_counted for key, raw in replay.view.items()} == {
        key.encode(): replay.counts(key).n_counted for key in "abc"
    }


def test_counts_keep_their_bytes_meaning_through_every_batch() -> None:
    """State goes through float32 between batches; one batch or many, the counts agree."""
    random = np.random.default_rng(3)
    items = [f"item-{n}" for n in range(8)]
    clicks, at_ms = [], BEGIN_MS
    trail: list[str] = []
    for _ in range(300):
        at_ms += int(random.integers(600_000))
        item = items[random.integers(8)]
        clicks.append(events_of(trail[-3:], item, at_ms))
        trail.append(item)
    many, one = Replay(), Replay()
    for n, events in enumerate(clicks):
        many.run(record_of(events, n))
    one.run(*[record_of(events, n) for n, events in enumerate(clicks)])
    for item in items:
        a, b = many.counts(item), one.counts(item)
        assert a.n_counted == b.n_counted
        assert a.clicks == pytest.approx(b.clicks, rel=1e-9)
        assert a.successors.weights.keys() == b.successors.weights.keys()
        for key, weights in a.successors.weights.items():
            np.testing.assert_allclose(
                np.array(weights) * a.successors.factors(at_ms),
                np.array(b.successors.weights[key]) * b.successors.factors(at_ms),
                rtol=1e-4,
                atol=1e-9,
            )


def test_a_hot_item_is_published_once_a_second_of_the_log_and_a_rare_one_at_once() -> None:
    replay = Replay()
    for n in range(1000):
        replay.run(record_of([("hot", "hot", 0, BEGIN_MS + 10 * n)], n))
    assert 10 <= replay.n_published <= 10 + VIEW_BURST + 1
    replay.n_published = 0
    for n in range(3):
        replay.run(record_of([("rare", "rare", 0, BEGIN_MS + 10_000 + n)], 1000 + n))
        assert replay.n_published == n + 1


def test_an_item_that_nobody_clicks_any_more_is_forgotten_here_and_in_the_view() -> None:
    replay = Replay()
    replay.run(record_of([*events_of(["b"], "a", BEGIN_MS)], 0))
    assert replay.view[b"a"] is not None
    # 1.1 of weight at a half-life of 8 hours falls below .05 within 36 hours.
    plan = replay.run(record_of([("c", "c", 0, BEGIN_MS + 60 * 3_600_000)], 1))
    assert plan.counts.expired == 2
    assert replay.view == {b"a": None, b"b": None, b"c": replay.view[b"c"]}
    assert replay.states.sizes() == {0: 1}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"no events", "not the events of items"),
        (msgspec.msgpack.encode([2, [], [], [], []]), "format 2, expected 1"),
        (msgspec.msgpack.encode([1, ["a"], [], [0], [5]]), "columns of 0 to 1 events"),
        (msgspec.msgpack.encode([1, ["a"], ["b"], [4], [5]]), "a step that is none of"),
        (msgspec.msgpack.encode([1, ["a"], [""], [1], [5]]), "an item_id that is empty"),
        (msgspec.msgpack.encode([1, ["a"], ["b"], [1], [0]]), "a timestamp_ms that is not from 1"),
        (msgspec.msgpack.encode([1, ["a"], ["b"], [1], [2**62]]), "a timestamp_ms that is not"),
        (None, "no value"),
    ],
)
def test_what_is_no_record_of_events_is_a_dead_letter_and_the_rest_is_counted(
    value: bytes | None, said: str
) -> None:
    replay = Replay()
    bad = Record(0, 0, BEGIN_MS, b"k", value)
    plan = replay.run(bad, record_of([("a", "a", 0, BEGIN_MS)], 1))
    (letter,) = plan.transaction.messages[Target.DEAD_LETTERS][0]
    assert said.encode() in (dict(letter.headers)["detail"] or b"")
    assert replay.counts("a").n_counted == 1


def test_a_state_that_is_none_is_told_and_one_of_a_newer_version_apart() -> None:
    good = ItemCounts(RULES, BEGIN_MS).encode()
    table = PartitionItems()
    table.restore(b"a", good)
    with pytest.raises(StreamError, match="not the counts of an item: format 9 in 49"):
        table.restore(b"b", b"\x09" + good[1:49])
    with pytest.raises(NewerFormatError, match="format 2"):
        table.restore(b"b", b"\x02" + good[1:])
    with pytest.raises(StreamError, match="nothing"):
        table.restore(b"b", b"")
    for cut in (good[:50], good + b"more"):
        with pytest.raises(ValueError, match="not the counts of an item"):
            ItemRecord.decode(cut)
    other = Rules(1000, 1000, excludes_seen=False)
    assert ItemCounts.decode(other, good).n_counted == 0
    cut_off = EventsParser(3)(Record(0, 0, BEGIN_MS, None, None, trouble="is cut"))
    assert isinstance(cut_off, BadClick)
    assert cut_off.detail == "is cut"
