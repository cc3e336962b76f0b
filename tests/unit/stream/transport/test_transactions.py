"""What a worker asks the brokers for in a transaction, and what it makes of their answers."""

import asyncio
from collections import deque
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse_v0,
    EndTxnRequest,
    EndTxnResponse_v0,
)
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.structs import TopicPartition
from confluent_kafka import KafkaError, KafkaException

from stream.contract.records import Message
from stream.errors import StreamError
from stream.position import POSITION_KEY, Position, decode_position
from stream.settings import KafkaSettings, Wiring
from stream.transport import transactions
from stream.transport.clients import BATCH_BYTES
from stream.transport.protocol import Membership, Transaction, TransactionLostError
from stream.transport.transactions import (
    Brokers,
    Delivery,
    TransactionalProducer,
    transactional_ids,
)
from stream.transport.wire import (
    ApiVersionsResponse,
    DescribeTransactions,
    DescribeTransactionsResponse,
    EndTxn,
    EndTxnResponse,
    InitProducerId,
    InitProducerIdResponse,
    Produce,
    ProduceResponse,
    TxnOffsetCommit,
    TxnOffsetCommitResponse,
)

OURS = Membership(5, "me")


def no_ends(targets: Any) -> dict[tuple[str, int], tuple[int, int]]:
    return {}


Answer = int | Exception


class FakeBrokers(Brokers):
    """Two brokers, of which 1 leads even partitions; ``answers``: the next codes by request."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, Any]] = []
        self.answers: dict[type, deque[Answer]] = {}
        self.n_forgotten = 0
        self.epoch = 0
        self.states: dict[str, str] = {}
        self.partitions = {"in": 4, "log": 4, "out": 2}
        self.n_ended = self.n_seen = 0
        self.hanging: set[tuple[str, int]] = set()

    # what Brokers is to the others
    client = property(lambda self: self)
    cluster = client

    async def start(self, topics: Any) -> None: ...
    async def close(self) -> None: ...

    async def coordinator(self, kind: Any, key: str) -> int:
        return 9

    async def open_in(self, targets: Any, patience_s: float = 1.0) -> set[tuple[str, int]]:
        return self.hanging & {*targets}

    async def forget(self) -> None:
        self.n_forgotten += 1

    def n_partitions(self, topic: str) -> int:
        return self.partitions[topic]

    def leader_for_partition(self, tp: TopicPartition) -> int | None:
        return 1 if tp.partition % 2 == 0 else 2

    def will_answer(self, request: type, *answers: Answer) -> None:
        self.answers[request] = deque(answers)

    def sent(self, kind: type) -> list[Any]:
        return [request for _, request in self.requests if isinstance(request, kind)]

    async def send(self, node: int, request: Any, group: Any = None) -> Any:
        self.requests.append((node, request))
        answers = self.answers.get(type(request))
        code = answers.popleft() if answers else 0
        if isinstance(code, Exception):
            raise code
        if isinstance(request, InitProducerId | EndTxn):
            self.epoch += not code
            kind = InitProducerIdResponse if isinstance(request, InitProducerId) else EndTxnResponse
            return kind(0, code, 1000, self.epoch, {})
        if isinstance(request, DescribeTransactions):
            (name,) = request.transactional_ids
            known = 0 if name in self.states else 105
            state: tuple[Any, ...] = (known, name, self.states.get(name, ""), 0, 0, 1, 1, [], {})
            return DescribeTransactionsResponse(0, [state], {})
        if isinstance(request, AddPartitionsToTxnRequest):
            return AddPartitionsToTxnResponse_v0(0, [("t", [(0, code)])])
        if isinstance(request, AddOffsetsToTxnRequest | EndTxnRequest):
            return EndTxnResponse_v0(0, code)
        topics: list[Any] = fields(request)["topics"]
        produced = isinstance(request, Produce)
        rest: tuple[Any, ...] = (0, 0, 0, [], None, {}) if produced else ({},)
        codes: list[Any] = [(t, [(p[0], code, *rest) for p in ps], {}) for t, ps, _ in topics]
        return ProduceResponse(codes, 0, {}) if produced else TxnOffsetCommitResponse(0, codes, {})


def fields(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.SCHEMA.names}


def batches(request: Produce) -> dict[tuple[str, int], DefaultRecordBatch]:
    return {
        (topic, partition): DefaultRecordBatch(records)
        for topic, partitions, _ in fields(request)["topics"]
        for partition, records, _ in partitions
    }


@pytest.fixture
def brokers() -> FakeBrokers:
    return FakeBrokers()


@pytest.fixture
async def producer(brokers: FakeBrokers) -> TransactionalProducer:
    producer = TransactionalProducer(brokers, "a-0")
    await producer.start()
    brokers.requests.clear()
    return producer


# -- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "n_forgotten"),
    [
        ([0], 0),
        ([51, 51, 0], 0),  # the markers of the last one: it only waits
        ([14, 15, 16, 0], 3),  # the coordinator moves: it looks for it again
        ([KafkaConnectionError(), TimeoutError(), OSError(), 0], 3),
    ],
)
async def test_a_request_is_repeated_until_the_brokers_take_it(
    brokers: FakeBrokers,
    producer: TransactionalProducer,
    answers: list[Answer],
    n_forgotten: int,
) -> None:
    brokers.will_answer(EndTxn, *answers)
    await producer.end(commit=True)
    assert len(brokers.requests) == len(answers)
    assert brokers.n_forgotten == n_forgotten


@pytest.mark.parametrize("code", [25, 45, 47, 48, 49, 59, 90])
async def test_a_producer_that_was_fenced_or_lost_its_state_has_lost_its_transaction(
    brokers: FakeBrokers, producer: TransactionalProducer, code: int
) -> None:
    brokers.will_answer(EndTxn, code)
    with pytest.raises(TransactionLostError, match="EndTxn of transactional id a-0: "):
        await producer.end(commit=True)
    assert len(brokers.requests) == 1


@pytest.mark.parametrize("code", [29, 30, 53])
async def test_what_brokers_refuse_for_good_is_a_wrong_deployment(
    brokers: FakeBrokers, producer: TransactionalProducer, code: int
) -> None:
    brokers.will_answer(EndTxn, code)
    with pytest.raises(StreamError, match="the brokers rejected EndTxn of transactional id a-0: "):
        await producer.end(commit=True)


async def test_a_request_without_an_answer_ends_with_the_transactions_timeout(
    brokers: FakeBrokers, producer: TransactionalProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "TRANSACTION_TIMEOUT_S", 0.05)
    brokers.will_answer(EndTxn, *[TimeoutError()] * 1000)
    with pytest.raises(TransactionLostError):
        await producer.end(commit=True)
    assert len(brokers.requests) > 1


# -- offsets ----------------------------------------------------------------------------------


async def test_offsets_go_with_the_generation_and_after_a_rebalance_with_the_next_one(
    brokers: FakeBrokers, producer: TransactionalProducer
) -> None:
    memberships = deque([Membership(5, "me"), Membership(6, "me")])
    brokers.will_answer(TxnOffsetCommit, 22, 0)
    await producer.send_offsets("g", memberships.popleft, "in", {0: 7, 3: 9})
    sent = [fields(request) for request in brokers.sent(TxnOffsetCommit)]
    assert [(s["group_id"], s["generation_id"], s["member_id"]) for s in sent] == [
        ("g", 5, "me"),
        ("g", 6, "me"),
    ]
    assert sent[0]["topics"] == [("in", [(0, 7, -1, None, {}), (3, 9, -1, None, {})], {})]
    assert brokers.n_forgotten == 0, "nobody has moved"


@pytest.mark.parametrize(
    "membership", [Membership(-1, ""), Membership(-1, "me"), Membership(5, "")]
)
async def test_who_is_no_member_sends_no_offsets_since_they_would_fence_nothing(
    brokers: FakeBrokers, producer: TransactionalProducer, membership: Membership
) -> None:
    with pytest.raises(TransactionLostError, match="no longer a member"):
        await producer.send_offsets("g", lambda: membership, "in", {0: 7})
    assert brokers.requests == []


# -- records ----------------------------------------------------------------------------------


async def test_one_request_a_broker_carries_all_partitions_and_only_what_failed_is_repeated(
    brokers: FakeBrokers, producer: TransactionalProducer
) -> None:
    brokers.will_answer(Produce, 0, 6, 46)  # not the leader any more; then: it has the batch
    records = {("out", p): [Message(b"k", b"%d" % p, (("h", b"v"),))] for p in range(4)}
    await producer.send_records(records)
    asked = [(node, sorted(batches(r))) for node, r in brokers.requests]
    assert sorted(asked[:2]) == [(n, [("out", n - 1), ("out", n + 1)]) for n in (1, 2)]
    assert asked[2] == asked[1]
    assert brokers.n_forgotten == 1
    (record,) = batches(brokers.sent(Produce)[0])["out", 0]
    assert (record.key, record.value, record.headers) == (b"k", b"0", [("h", b"v")])


async def test_sequences_go_on_over_batches_and_begin_anew_after_the_transaction(
    brokers: FakeBrokers, producer: TransactionalProducer
) -> None:
    some = [Message(b"k", b"v")] * 3
    await producer.send_records({("out", 0): some})
    await producer.send_records({("out", 0): some[:1], ("out", 2): some})
    await producer.end(commit=True)
    await producer.send_records({("out", 0): some})
    found = [{tp: b.base_sequence for tp, b in batches(r).items()} for r in brokers.sent(Produce)]
    assert found == [{("out", 0): 0}, {("out", 0): 3, ("out", 2): 0}, {("out", 0): 0}]
    epochs = [batches(r)["out", 0].producer_epoch for r in brokers.sent(Produce)]
    assert epochs == [1, 1, 2], "of the answer that ended the transaction"
    assert all(batches(r)["out", 0].is_transactional for r in brokers.sent(Produce))


async def test_many_records_go_in_batches_that_brokers_take_and_a_large_one_goes_alone(
    brokers: FakeBrokers, producer: TransactionalProducer
) -> None:
    sizes = [400_000] * 5 + [2 * BATCH_BYTES] + [10]
    await producer.send_records({("out", 0): [Message(None, bytes(size)) for size in sizes]})
    found = [batches(request)["out", 0] for request in brokers.sent(Produce)]
    counts = [[len(record.value) for record in batch] for batch in found]
    assert [size for batch in counts for size in batch] == sizes, "all of them, in order"
    assert all(sum(batch) <= BATCH_BYTES or len(batch) == 1 for batch in counts)
    assert [b.base_sequence for b in found] == [
        sum(map(len, counts[:n])) for n in range(len(found))
    ]


# -- a whole transaction ------------------------------------------------------------------------


@pytest.fixture
async def delivery(brokers: FakeBrokers, monkeypatch: pytest.MonkeyPatch) -> Delivery:
    monkeypatch.setattr(transactions, "Brokers", lambda *_: brokers)
    wiring = Wiring("g", "in", "log", {"answers": "out"})
    delivery = Delivery(KafkaSettings(), wiring, "owner", lambda: OURS, no_ends)
    await delivery.start()
    return delivery


def batch(partition: int = 3) -> Transaction:
    transaction = Transaction(positions={partition: Position(8, "t", owner="owner")})
    transaction.messages["answers"][partition].append(Message(b"k", b"answer"))
    transaction.changelog[partition] |= {b"s": b"state", b"dead": None}
    return transaction


async def test_a_batch_is_offsets_then_records_then_the_end_and_the_position_comes_last(
    brokers: FakeBrokers, delivery: Delivery
) -> None:
    brokers.requests.clear()
    await delivery.commit(batch())
    kinds = [type(request) for _, request in brokers.requests]
    assert kinds == [TxnOffsetCommit, Produce, EndTxn]
    (produced,) = brokers.sent(Produce)
    found = batches(produced)
    # The output has two partitions: what comes of partition 3 goes to 1.
    assert [(r.key, r.value) for r in found["out", 1]] == [(b"k", b"answer")]
    *changes, (key, value) = [(r.key, r.value) for r in found["log", 3]]
    assert changes == [(b"s", b"state"), (b"dead", None)]
    assert key == POSITION_KEY
    assert decode_position(value) == Position(8, "t", owner="owner")
    (offsets,) = brokers.sent(TxnOffsetCommit)
    assert fields(offsets)["topics"] == [("in", [(3, 8, -1, None, {})], {})]
    assert fields(brokers.sent(EndTxn)[0])["committed"]


async def test_two_ids_take_turns(brokers: FakeBrokers, delivery: Delivery) -> None:
    started = [fields(r)["transactional_id"] for r in brokers.sent(InitProducerId)]
    assert sorted(started) == ["owner-0", "owner-1"] == sorted(transactional_ids("owner"))
    for _ in range(3):
        await delivery.commit(batch())
    ended = [fields(request)["transactional_id"] for request in brokers.sent(EndTxn)]
    assert ended == ["owner-0", "owner-1", "owner-0"]


@pytest.mark.parametrize("at", [TxnOffsetCommit, Produce, EndTxn])
async def test_after_a_lost_transaction_nothing_is_written_before_our_ids_are_fenced(
    brokers: FakeBrokers, delivery: Delivery, at: type
) -> None:
    brokers.will_answer(at, 90)
    with pytest.raises(TransactionLostError):
        await delivery.commit(batch())
    brokers.requests.clear()
    with pytest.raises(TransactionLostError, match="an earlier transaction was lost"):
        await delivery.commit(batch())
    assert brokers.requests == []
    await delivery.start()
    await delivery.commit(batch())
    assert [type(request) for _, request in brokers.requests] == [
        *(DescribeTransactions, DescribeTransactions),
        *(InitProducerId, InitProducerId),
        *(TxnOffsetCommit, Produce, EndTxn),
    ]


@pytest.mark.parametrize("n_partitions", [1, 4])
async def test_an_output_whose_partitions_messages_name_must_keep_them(
    brokers: FakeBrokers, monkeypatch: pytest.MonkeyPatch, n_partitions: int
) -> None:
    """Fewer are not there to be written to, and of more other processes know already."""
    monkeypatch.setattr(transactions, "Brokers", lambda *_: brokers)
    wiring = Wiring("g", "in", "log", {"events": "out"}, scattered=frozenset({"events"}))
    delivery = Delivery(KafkaSettings(), wiring, "owner", lambda: OURS, no_ends)
    await delivery.start()
    transaction = Transaction(positions={3: Position(8, "t", owner="owner")})
    transaction.messages["events"][3].append(Message(None, b"event", partition=1))
    await delivery.commit(transaction)
    brokers.partitions["out"] = n_partitions
    with pytest.raises(StreamError, match=rf"out has {n_partitions} partitions, and had 2 at the"):
        await delivery.commit(transaction)


@pytest.mark.parametrize("commit", [False, True])
async def test_what_hangs_is_ended_in_every_topic_of_the_partition_and_writes_no_record(
    brokers: FakeBrokers, delivery: Delivery, commit: bool
) -> None:
    brokers.requests.clear()
    brokers.states["former-0"] = "PrepareCommit" if commit else "PrepareAbort"
    ending = asyncio.create_task(delivery.end_hanging("former-0", [2], commit=commit))
    async with asyncio.timeout(5):
        while len(brokers.requests) < 7:  # noqa: ASYNC110  # the task has no event for it
            await asyncio.sleep(0.001)
    assert not ending.done(), "its markers are being written"
    brokers.states["former-0"] = "CompleteCommit" if commit else "CompleteAbort"
    await ending
    _, init, partitions, offsets, end, *_ = (request for _, request in brokers.requests)
    assert fields(init)["transactional_id"] == "former-0"
    assert sorted(partitions._topics) == [("log", [2]), ("out", [0])]
    assert offsets._group_id == "g"
    assert end._transaction_result == commit


async def test_what_became_of_our_own_last_transactions_is_asked_before_we_start_again(
    brokers: FakeBrokers, delivery: Delivery
) -> None:
    brokers.states = {"owner-0": "CompleteCommit", "owner-1": "Ongoing"}
    brokers.will_answer(EndTxn, 90)
    with pytest.raises(TransactionLostError):
        await delivery.commit(batch())
    brokers.requests.clear()
    await delivery.start()
    assert delivery.committed == {"owner-0": True, "owner-1": False}
    asked = [type(request) for _, request in brokers.requests]
    assert asked == [DescribeTransactions] * 2 + [InitProducerId] * 2
    brokers.states = {"owner-0": "Empty", "owner-1": "CompleteCommit", "former": "PrepareCommit"}
    brokers.states["other"] = "Ongoing"
    assert await delivery.note([*brokers.states, "unknown"]) == {"other"}
    known = {"owner-0": True, "owner-1": True, "former": True, "other": False}
    assert delivery.committed == known


@pytest.mark.parametrize("by", ["commit", "look"])
async def test_where_a_connection_has_ended_what_hangs_of_ours_is_committed_before_more_is_written(
    brokers: FakeBrokers, delivery: Delivery, by: str
) -> None:
    await delivery.commit(batch(1))
    await delivery.commit(batch(3))
    brokers.states = {"owner-0": "CompleteCommit", "owner-1": "CompleteCommit"}
    brokers.requests.clear()
    brokers.hanging = {("log", 1)}
    await delivery.look()
    assert brokers.requests == [], "nobody looks without a reason"
    brokers.n_ended = 1
    await (delivery.look() if by == "look" else delivery.commit(batch(3)))
    (partitions,) = brokers.sent(AddPartitionsToTxnRequest)
    assert partitions._transactional_id == "owner-0"
    assert sorted(partitions._topics) == [("log", [1]), ("out", [1])]
    (end,) = brokers.sent(EndTxnRequest)
    assert end._transaction_result
    kinds = [type(request) for _, request in brokers.requests]
    batch_of = [TxnOffsetCommit, Produce, EndTxn] * (by == "commit")
    assert kinds[-2 - len(batch_of) :] == [*[InitProducerId] * 2, *batch_of], "our ids are ours"
    brokers.requests.clear()
    await delivery.look()
    assert brokers.requests == [], "once is enough"


async def test_nothing_is_written_over_a_new_connection_behind_what_hangs(
    brokers: FakeBrokers, delivery: Delivery
) -> None:
    """Its end would end both, and it may be an abort."""
    await delivery.commit(batch(3))
    brokers.requests.clear()
    send = brokers.send

    async def end_connection(node: int, request: Any, group: Any = None) -> Any:
        if isinstance(request, TxnOffsetCommit):
            brokers.n_ended, brokers.hanging = 1, {("log", 3)}
        return await send(node, request, group)

    brokers.send = end_connection  # type: ignore[method-assign]
    with pytest.raises(TransactionLostError, match=r"'log', 3\)\} hang"):
        await delivery.commit(batch(3))
    assert brokers.sent(Produce) == []


async def test_where_nobody_says_what_is_open_the_transaction_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Partitions without a leader, as a broker that starts or shuts down has them."""
    monkeypatch.setattr(transactions, "TRANSACTION_TIMEOUT_S", 0.3)
    answers: list[Any] = [
        KafkaException(KafkaError(KafkaError._NOENT)),
        TimeoutError(),
        {("log", 1): (5, 6), ("log", 2): (6, 6)},
    ]

    def ends_of(targets: Any) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    brokers = Brokers(KafkaSettings(), ends_of)
    assert await brokers.open_in([("log", 1), ("log", 2)], 0.0) == {("log", 1)}
    answers[:] = [KafkaException(KafkaError(KafkaError._NOENT))]
    with pytest.raises(TransactionLostError, match="no broker says what is open"):
        await brokers.open_in([("log", 1)])


async def test_a_restart_commits_what_hangs_also_where_the_last_transaction_was_lost(
    brokers: FakeBrokers, delivery: Delivery
) -> None:
    """What the coordinator says of an id is of its last transaction."""
    for partition in (1, 2):
        await delivery.commit(batch(partition))
    brokers.will_answer(Produce, 90)
    with pytest.raises(TransactionLostError):
        await delivery.commit(batch(3))  # of the id that has written to partition 1
    brokers.states = {"owner-0": "Ongoing", "owner-1": "CompleteCommit"}
    brokers.hanging = {("log", p) for p in (1, 2, 3)}
    brokers.requests.clear()
    await delivery.start()
    ended = {r._transactional_id: dict(r._topics) for r in brokers.sent(AddPartitionsToTxnRequest)}
    assert {name: topics["log"] for name, topics in ended.items()} == {
        "owner-0": [1],
        "owner-1": [2],
    }
    assert all(end._transaction_result for end in brokers.sent(EndTxnRequest))


# -- old brokers --------------------------------------------------------------------------------


class FakeClient:
    """aiokafka's client at a cluster of some transaction.version."""

    level = 2
    closed = False
    n_ended = 0

    def __init__(self, **options: Any) -> None: ...
    async def bootstrap(self) -> None: ...
    async def set_topics(self, topics: Any) -> None: ...

    async def close(self) -> None:
        type(self).closed = True

    def get_random_node(self) -> int:
        return 0

    async def send(self, node: int, request: Any) -> ApiVersionsResponse:
        name = b"transaction.version"
        rows = b"\2" + bytes([len(name) + 1]) + name + bytes([0, self.level, 0, 0, 0])
        tags = bytes([1, 2, len(rows)]) + rows
        response: ApiVersionsResponse = ApiVersionsResponse.decode(
            BytesIO(bytes(2) + b"\1" + bytes(4) + tags)
        )
        return response


@pytest.mark.parametrize(("level", "is_refused"), [(0, True), (1, True), (2, False), (3, False)])
async def test_brokers_without_the_second_protocol_are_refused_in_one_sentence(
    level: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Callable[..., Any] = type("Client", (FakeClient,), {"level": level})
    monkeypatch.setattr(transactions, "_Client", client)
    brokers = Brokers(KafkaSettings(), no_ends)
    if not is_refused:
        await brokers.start(["t"])
        await brokers.close()
        return
    with pytest.raises(StreamError) as refusal:
        await brokers.start(["t"])
    said = f"the brokers at 127.0.0.1:9092 have transaction.version={level}, expected at least 2"
    assert str(refusal.value).startswith(said)
    assert vars(client)["closed"]
