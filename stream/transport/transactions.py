"""One Kafka transaction a batch, over all its partitions, fenced by the group's generation.

The consumer's offsets travel in the transaction with the group's generation (KIP-447), which the
broker checks: a worker that was expelled commits nothing. Two transactional ids take turns, since
the broker writes the markers of one while the next transaction of the other begins: 2.9 ms a batch
against 4.7.

A broker that shuts down may lose markers of a transaction that it calls complete (see
``end_hanging``). The next transaction of the same id would end what hangs, as its own end has it,
so where a connection has ended nothing is written behind an end that may hang.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import structlog
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import BrokerResponseError
from aiokafka.errors import KafkaError as ClientError
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
)
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from confluent_kafka import KafkaError, KafkaException

from stream.contract.records import Message
from stream.errors import StreamError
from stream.position import POSITION_KEY, encode_position
from stream.settings import KafkaSettings, Wiring
from stream.transport.clients import BATCH_BYTES, aiokafka_options
from stream.transport.protocol import Membership, Transaction, TransactionLostError
from stream.transport.wire import (
    ApiVersions,
    DescribeTransactions,
    EndTxn,
    InitProducerId,
    Produce,
    TxnOffsetCommit,
    by_topic,
    from_topics,
    partitions_by_topic,
)

log = structlog.get_logger(__name__)

TRANSACTION_TIMEOUT_S = 10.0
"""The broker aborts what is open for longer; so long is a request repeated, too."""
MARKERS_S = 1.0
"""A transaction that has ended has its markers soon after."""
_COMMITS = {"CompleteCommit", "PrepareCommit"}
_ABORTS = {"CompleteAbort", "PrepareAbort", "Ongoing"}
"""How a transaction ends, by what its coordinator calls it, if its id is started now."""
_TransactionPartition = tuple[str, int]
EndsOf = Callable[
    [Collection[_TransactionPartition]], Mapping[_TransactionPartition, tuple[int, int]]
]
"""The last stable offset and the end of each; blocks, and raises KafkaException."""

_TIMEOUT_MS = round(TRANSACTION_TIMEOUT_S * 1000)
_NO_ANSWER = (ClientError, TimeoutError, OSError)

# Error codes of Kafka's protocol.
_DONE = {0, 46}  # 46: the broker has the batch already
_CONCURRENT = 51  # the markers of the last transaction are being written
_UNREACHABLE = 13
_UNKNOWN_ID = 105
_REBALANCED = {22, 27, 113}  # another generation: ask again with the one that we are of
_AGAIN = _REBALANCED | {-1, 3, 5, 6, 7, 8, 9, _UNREACHABLE, 14, 15, 16, 19, 20, 41, _CONCURRENT, 56}
_LOST = {25, 45, 47, 48, 49, 52, 59, 82, 90, 120}


def transactional_ids(owner: str) -> tuple[str, ...]:
    """The ids that a worker's transactions take turns with; ``owner`` is its ``Position.owner``."""
    return f"{owner}-0", f"{owner}-1"


class _Client(AIOKafkaClient):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's client, which counts the connections that have ended."""

    n_ended = 0

    def _on_connection_closed(self, conn: Any, reason: Any) -> None:
        self.n_ended += 1
        super()._on_connection_closed(conn, reason)


class Brokers:
    """aiokafka's client, and which brokers coordinate what.

    n_seen: of the connections that have ended, those behind which markers have been looked for.
    """

    def __init__(self, settings: KafkaSettings, ends_of: EndsOf) -> None:
        self.n_seen = 0
        self._settings, self._ends_of = settings, ends_of
        self._client: _Client | None = None
        self._coordinators: dict[tuple[CoordinationType, str], int] = {}

    async def start(self, topics: Collection[str]) -> None:
        """Connect. Raises StreamError where the brokers speak no KIP-890, or a client's error."""
        if self._client is not None:
            return
        client = _Client(
            **aiokafka_options(self._settings),
            request_timeout_ms=_TIMEOUT_MS,
        )
        try:
            await client.bootstrap()
            await client.set_topics(topics)
            answer = await client.send(client.get_random_node(), ApiVersions("nextclick", "0", {}))
        except BaseException:
            await client.close()
            raise
        if (found := answer.feature("transaction.version")) < 2:
            await client.close()
            raise StreamError(
                f"the brokers at {self._settings.bootstrap_servers} have transaction.version="
                f"{found}, expected at least 2 (Kafka 4.0 has it; after an upgrade, "
                "`kafka-features.sh upgrade --feature transaction.version=2` turns it on)"
            )
        self._client, self.n_seen = client, client.n_ended

    @property
    def client(self) -> _Client:
        assert self._client is not None, "started"
        return self._client

    async def open_in(
        self, targets: Collection[_TransactionPartition], patience_s: float = MARKERS_S
    ) -> set[_TransactionPartition]:
        """Where a transaction is open in what was written by now, and stays so for a while.

        Raises TransactionLostError where no broker answers within a transaction's timeout.
        """
        began = time.monotonic()
        first: dict[_TransactionPartition, int] = {}
        while True:
            try:
                found = await asyncio.to_thread(self._ends_of, targets)
            # A partition may have no leader, and one that is back may not know its epoch yet.
            except (KafkaException, TimeoutError) as error:
                if time.monotonic() - began > TRANSACTION_TIMEOUT_S:
                    raise TransactionLostError(f"no broker says what is open: {error}") from error
                await asyncio.sleep(0.2)
                continue
            first = first or {tp: end for tp, (_, end) in found.items()}
            still = {tp for tp, (stable, _) in found.items() if stable < first[tp]}
            if not still or time.monotonic() - began >= patience_s:
                return still
            await asyncio.sleep(0.05)

    async def coordinator(self, kind: CoordinationType, key: str) -> int:
        if (kind, key) not in self._coordinators:
            node = await self.client.coordinator_lookup(kind, key)
            self._coordinators[kind, key] = node
        return self._coordinators[kind, key]

    def n_partitions(self, topic: str) -> int:
        found = self.client.cluster.partitions_for_topic(topic)
        if not found:
            raise TransactionLostError(f"the brokers do not know the topic {topic}")
        return len(found)

    async def forget(self) -> None:
        """Look for leaders and coordinators again."""
        self._coordinators.clear()
        await asyncio.wait([self.client.force_metadata_update()], timeout=1.0)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


class TransactionalProducer:
    """One transactional id: at most one transaction at a time."""

    def __init__(self, brokers: Brokers, transactional_id: str) -> None:
        self._brokers = brokers
        self._id = transactional_id
        self._producer = (-1, -1)  # id and epoch
        self._sequences: defaultdict[_TransactionPartition, int] = defaultdict(int)

    async def start(self) -> None:
        """Fence whoever has the id: its open transaction is aborted."""

        async def init() -> set[int]:
            request = InitProducerId(self._id, _TIMEOUT_MS, -1, -1, {})
            answer = await self._to_coordinator(CoordinationType.TRANSACTION, self._id, request)
            self._producer = (answer.producer_id, answer.producer_epoch)
            return {answer.error_code}

        await self._repeat("InitProducerId", init)
        self._sequences.clear()

    async def send_offsets(
        self,
        group_id: str,
        membership: Callable[[], Membership],
        topic: str,
        offsets: Mapping[int, int],
    ) -> None:
        """Commit offsets in the transaction. Before any record: both would begin it.

        Where a rebalance has made another generation, the latest membership is asked for: the
        caller still owns the partitions, since giving them up waits for it.
        """
        topics = by_topic({(topic, p): (offset, -1, None) for p, offset in offsets.items()})

        async def commit() -> set[int]:
            generation, member_id = membership()
            if generation < 0 or not member_id:
                # The broker takes generation -1 for a consumer without a group, and fences nothing.
                raise TransactionLostError("no longer a member of the group")
            request = TxnOffsetCommit(
                self._id, group_id, *self._producer, generation, member_id, None, topics, {}
            )
            answer = await self._to_coordinator(CoordinationType.GROUP, group_id, request)
            return set(from_topics(answer.topics).values())

        await self._repeat("TxnOffsetCommit", commit)

    async def send_records(self, records: Mapping[_TransactionPartition, list[Message]]) -> None:
        """Append records, in one request a broker unless they are many.

        Over a new connection not where anything is open. Raises TransactionLostError then.
        """
        batches = {tp: self._batches(tp, messages) for tp, messages in records.items()}
        while batches:
            pending = {tp: of_tp.pop(0) for tp, of_tp in batches.items()}
            batches = {tp: of_tp for tp, of_tp in batches.items() if of_tp}

            async def produce(pending: dict[_TransactionPartition, bytes] = pending) -> set[int]:
                is_new = self._brokers.client.n_ended != self._brokers.n_seen
                if is_new and (hanging := await self._brokers.open_in(pending.keys())):
                    raise TransactionLostError(f"a connection has ended, and {hanging} hang")
                leaders: dict[int, dict[_TransactionPartition, bytes]] = {}
                for tp, batch in pending.items():
                    leader = self._brokers.client.cluster.leader_for_partition(TopicPartition(*tp))
                    leaders.setdefault(-1 if leader is None else leader, {})[tp] = batch
                sent = (self._produce(node, of_node) for node, of_node in leaders.items())
                codes = {tp: code for answer in await asyncio.gather(*sent) for tp, code in answer}
                for tp in [tp for tp, code in codes.items() if code in _DONE]:
                    del pending[tp]
                return set(codes.values())

            await self._repeat("Produce", produce)

    async def end(self, *, commit: bool) -> None:
        """Commit or abort. Raises TransactionLostError where the outcome stays unknown."""

        async def end() -> set[int]:
            request = EndTxn(self._id, *self._producer, commit, {})
            answer = await self._to_coordinator(CoordinationType.TRANSACTION, self._id, request)
            if not answer.error_code:
                self._producer = (answer.producer_id, answer.producer_epoch)
                self._sequences.clear()
            return {answer.error_code}

        await self._repeat("EndTxn", end)

    async def state(self) -> str:
        """What the coordinator says of the last transaction; "" where it knows none."""
        found = ""

        async def describe() -> set[int]:
            nonlocal found
            request = DescribeTransactions([self._id], {})
            answer = await self._to_coordinator(CoordinationType.TRANSACTION, self._id, request)
            ((code, _, found, *_),) = answer.transactions
            return {code} - {_UNKNOWN_ID}

        await self._repeat("DescribeTransactions", describe)
        return found

    async def end_in(
        self, topics: Mapping[str, Collection[int]], group_id: str, *, commit: bool
    ) -> None:
        """End a transaction without records in these partitions and the group's offsets.

        Returns once its markers are written. In the first protocol, whose transactions are told of
        their partitions.
        """
        coordinator = (CoordinationType.TRANSACTION, self._id)

        async def add_partitions() -> set[int]:
            named = [(topic, [*partitions]) for topic, partitions in topics.items()]
            request = AddPartitionsToTxnRequest(self._id, *self._producer, named)
            answer = await self._to_coordinator(*coordinator, request)
            return {code for _, partitions in answer.errors for _, code in partitions}

        async def add_offsets() -> set[int]:
            request = AddOffsetsToTxnRequest(self._id, *self._producer, group_id)
            return {(await self._to_coordinator(*coordinator, request)).error_code}

        async def end() -> set[int]:
            request = EndTxnRequest(self._id, *self._producer, commit)
            return {(await self._to_coordinator(*coordinator, request)).error_code}

        async def complete() -> set[int]:
            return {_CONCURRENT} if (await self.state()).startswith("Prepare") else set()

        await self._repeat("AddPartitionsToTxn", add_partitions)
        await self._repeat("AddOffsetsToTxn", add_offsets)
        await self._repeat("EndTxn", end)
        await self._repeat("EndTxn", complete)

    async def _produce(
        self, node: int, batches: Mapping[_TransactionPartition, bytes]
    ) -> list[tuple[_TransactionPartition, int]]:
        topics = by_topic({tp: (batch,) for tp, batch in batches.items()})
        try:
            request = Produce(self._id, -1, _TIMEOUT_MS, topics, {})
            answer = await self._brokers.client.send(node, request)
        except _NO_ANSWER:
            return [(tp, _UNREACHABLE) for tp in batches]
        return [*from_topics(answer.topics).items()]

    def _batches(self, tp: _TransactionPartition, messages: Iterable[Message]) -> list[bytes]:
        """The messages as few batches of records; a first record may be of any size."""
        now_ms = time.time_ns() // 1_000_000
        batches: list[bytes] = []
        builder, n_records = None, 0
        for key, value, headers in ((m.key, m.value, m.headers) for m in messages):
            if (
                builder is None
                or builder.append(n_records, now_ms, key, value, list(headers)) is None
            ):
                if builder is not None:
                    batches.append(bytes(builder.build()))
                sequence, n_records = self._sequences[tp] + n_records, 0
                self._sequences[tp] = sequence
                builder = DefaultRecordBatchBuilder(2, 0, 1, *self._producer, sequence, BATCH_BYTES)
                builder.append(0, now_ms, key, value, list(headers))
            n_records += 1
        if builder is not None:
            batches.append(bytes(builder.build()))
            self._sequences[tp] += n_records
        return batches

    async def _to_coordinator(self, kind: CoordinationType, key: str, request: object) -> Any:
        node = await self._brokers.coordinator(kind, key)
        return await self._brokers.client.send(node, request, group=ConnectionGroup.COORDINATION)

    async def _repeat(self, what: str, attempt: Callable[[], Awaitable[set[int]]]) -> None:
        """Make a request until the brokers take it.

        Raises TransactionLostError after the transaction's timeout or where somebody has fenced
        us, and StreamError where they refuse it for good.
        """
        deadline = time.monotonic() + TRANSACTION_TIMEOUT_S
        while True:
            try:
                codes = await attempt()
            except BrokerResponseError as error:
                codes = {error.errno}
            except _NO_ANSWER:
                codes = {_UNREACHABLE}
            codes -= _DONE
            if not codes:
                return
            names = ", ".join(KafkaError(c).name() for c in codes)
            said = f"{what} of transactional id {self._id}: {names}"
            if codes & _LOST or (codes <= _AGAIN and time.monotonic() > deadline):
                raise TransactionLostError(said)
            if not codes <= _AGAIN:
                raise StreamError(f"the brokers rejected {said}")
            if codes == {_CONCURRENT}:
                await asyncio.sleep(0.001)
            else:
                await asyncio.sleep(0.01)
                if not codes <= _REBALANCED:
                    await self._brokers.forget()


class Delivery:
    """The transactions of one worker. ``owner``: the name that its transactional ids begin with."""

    def __init__(
        self,
        settings: KafkaSettings,
        wiring: Wiring,
        owner: str,
        membership: Callable[[], Membership],
        ends_of: EndsOf,
    ) -> None:
        self._wiring = wiring
        self._membership = membership
        self._brokers = Brokers(settings, ends_of)
        self._ids = transactional_ids(owner)
        self._producers = [TransactionalProducer(self._brokers, name) for name in self._ids]
        self._started = False
        self.committed: dict[str, bool] = {}
        """Whether the last transaction of an id was, if anybody knows (see ``note``)."""
        # By id, the input partitions of its transactions since we have looked for markers: of those
        # that were committed, and of one whose end we have not been told.
        self._written: dict[str, set[int]] = {name: set() for name in self._ids}
        self._doubtful: dict[str, set[int]] = {name: set() for name in self._ids}
        self._scattered: dict[str, int] = {}  # their partitions, which the messages name
        self._one_at_a_time = asyncio.Lock()
        self._n_committed = 0

    async def start(self) -> None:
        """Fence our own ids, once: what we have left open is aborted or completed."""
        async with self._one_at_a_time:
            if not self._started:
                await self._start()

    async def _start(self) -> None:
        wiring = self._wiring
        topics = (wiring.input, wiring.changelog, *wiring.outputs.values())
        await self._brokers.start(topics)
        try:
            await self.note(self._ids)
            for name, partitions in self._doubtful.items():
                if self.committed.get(name):
                    self._written[name] |= partitions
                partitions.clear()
            await self._start_ids()
            if any(self._written.values()):
                await self._end_ours()
        except BaseException:
            await self._brokers.close()  # they may have other addresses by now
            raise
        self._started = True

    async def _start_ids(self) -> None:
        await asyncio.gather(*(producer.start() for producer in self._producers))

    async def _end_ours(self) -> None:
        """Commit what hangs of our own, also in partitions that others have by now.

        Soon, for nobody else knows how it ended: our start has made its coordinator forget.
        """
        n_ended = self._brokers.client.n_ended
        still = hung = await self._brokers.open_in(self._places())
        for name, partitions in self._written.items():
            if hanging := {p for p in partitions if not still.isdisjoint(self.targets(p))}:
                await self._end(name, hanging, commit=True)
                left = await self._brokers.open_in(still, 0.0)
                if ended_in := sorted(still - left):
                    where = {"partitions": sorted(hanging), "ended_in": ended_in}
                    log.warning("hanging_transaction_committed", transactional_id=name, **where)
                still = left
        if hung:
            await self._start_ids()
        self._all_seen(n_ended)

    def _places(self) -> set[_TransactionPartition]:
        """Where we have written since we have looked for markers."""
        return {tp for of_id in self._written.values() for p in of_id for tp in self.targets(p)}

    def _all_seen(self, n_ended: int) -> None:
        """What was written until so many connections had ended has its markers."""
        self._brokers.n_seen = n_ended
        for partitions in self._written.values():
            partitions.clear()

    async def commit(self, transaction: Transaction) -> None:
        """Commit a batch. Raises TransactionLostError, after which ``start`` comes first."""
        async with self._one_at_a_time:
            if not self._started:
                raise TransactionLostError("an earlier transaction was lost")
            await self._look()
            self._started = False  # until this one has succeeded
            which = self._n_committed % len(self._producers)
            self._n_committed += 1
            name, producer, wiring = self._ids[which], self._producers[which], self._wiring
            self._doubtful[name] |= transaction.positions.keys()
            offsets = {p: position.next_offset for p, position in transaction.positions.items()}
            await producer.send_offsets(wiring.group_id, self._membership, wiring.input, offsets)
            await producer.send_records(self._records(transaction))
            await producer.end(commit=True)
            self._written[name] |= self._doubtful[name]
            self._doubtful[name].clear()
            self._started = True

    async def look(self) -> None:
        """Where a connection has ended, look for the markers of what was written before.

        Raises TransactionLostError where no broker says how it is, after which ``start`` comes
        first.
        """
        async with self._one_at_a_time:
            if self._started:
                await self._look()

    async def _look(self) -> None:
        n_ended = self._brokers.client.n_ended
        if n_ended == self._brokers.n_seen:
            return
        self._started = False
        places = self._places()
        try:
            if places and await self._brokers.open_in(places):
                await self._start()
        except _NO_ANSWER as error:
            raise TransactionLostError(f"what hangs was not ended: {error}") from error
        self._all_seen(n_ended)
        self._started = True

    async def settled(self) -> None:
        """Wait until no transaction is under way."""
        async with self._one_at_a_time:
            pass

    async def fence(self, transactional_ids: Collection[str]) -> None:
        """Abort what others have left open; they cannot write any more."""
        await asyncio.gather(
            *(TransactionalProducer(self._brokers, name).start() for name in transactional_ids)
        )

    async def note(self, transactional_ids: Iterable[str]) -> set[str]:
        """Note in ``committed`` what becomes of the last transaction of each id.

        Before any of them is started, which aborts what is open and makes its coordinator forget.
        Returns the ids that have one open.
        """
        names = [*transactional_ids]
        found = await asyncio.gather(
            *(TransactionalProducer(self._brokers, name).state() for name in names)
        )
        states = dict(zip(names, found, strict=True))
        for name, state in states.items():
            if state in _COMMITS or state in _ABORTS:
                self.committed[name] = state in _COMMITS
        return {name for name, state in states.items() if state == "Ongoing"}

    async def end_hanging(
        self, transactional_id: str, partitions: Collection[int], *, commit: bool
    ) -> None:
        """End, in all topics of these partitions and in the offsets, what hangs of an id.

        Kafka 4.4 calls a transaction complete without writing its markers to a partition that has
        no leader at that moment: its one broker is shutting down. The records then hang in the
        log, hidden from readers, until the next transaction of the same id ends there. That is
        this one: it has these partitions, and writes nothing but the markers.
        """
        is_ours = transactional_id in self._ids
        # Of ours, a batch of other partitions may be under way.
        async with self._one_at_a_time if is_ours else nullcontext():
            self._started &= not is_ours
            await self._end(transactional_id, partitions, commit=commit)
            if is_ours:
                await self._start()

    async def _end(self, transactional_id: str, partitions: Iterable[int], *, commit: bool) -> None:
        topics = partitions_by_topic({tp for p in partitions for tp in self.targets(p)})
        producer = TransactionalProducer(self._brokers, transactional_id)
        deadline = time.monotonic() + MARKERS_S
        # Another worker may be ending it elsewhere: a start would abort that.
        while await producer.state() == "Ongoing" and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await producer.start()
        await producer.end_in(topics, self._wiring.group_id, commit=commit)

    async def close(self) -> None:
        await self._brokers.close()

    def targets(self, partition: int) -> list[_TransactionPartition]:
        """Where what comes of an input partition goes: its outputs, and the changelog last."""
        wiring, n_partitions = self._wiring, self._brokers.n_partitions
        to = []
        for name, topic in wiring.outputs.items():
            n = n_partitions(topic)
            to += [(topic, p) for p in (range(n) if name in wiring.scattered else [partition % n])]
        return [*to, (wiring.changelog, partition)]

    def _records(self, transaction: Transaction) -> dict[_TransactionPartition, list[Message]]:
        records: defaultdict[_TransactionPartition, list[Message]] = defaultdict(list)
        wiring = self._wiring
        for name, topic in wiring.outputs.items():
            n = self._brokers.n_partitions(topic)
            if name in wiring.scattered and n != (before := self._scattered.setdefault(topic, n)):
                raise StreamError(
                    f"{topic} has {n} partitions, and had {before} at the start: stop all "
                    "processes that write to it, and start them again"
                )
            for partition in transaction.positions:
                messages = transaction.messages[name][partition]
                if name in wiring.scattered:
                    for message in messages:
                        assert message.partition is not None, f"{name} is scattered"
                        records[topic, message.partition].append(message)
                elif messages:
                    records[topic, partition % n] += messages
        for partition, position in transaction.positions.items():
            changes = transaction.changelog[partition]
            of_changelog = records[wiring.changelog, partition]
            of_changelog += [Message(key, value) for key, value in changes.items()]
            of_changelog.append(Message(POSITION_KEY, encode_position(position)))
        return records
