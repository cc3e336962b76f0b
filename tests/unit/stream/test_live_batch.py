"""Lists that learn from the stream: both processors in one process, without Kafka."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from stream import batch as module
from stream.batch import Plan, Planner, Rules
from stream.contract.items import EVENTS_FORMAT, decode_events, partition_of
from stream.contract.messages import Recommendation, Target
from stream.contract.records import Message, Record
from stream.counts import Judgement
from stream.items import ItemPlanner
from stream.live.counts import ItemCounts
from stream.live.rules import PREFIXES
from stream.model.blender import Ask
from stream.model.bundle import Bundle, Live
from stream.model.models import Model, Models
from stream.position import BadClickLimit, Position
from stream.session import decode_state
from stream.table import States
from tests.unit.stream.replay import BEGIN_MS, RECORD_MS, FakeScorer, bundle_of

LIVE = Live(3600, 225, False, 5, 0.0, [[1.0] * 10] * PREFIXES)
ITEMS = [f"known-{n}" for n in range(8)]
K = 3
SCORER = FakeScorer(np.random.default_rng(4).random((len(ITEMS), len(ITEMS))), 5)
LIMIT = BadClickLimit(1000, 0.5)
RULES = Rules(1_800_000, 600_000, LIMIT)


def live_bundle(live: Live | None = LIVE, bundle_id: str = "b" * 16) -> Bundle:
    bundle = bundle_of(ITEMS, K, bundle_id)
    manifest = msgspec.structs.replace(bundle.manifest, live=live)
    return Bundle(manifest, bundle.item_ids, bundle.item_index, bytes, bytes)


class World:
    """The session processor of one partition, and the item processor of three."""

    def __init__(self, bundle: Bundle | None = None, scorer: Any = SCORER) -> None:
        self.serve(bundle or live_bundle(), scorer)
        self.sessions, self.items = States(), States()
        self.sessions.own({0: self._owned(self.planner)})
        self.counter = ItemPlanner(LIVE.rules, "events", LIMIT)
        self.items.own({p: self._owned(self.counter) for p in range(3)})
        self.view: list[tuple[bytes | None, bytes | None]] = []
        self.events: list[Message] = []
        self.judgements: list[Judgement] = []
        self.n_sent = 0

    def serve(self, bundle: Bundle, scorer: Any = SCORER) -> None:
        self.model = Model(bundle, scorer)
        assert self.model.blender is not None
        self.model.blender.changes = self._changes
        self.planner = Planner(Models(self.model), RULES, "clicks", 3)

    @staticmethod
    def _owned(planner: Any) -> Any:
        table = planner.new_partition()
        table.position = Position(0, "t")
        return table

    def _changes(self) -> list[tuple[bytes | None, bytes | None]]:
        changes, self.view = self.view, []
        return changes

    def click(self, *clicks: tuple[str, str, int], learn: bool = True) -> list[Recommendation]:
        """A batch of (session, item, seconds); its answers, and then what it teaches is read."""
        records = [self._record(*one) for one in clicks]
        return self.answer(records, learn=learn)

    def _record(self, session: str, item: str, at_s: int, event_id: str | None = None) -> Record:
        value = {"session_id": session, "item_id": item, "timestamp_ms": BEGIN_MS + 1000 * at_s}
        if event_id:
            value["event_id"] = event_id
        self.n_sent += 1
        offset = self.n_sent - 1
        return Record(0, offset, RECORD_MS, session.encode(), msgspec.json.encode(value))

    def answer(self, records: Sequence[Record], *, learn: bool = True) -> list[Recommendation]:
        plan = self._step(self.planner, self.sessions, {0: records})
        self.judgements = plan.counts.judgements
        told = plan.transaction.messages[Target.ITEM_EVENTS][0]
        self.events += told
        if learn:
            self.learn(told)
        published = plan.transaction.messages[Target.RECOMMENDATIONS][0]
        return [msgspec.json.decode(m.value or b"", type=Recommendation) for m in published]

    def learn(self, told: Sequence[Message]) -> None:
        for message in told:
            partition = message.partition
            assert partition is not None
            offset = self.items.partitions[partition].position.next_offset
            record = Record(partition, offset, RECORD_MS, None, message.value)
            plan = self._step(self.counter, self.items, {partition: [record]})
            assert not plan.counts.rejected
            published = plan.transaction.messages[Target.ITEM_VIEW][partition]
            self.view += [(m.key, m.value) for m in published]

    @staticmethod
    def _step(planner: Any, states: States, records: dict[int, Sequence[Record]]) -> Plan:
        planner.refresh()
        positions = {p: states.partitions[p].position for p in records}
        plan: Plan = planner.plan(records, positions, states.get)
        planner.score(plan)
        planner.advance(plan)
        planner.answer(plan, 77)
        states.apply(plan.transaction)
        return plan


def listed(answer: Recommendation) -> dict[str, str | None]:
    return {item.item_id: item.source for item in answer.items}


def test_with_an_empty_view_a_list_is_the_networks_and_an_unknown_item_has_the_popular_ones() -> (
    None
):
    world = World()
    first, unknown = world.click(("s", "known-0", 0), ("t", "new", 1))
    assert (first.outcome, first.view_ms) == ("model", None)
    best = np.argsort(-SCORER.scores[0], kind="stable")[:5].tolist()
    # The item itself is a source, too.
    assert set(listed(first)) <= {ITEMS[index] for index in best} | {"known-0"}
    assert listed(first)["known-0"] == "session"
    assert unknown.outcome == "fallback"
    assert list(listed(unknown)) == ["known-0", "known-1", "known-2"]


def test_what_one_session_did_is_in_the_list_of_the_next() -> None:
    world = World()
    world.click(("s", "known-0", 0), ("s", "new", 1))
    (known,) = world.click(("t", "known-0", 2))
    assert (known.outcome, known.view_ms) == ("model", BEGIN_MS + 1000)
    assert listed(known)["new"] == "transitions"
    (live,) = world.click(("u", "new", 3))
    assert live.outcome == "live"
    assert listed(live)["known-0"] == "transitions"
    (other,) = world.click(("v", "newer", 4))
    assert other.outcome == "live"  # its own item is listed, as a neighbour of itself
    assert "popularity" in listed(other).values()
    for answer in (known, live, other):
        assert len(answer.items) == K
        scores = [item.score for item in answer.items]
        assert scores == sorted(scores, reverse=True)


def test_where_only_popularity_speaks_the_outcome_is_fallback() -> None:
    excluding = msgspec.structs.replace(LIVE, excludes_seen=True)
    world = World(live_bundle(excluding))
    world.click(("s", "new", 0))
    (answer,) = world.click(("t", "newer", 1))
    assert answer.outcome == "fallback"
    # The rest of the list is the bundle's own popular items.
    assert [*listed(answer).items()] == [
        ("new", "popularity"), ("known-0", "popularity"), ("known-1", "popularity"),
    ]  # fmt: skip
    (again,) = world.click(("t", "new", 2))
    assert "new" not in listed(again)
    assert "newer" not in listed(again)


def test_accepted_clicks_alone_teach_and_each_once() -> None:
    world = World()
    records = [
        world._record("s", "a", 0, "e1"),
        world._record("s", "b", 1, "e2"),
        world._record("s", "a", 2, "e1"),  # a repeated event
        Record(0, 3, RECORD_MS, b"s", b"no click"),
        world._record("s", "c", 3),
    ]
    world.n_sent += 1
    records[4] = msgspec.structs.replace(records[4], offset=4)
    world.answer(records)
    world.answer(records)  # delivered again
    told: list[tuple[str, str, int, int]] = []
    for message in world.events:
        events = decode_events(message.value or b"")
        assert events.format == EVENTS_FORMAT
        assert {partition_of(item, 3) for item in events.item} == {message.partition}
        columns = (events.item, events.other, events.step, events.timestamp_ms)
        told += [*zip(*columns, strict=True)]
    at = [BEGIN_MS, BEGIN_MS + 1000, BEGIN_MS + 3000]
    assert sorted(told) == sorted(
        [
            *(("a", "a", 0, at[0]), ("b", "b", 0, at[1]), ("c", "c", 0, at[2])),
            *(("a", "b", 1, at[1]), ("b", "a", -1, at[1])),
            *(("b", "c", 1, at[2]), ("c", "b", -1, at[2])),
            *(("a", "c", 2, at[2]), ("c", "a", -2, at[2])),
        ]
    )
    raw = world.items.get(partition_of("a", 3), b"a")
    assert ItemCounts.decode(LIVE.rules, raw or b"").n_counted == 3


def test_a_click_teaches_as_of_when_it_was_appended_at_the_latest() -> None:
    """A producer's clock may be five minutes fast."""
    world = World()
    sent = world._record("s", "a", 0)
    world.answer([msgspec.structs.replace(sent, timestamp_ms=BEGIN_MS - 60_000)])
    (message,) = world.events
    assert decode_events(message.value or b"").timestamp_ms == [BEGIN_MS - 60_000]


def test_a_list_of_the_view_is_kept_with_the_session_repeated_and_judged() -> None:
    world = World()
    world.click(("s", "known-0", 0), ("s", "new", 1))
    (made,) = world.click(("t", "known-0", 2))
    raw = world.sessions.get(0, b"t") or b""
    kept = decode_state(raw).live
    assert raw[0] == 3
    assert kept is not None
    assert kept.items == [item.item_id for item in made.items]
    (repeated,) = world.answer([world._record("t", "known-0", 3, "e")])
    (again,) = world.answer([world._record("t", "known-0", 3, "e")])
    assert again.outcome == "duplicate"
    assert again.items == repeated.items
    place = [item.item_id for item in again.items].index("new") + 1
    world.click(("t", "new", 4))
    assert world.judgements == [Judgement(False, place)]
    world.click(("t", "nobody-lists-this", 5))
    assert world.judgements == [Judgement(False, 0)]


def test_answers_do_not_depend_on_how_clicks_fall_into_batches() -> None:
    random = np.random.default_rng(5)
    names = [*ITEMS, *(f"new-{n}" for n in range(8))]
    warm = [("w", names[random.integers(16)], n) for n in range(60)]
    clicks = [(f"s{random.integers(5)}", names[random.integers(16)], 100 + n) for n in range(120)]
    one, many = World(), World()
    for world in (one, many):
        world.click(*warm)
        world.click(("x", "known-1", 99), learn=False)
    whole = one.click(*clicks, learn=False)
    parts = [many.click(one_click, learn=False)[0] for one_click in clicks]
    assert whole == parts
    assert {answer.outcome for answer in whole} == {"model", "live"}
    assert one.sessions.partitions[0].states == many.sessions.partitions[0].states


def test_scores_that_are_no_numbers_leave_the_list_to_the_view() -> None:
    world = World(scorer=FakeScorer(np.full((8, 8), np.nan), 5))
    world.click(("s", "known-0", 0), ("s", "new", 1))
    (answer,) = world.click(("t", "known-0", 2))
    assert answer.outcome == "model"
    assert "network" not in listed(answer).values()
    assert all(np.isfinite(item.score) for item in answer.items)


def test_under_another_bundle_a_session_goes_on_from_its_trail() -> None:
    world = World()
    world.click(("s", "known-0", 0), ("s", "new", 1))
    world.serve(live_bundle(bundle_id="c" * 16))
    world.learn(world.events)  # the new model's view, read from its beginning
    (answer,) = world.click(("s", "known-1", 2))
    assert answer.outcome == "model"
    assert world.judgements == []  # the list before was never published
    assert decode_state(world.sessions.get(0, b"s") or b"").n_clicks == 3
    (after,) = world.click(("s", "new", 3))
    assert after.outcome == "live"
    assert len(world.judgements) == 1


def test_an_event_of_another_type_is_answered_with_what_is_popular_now() -> None:
    bundle = live_bundle()
    manifest = msgspec.structs.replace(bundle.manifest, event_types=("view",))
    world = World(Bundle(manifest, bundle.item_ids, bundle.item_index, bytes, bytes))
    (answer,) = world.click(("s", "new", 0))
    assert (answer.outcome, [*listed(answer)]) == ("other_event", ["known-0", "known-1", "known-2"])
    counts = ItemCounts(LIVE.rules, BEGIN_MS)
    counts.count("hot", 0, BEGIN_MS)
    world.view = [(b"hot", counts.encode())]
    (answer,) = world.click(("s", "new", 1))
    assert next(iter(listed(answer).items())) == ("hot", "popularity")


def test_an_operator_decides_about_seen_items() -> None:
    world = World()
    blender = world.model.blender
    assert blender is not None
    world.click(("s", "known-0", 0), ("s", "known-1", 1))
    for seen, listed_again in (
        ("allow", {"known-0", "known-1"}),
        ("exclude-last", {"known-0"}),
        ("exclude", set()),
    ):
        blender.seen = seen  # type: ignore[assignment]
        world.click((f"{seen}", "known-0", 2))
        (answer,) = world.click((f"{seen}", "known-1", 3))
        assert {*listed(answer)} & {"known-0", "known-1"} == listed_again


def test_a_sessions_own_item_is_listed_however_long_the_session_is() -> None:
    world = World()
    answers = [world.click(("s", f"known-{n % 2}", n))[0] for n in range(60)]
    assert all(answer.click.item_id in listed(answer) for answer in answers)


@pytest.mark.parametrize("n_candidates", [3, 5])
def test_a_list_is_full_whatever_is_known(n_candidates: int) -> None:
    live = msgspec.structs.replace(LIVE, n_candidates=n_candidates, excludes_seen=True)
    world = World(live_bundle(live), FakeScorer(SCORER.scores, n_candidates))
    for n in range(4):
        (answer,) = world.click(("s", ITEMS[n], n))
        assert len({item.item_id for item in answer.items}) == K
        assert not {item.item_id for item in answer.items} & set(ITEMS[: n + 1])


def test_lists_are_the_same_where_the_view_is_looked_up_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone, apart = World(), World()
    random = np.random.default_rng(1)
    names = [*ITEMS, "new-1", "new-2"]
    for n in range(3):
        clicks = [(f"s{s}", names[i], n) for s, i in random.integers(len(names), size=(40, 2))]
        lists = []
        for world, most in ((alone, 1000), (apart, 0)):
            monkeypatch.setattr(module, "GATHER_APART", most)
            lists.append([(answer.outcome, answer.items) for answer in world.click(*clicks)])
        assert lists[0] == lists[1]


def test_a_network_that_fails_leaves_no_thread_at_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(FakeScorer):
        def rank(self, query: Any, bias: Any = None) -> Any:
            raise ArithmeticError("the network")

    monkeypatch.setattr(module, "GATHER_APART", 0)
    world = World(scorer=Failing(np.ones((len(ITEMS), len(ITEMS))), 5))
    done: list[Any] = []
    blender = world.model.blender
    assert blender is not None
    gather = blender.gather

    def slowly(asks: Sequence[Ask]) -> Any:
        time.sleep(0.3)
        done.append(gather(asks))
        return done[0]

    monkeypatch.setattr(blender, "gather", slowly)
    with pytest.raises(ArithmeticError):
        world.click(("s", "known-1", 1))
    assert len(done) == 1
