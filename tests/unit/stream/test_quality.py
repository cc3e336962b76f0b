"""What a part of a blended list would be worth alone, beside services that have that part alone."""

from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import pytest

from stream import batch, quality
from stream.batch import Plan, Planner, Rules
from stream.contract.records import Record, Target
from stream.live.counts import ItemCounts, steps
from stream.live.rules import PREFIXES
from stream.model.bundle import Bundle, Live
from stream.model.models import Model, Models
from stream.position import BadClickLimit, Position
from stream.quality import SAMPLED, is_sampled
from stream.session import PartitionSessions
from stream.table import States
from tests.unit.stream.replay import BEGIN_MS, RECORD_MS, FakeScorer, bundle_of

ITEMS = [f"known-{n}" for n in range(20)]
NEW = [f"new-{n}" for n in range(20)]
K = 5
RANDOM = np.random.default_rng(4)
SCORER = FakeScorer(RANDOM.random((len(ITEMS), len(ITEMS))), len(ITEMS))
WEIGHTS = RANDOM.random((PREFIXES, 10))
RULES = Rules(1_800_000, 600_000, BadClickLimit(1000, 0.5))
POPULARITY = 6  # the source's column, behind three steps at two rates

Clicks = Sequence[tuple[str, str, int]]


class Service:
    """Workers that share a partition, of a bundle whose sources count so much."""

    def __init__(self, weights: np.ndarray = WEIGHTS, *, excludes_seen: bool = False) -> None:
        bundle = bundle_of(ITEMS, K)
        live = Live(3600, 225, excludes_seen, len(ITEMS), 0.0, weights.tolist())
        manifest = msgspec.structs.replace(bundle.manifest, live=live)
        bundle = Bundle(manifest, bundle.item_ids, bundle.item_index, bytes, bytes)
        self.model = Model(bundle, SCORER)
        blender = self.model.blender
        assert blender is not None
        blender.view.take(learnt(live))
        self.states = States()
        self.states.own({0: table()})
        self.worker = self.another_worker()
        self.n_sent = 0

    def another_worker(self) -> Planner:
        return Planner(Models(self.model), RULES, "clicks", 3)

    def click(self, *clicks: tuple[str, str, int], worker: Planner | None = None) -> Plan:
        """A batch of (session, item, seconds)."""
        records = [self._record(*one) for one in clicks]
        planner = worker or self.worker
        plan = planner.plan({0: records}, {0: self.states.partitions[0].position}, self.states.get)
        planner.score(plan)
        planner.advance(plan)
        planner.answer(plan, 77)
        self.states.apply(plan.transaction)
        return plan

    def _record(self, session: str, item: str, at_s: int) -> Record:
        value = {"session_id": session, "item_id": item, "timestamp_ms": BEGIN_MS + 1000 * at_s}
        self.n_sent += 1
        return Record(0, self.n_sent - 1, RECORD_MS, session.encode(), msgspec.json.encode(value))


def table() -> PartitionSessions:
    sessions = PartitionSessions()
    sessions.position = Position(0, "t")
    return sessions


def learnt(live: Live) -> Iterator[tuple[bytes, bytes]]:
    """What the view knows: random sessions over all items."""
    random, counts, trail = np.random.default_rng(1), dict[str, ItemCounts](), list[str]()
    for n in range(500):
        item = [*ITEMS, *NEW][int(random.zipf(1.3)) % 40]
        at_ms = BEGIN_MS - 600_000 + n * 1000
        for name, other, step in [(item, item, 0), *steps(trail, item)]:
            counts.setdefault(name, ItemCounts(live.rules, at_ms)).count(other, step, at_ms)
        trail = [*trail[-2:], item] if random.random() < 0.8 else []
    for name, of_item in counts.items():
        yield name.encode(), of_item.encode()


def some_clicks(items: Sequence[str], n_clicks: int = 100) -> list[tuple[str, str, int]]:
    random = np.random.default_rng(7)
    return [
        (f"s{random.integers(9)}", items[int(random.zipf(1.3)) % len(items)], n)
        for n in range(n_clicks)
    ]


def only(*columns: int) -> np.ndarray:
    """The weights of these sources, and 0 for all others."""
    weights = np.zeros_like(WEIGHTS)
    weights[:, columns] = WEIGHTS[:, columns]
    return weights


@pytest.fixture(autouse=True)
def everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every session be in the sample."""
    monkeypatch.setattr(batch, "is_sampled", lambda session: True)


def ranks(service: Service, clicks: Clicks, size: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Of batches of so many clicks: the ranks in published lists, and those in the parts."""
    plans = [service.click(*clicks[n : n + size]) for n in range(0, len(clicks), size)]
    judged = [judgement.rank for plan in plans for judgement in plan.counts.judgements]
    return judged, [of_parts for plan in plans for of_parts in plan.counts.parts]


@pytest.mark.parametrize("excludes_seen", [False, True])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_part_is_worth_what_a_service_of_that_part_alone_is(
    size: int, excludes_seen: bool
) -> None:
    clicks = some_clicks(ITEMS)
    published, parts = ranks(Service(excludes_seen=excludes_seen), clicks, size)
    assert len(published) == 91, "each click but the first of nine sessions"
    assert [of_parts[0] for of_parts in parts] == published
    alone = (only(9), only(*range(9)), only(POPULARITY))
    for number, weights in enumerate(alone, start=1):
        expected, _ = ranks(Service(weights, excludes_seen=excludes_seen), clicks, size)
        assert [of_parts[number] for of_parts in parts] == expected
        assert expected != published
        assert any(expected)


def test_where_the_network_does_not_know_the_item_its_list_before_stays() -> None:
    best = np.argsort(-SCORER.scores[0], kind="stable")
    service = Service()
    service.click(("s", ITEMS[0], 0))
    service.click(("s", "new-1", 1), ("s", "new-2", 2))
    (of_parts,) = service.click(("s", ITEMS[best[1]], 3)).counts.parts
    assert of_parts[1] == 2
    service.click(("t", "new-1", 4))
    (of_parts,) = service.click(("t", ITEMS[0], 5)).counts.parts
    assert of_parts[1] == 0, "no list before"


def test_lists_of_a_session_that_was_answered_elsewhere_meanwhile_are_not_judged() -> None:
    service = Service()
    other = service.another_worker()
    service.click(("s", ITEMS[0], 0))
    plan = service.click(("s", ITEMS[1], 1), worker=other)
    assert (len(plan.counts.judgements), plan.counts.parts) == (1, [])
    plan = service.click(("s", ITEMS[2], 2))
    assert (len(plan.counts.judgements), plan.counts.parts) == (1, [])
    assert len(service.click(("s", ITEMS[3], 3)).counts.parts) == 1, "and from here on again"


def test_a_batch_that_is_answered_again_is_judged_as_if_for_the_first_time() -> None:
    service, other = Service(), Service()
    for one in (service, other):
        one.click(("s", ITEMS[0], 0))
    lost = service.another_worker()
    records = [service._record("s", ITEMS[1], 1)]
    position = service.states.partitions[0].position
    for planner in (service.worker, lost):
        plan = planner.plan({0: records}, {0: position}, service.states.get)
        planner.score(plan)
        planner.advance(plan)
        planner.answer(plan, 77)  # and its transaction is lost
    service.n_sent -= 1
    service.click(("s", ITEMS[1], 1))
    plan = service.click(("s", ITEMS[2], 2))
    other.click(("s", ITEMS[1], 1))
    assert plan.counts.parts == other.click(("s", ITEMS[2], 2)).counts.parts


def test_a_late_click_judges_no_part() -> None:
    service = Service()
    service.click(("s", ITEMS[0], 10))
    plan = service.click(("s", ITEMS[1], 5))
    assert [judgement.late for judgement in plan.counts.judgements] == [True]
    assert plan.counts.parts == []


def test_sessions_that_have_been_quiet_for_longest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "MOST_SESSIONS", 2)
    service = Service()
    service.click(("a", ITEMS[0], 0), ("b", ITEMS[0], 1))
    service.click(("a", ITEMS[1], 2), ("c", ITEMS[0], 3))
    judged = {s: len(service.click((s, ITEMS[2], 4)).counts.parts) for s in ("b", "c")}
    assert judged == {"b": 0, "c": 1}


def test_items_and_hits_are_counted_by_source_and_unknown_items_are_counted() -> None:
    service = Service()
    plan = service.click(("s", "new-1", 0), ("t", ITEMS[3], 1), ("u", "heard-of-by-nobody", 2))
    assert plan.counts.unknown == 2
    assert sum(plan.counts.listed.values()) == 3 * K
    assert plan.counts.hits == {}
    value: Any = plan.transaction.messages[Target.RECOMMENDATIONS][0][1].value
    for n, item in enumerate(msgspec.json.decode(value)["items"]):
        again = service.click((f"v{n}", ITEMS[3], 3), (f"v{n}", item["item_id"], 4))
        assert again.counts.hits == {item["source"]: 1}


def test_the_sample_is_a_fair_one_in_every_partition() -> None:
    sessions = [b"session-%d" % n for n in range(100_000)]
    sampled = [session for session in sessions if is_sampled(session)]
    assert len(sampled) * SAMPLED / len(sessions) == pytest.approx(1, abs=0.1)
    # Of a producer that chooses partitions by the same checksum.
    of_partition = np.bincount([crc32(session) % 16 for session in sampled], minlength=16)
    assert of_partition.min() > 0.7 * of_partition.mean()
