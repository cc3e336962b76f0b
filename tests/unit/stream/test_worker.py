"""The loop over a transport in memory: order, restarts, expiry and holes, without a broker."""

import asyncio
import json
from functools import partial

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stream.batch import Plan, Planner, Rules
from stream.contract.click import BadClick, Click
from stream.contract.messages import Target
from stream.contract.records import Record
from stream.metrics import Metrics
from stream.model.models import Model, Models
from stream.position import BadClickLimit
from stream.session import decode_state
from stream.transport.protocol import Batch, Processor, Transaction, TransactionLostError
from stream.worker import INLINE_CLICKS, Worker
from tests.memory_transport import MemoryBroker, MemoryTransport
from tests.unit.stream.replay import BEGIN_MS, FakeScorer, bundle_of

ITEMS = ["a", "b", "c"]
MODEL = Model(bundle_of(ITEMS, 2), FakeScorer(np.eye(3)[::-1], 2))
RULES = Rules(1000, 0, BadClickLimit(1000, 0.5))
IN_ORDER = {"timing": "in_order"}


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(2)


class Ended(BaseException):
    """Stands for the end of the process."""


def click(session_id: str, item_id: str, after_ms: int) -> tuple[bytes, bytes]:
    at_ms = BEGIN_MS + after_ms
    value = {"session_id": session_id, "item_id": item_id, "timestamp_ms": at_ms}
    return session_id.encode(), json.dumps(value).encode()


def worker_on(transport: MemoryTransport) -> tuple[Worker[Plan], Metrics]:
    metrics = Metrics(CollectorRegistry())
    return Worker(transport, Planner(Models(MODEL), RULES, "clicks"), metrics), metrics


def ending(worker: Worker[Plan], monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Let the worker end with an exception instead of its process; the errors it ends with."""
    errors: list[Exception] = []

    def fail(error: Exception) -> None:
        errors.append(error)
        raise Ended

    monkeypatch.setattr(worker, "fail", fail)
    return errors


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
    return sorted((dict(message.headers)["source"] or b"").decode() for message in messages)


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


async def test_a_hole_with_a_click_in_it_pauses_its_partition_before_it(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.produce(0, *click("s", "a", 1000))
    broker.produce(0, *click("s", "b", 1001))
    broker.produce(1, *click("t", "b", 1000))
    transport = MemoryTransport(broker)
    worker, metrics = worker_on(transport)
    fetch = transport.fetch

    async def drop_the_first() -> Batch | None:
        batch = await fetch()
        return batch and Batch({p: of_p[p == 0 :] for p, of_p in batch.records.items()}, 0)

    monkeypatch.setattr(transport, "fetch", drop_the_first)
    transport.stopped.set()
    await transport.serve(worker)
    await worker.observe()
    assert sources(broker) == ["clicks-1-0"]
    assert 0 not in broker.positions
    assert metrics.registry.get_sample_value("recs_paused_partition", {"partition": "0"}) == 1
    assert "DroppedClickError" in "".join(capsys.readouterr())


async def test_a_batch_whose_records_stand_elsewhere_is_dead_letters_and_the_rest_is_answered(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        broker.produce(0, *click("s", "a", 1000 + n))
    broker.produce(1, *click("t", "b", 1000))
    transport = MemoryTransport(broker)
    worker, _ = worker_on(transport)
    fetch, fetched = transport.fetch, 0

    async def misnumber_the_second() -> Batch | None:
        nonlocal fetched
        batch = await fetch()
        fetched += 1
        if batch is not None and fetched == 1:
            first, second, *rest = batch.records[0]
            batch.records[0] = [first, msgspec.structs.replace(second, offset=77), *rest]
        return batch

    async def read_nothing(start: object, end: object) -> list[Record]:
        return []

    monkeypatch.setattr(transport, "fetch", misnumber_the_second)
    monkeypatch.setattr(transport, "read", read_nothing)
    transport.stopped.set()
    await transport.serve(worker)
    assert sources(broker) == ["clicks-0-0", "clicks-0-2", "clicks-0-3", "clicks-1-0"]
    (letter,) = broker.messages["dead_letters"]
    assert ("offset", b"1") in letter.headers
    assert broker.positions[0].next_offset == 4


class OneByOne(MemoryTransport):
    """Fetches one record at a time, and notes what the worker asks for in which order."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.calls: list[tuple[str, int]] = []
        self.stopped.set()

    async def fetch(self) -> Batch | None:
        for p, begin in self._fetched.items():
            for record in self.broker.input[p]:
                if record.offset >= begin:
                    self._fetched[p] = record.offset + 1
                    self.calls.append(("fetch", record.offset))
                    return Batch({p: [record]}, 0)
        return None

    async def commit(self, batch: Batch, transaction: Transaction) -> None:
        await asyncio.sleep(0.01)
        self.calls.append(("commit", offset_of(batch)))
        await super().commit(batch, transaction)

    def acknowledge(self, batch: Batch) -> None:
        self.calls.append(("acknowledge", offset_of(batch)))


def offset_of(batch: Batch) -> int:
    ((record,),) = batch.records.values()
    return record.offset


async def test_batches_are_committed_in_order_and_each_is_planned_on_the_one_before(
    broker: MemoryBroker,
) -> None:
    for n in range(5):
        broker.produce(0, *click("s", ITEMS[n % 3], 1000 + n))
    transport = OneByOne(broker)
    worker, metrics = worker_on(transport)
    await transport.serve(worker)
    calls = transport.calls
    assert [call for call in calls if call[0] == "commit"] == [("commit", n) for n in range(5)]
    assert all(calls.index(("acknowledge", n)) > calls.index(("commit", n)) for n in range(5))
    ahead = calls.index(("fetch", 1)) < calls.index(("commit", 0))
    assert ahead, "the next batch is planned while the one before is committed"
    # Were it planned on what is committed, four clicks would begin the session once more.
    (_, last) = broker.changelog[0][-1]
    assert last is not None
    assert decode_state(last).n_clicks == 5
    assert metrics.registry.get_sample_value("recs_live_predictions_total", IN_ORDER) == 4


async def test_a_lost_transaction_publishes_and_counts_nothing_and_what_comes_again_is_answered(
    broker: MemoryBroker,
) -> None:
    for n in range(4):
        broker.produce(0, *click("s", ITEMS[n % 3], 1000 + n))
    transport = Losing(broker)
    worker, metrics = worker_on(transport)
    await transport.serve(worker)
    value = metrics.registry.get_sample_value
    assert value("recs_lost_transactions_total") == 1
    assert value("recs_clicks_total", {"outcome": "model"}) == 4
    assert sources(broker) == [f"clicks-0-{n}" for n in range(4)]
    (_, last) = broker.changelog[0][-1]
    assert last is not None
    assert decode_state(last).n_clicks == 4
    acknowledged = [offset for what, offset in transport.calls if what == "acknowledge"]
    fetched = [offset for what, offset in transport.calls if what == "fetch"]
    assert sorted(acknowledged) == sorted(fetched), "the lost ones too"
    assert len(fetched) > 4, "they came again"


class Losing(OneByOne):
    """Loses its second transaction, and restores as the real one does."""

    epoch = 0
    n_commits = 0

    async def serve(self, processor: Processor) -> None:
        self.processor = processor
        await super().serve(processor)

    async def fetch(self) -> Batch | None:
        batch = await super().fetch()
        return batch and Batch(batch.records, self.epoch)

    def is_current(self, batch: Batch) -> bool:
        return batch.epoch >= self.epoch

    async def commit(self, batch: Batch, transaction: Transaction) -> None:
        self.n_commits += 1
        if self.n_commits != 2:
            await super().commit(batch, transaction)
            return
        self.epoch += 1
        self.processor.drop(range(self.broker.n_partitions))
        self.restore(self.processor)
        raise TransactionLostError("fenced")


class Poisoned(Models):
    """Meets a bug at the click b"poison"."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        parse = self.parse

        def parse_or_fail(record: Record) -> Click | BadClick:
            if record.value == b"poison":
                raise ZeroDivisionError
            return parse(record)

        self.parse = parse_or_fail  # type: ignore[assignment]


class Beyond(FakeScorer):
    """Lists no item of the catalogue where "c" was clicked."""

    def __init__(self, index: int) -> None:
        super().__init__(np.eye(3)[::-1], 2)
        self.index = index

    def rank(
        self, query: np.ndarray, bias: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        top_index, top_score = super().rank(query, bias)
        return np.where(query == 3, np.int32(self.index), top_index), top_score


@pytest.mark.parametrize(
    ("models", "limit", "ill"),
    [
        (Poisoned(), 1000, b"poison"),
        (Models(Model(bundle_of(ITEMS, 2), Beyond(1000))), 1000, click("s0", "c", 1049)[1]),
        (Models(Model(bundle_of(ITEMS, 2), Beyond(-1))), 1000, click("s0", "c", 1049)[1]),
        (Models(MODEL), 1, b"no click"),
    ],
    ids=["a bug", "a list beyond the catalogue", "one before it", "the limit"],
)
@pytest.mark.parametrize("pass_over", [False, True])
async def test_an_ill_partition_is_paused_alone_and_goes_on_when_it_is_told_to(
    broker: MemoryBroker, models: Models, limit: int, ill: bytes, pass_over: bool
) -> None:
    """All in one batch, which is taken apart: what comes before the ill record is answered."""
    for partition in range(2):
        for n in range(40):
            broker.produce(partition, *click(f"s{partition}", "a", 1000 + n))
    broker.produce(0, b"s0", ill)
    broker.produce(0, *click("s0", "b", 1050))
    transport = MemoryTransport(broker)
    rules = Rules(1000, 0, BadClickLimit(limit, 1.0))
    metrics = Metrics(CollectorRegistry())
    worker = Worker(transport, Planner(models, rules, "clicks"), metrics)
    serving = asyncio.create_task(transport.serve(worker))

    async def until(next_offsets: list[int], paused: list[int]) -> None:
        gauge = partial(metrics.registry.get_sample_value, "recs_paused_partition")
        found: object = None
        async with asyncio.timeout(10):
            while found != (next_offsets, paused):
                await asyncio.sleep(0.001)  # the worker has no event for it
                await worker.observe()
                offsets = [position.next_offset for _, position in sorted(broker.positions.items())]
                found = (offsets, [gauge({"partition": p}) for p in "01"])

    await until([40, 40], [1, 0])
    broker.produce(1, *click("s1", "a", 1050))
    await until([40, 41], [1, 0])
    assert await worker.resume(1, 0, pass_over=pass_over) is None
    assert await worker.resume(0, 41, pass_over=pass_over) == 40
    is_limit = ill == b"no click"
    goes_on = pass_over or is_limit
    await until([42 if goes_on else 40, 41], [not goes_on, 0])
    transport.stopped.set()
    await serving
    letters = broker.messages[Target.DEAD_LETTERS]
    reason = b"not_json" if is_limit else b"unprocessable"
    assert [dict(letter.headers)["reason"] for letter in letters] == [reason] * goes_on
    assert len(set(sources(broker))) == len(sources(broker)) == 81 + goes_on
