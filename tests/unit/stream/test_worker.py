"""The loop over a transport in memory: order, restarts, expiry and holes, without a broker."""

import json

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stream.batch import Planner, Rules
from stream.contract.messages import Target
from stream.contract.records import Record
from stream.metrics import Metrics
from stream.model.models import Model, Models
from stream.position import BadClickLimit
from stream.worker import INLINE_CLICKS, DroppedClickError, Worker
from tests.memory_transport import MemoryBroker, MemoryTransport
from tests.unit.stream.replay import FakeScorer, bundle_of

ITEMS = ["a", "b", "c"]
MODEL = Model(bundle_of(ITEMS, 2), FakeScorer(np.eye(3)[::-1], 2))
RULES = Rules(1000, 0, BadClickLimit(1000, 0.5))


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(2)


def click(session_id: str, item_id: str, timestamp_ms: int) -> tuple[bytes, bytes]:
    value = {"session_id": session_id, "item_id": item_id, "timestamp_ms": timestamp_ms}
    return session_id.encode(), json.dumps(value).encode()


def worker_on(transport: MemoryTransport) -> tuple[Worker, Metrics]:
    metrics = Metrics(CollectorRegistry())
    return Worker(transport, Planner(Models(MODEL), RULES, "clicks"), metrics), metrics


async def serve(broker: MemoryBroker) -> Metrics:
    """Start a worker, let it answer what is there, and stop it."""
    transport = MemoryTransport(broker)
    worker, metrics = worker_on(transport)
    transport.stopped.set()
    await transport.serve(worker)
    await worker.observe()
    return metrics


def sources(broker: MemoryBroker) -> list[str]:
    messages = broker.messages[Target.RECOMMENDATIONS]
    return sorted(dict(message.headers)["source"].decode() for message in messages)


@pytest.mark.parametrize("n_clicks", [1, INLINE_CLICKS, INLINE_CLICKS + 1])
async def test_every_click_is_answered_once_over_restarts(
    broker: MemoryBroker, n_clicks: int
) -> None:
    for half in range(2):
        for n in range(n_clicks):
            broker.produce(n % 2, *click(f"s{n % 2}", ITEMS[n % 3], 1000 + half * n_clicks + n))
        metrics = await serve(broker)
    offsets = {p: len(log) for p, log in broker.input.items()}
    assert sources(broker) == sorted(f"clicks-{p}-{n}" for p in offsets for n in range(offsets[p]))
    assert all(broker.positions[p].next_offset == n for p, n in offsets.items() if n)
    value = metrics.registry.get_sample_value
    assert value("recs_clicks_total", {"outcome": "model"}) == n_clicks, "of the second start"
    assert value("recs_consumer_lag_clicks", {"partition": "0"}) == 0
    assert value("recs_live_sessions", {"partition": "0"}) == 1


async def test_dead_sessions_are_deleted_in_the_transaction_of_a_later_batch(
    broker: MemoryBroker,
) -> None:
    for at_ms in (1000, 9000):
        broker.produce(0, *click(f"s{at_ms}", "a", at_ms))
        metrics = await serve(broker)
    assert (b"s1000", None) in broker.changelog[0]
    assert metrics.registry.get_sample_value("recs_expired_sessions_total") == 1
    assert metrics.registry.get_sample_value("recs_live_sessions", {"partition": "0"}) == 1


async def test_a_hole_without_a_click_is_counted(broker: MemoryBroker) -> None:
    broker.skip(0)
    broker.produce(0, *click("s", "a", 1000))
    metrics = await serve(broker)
    assert metrics.registry.get_sample_value("recs_offset_holes_total") == 1
    assert sources(broker) == ["clicks-0-1"]


async def test_a_hole_with_a_click_in_it_ends_the_worker_before_anything_is_published(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.produce(0, *click("s", "a", 1000))
    broker.produce(0, *click("s", "b", 1001))
    transport = MemoryTransport(broker)
    worker, _ = worker_on(transport)
    errors: list[Exception] = []
    monkeypatch.setattr(worker, "_on_error", errors.append)
    fetch = transport.fetch

    async def drop_the_first() -> dict[int, list[Record]] | None:
        records = await fetch()
        return {p: of_p[1:] for p, of_p in records.items()} if records else None

    monkeypatch.setattr(transport, "fetch", drop_the_first)
    await transport.serve(worker)
    assert [type(error) for error in errors] == [DroppedClickError]
    assert sources(broker) == []
