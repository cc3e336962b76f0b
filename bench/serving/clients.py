"""Three clients commit the same recorded batches: ``python -m bench.serving.clients``.

A batch is what the planner makes of clicks: answers, states, positions and offsets, in one
transaction. Batches follow each other at once, so a figure is the time from one to the next.
"""

import asyncio
import itertools
import logging
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import numpy as np
import structlog
import uvloop
from aiokafka import AIOKafkaProducer
from aiokafka.structs import TopicPartition as AioTopicPartition
from confluent_kafka import Consumer, Producer, TopicPartition
from pydantic import PositiveInt

from bench.provenance import RESULTS, keep
from bench.serving.bundles import write_tiny_bundle
from bench.serving.producer import ClickStream
from bench.serving.rounds import HIDDEN_SIZE, N_ITEMS, K, Row
from bench.serving.workers import cpu_seconds
from deploy.broker import EmbeddedKafka
from deploy.command import DeployError
from deploy.processes import wait_for
from stream.batch import Planner, Rules
from stream.contract.records import Message, Record
from stream.model.models import Models, load_model
from stream.position import POSITION_KEY, BadClickLimit, Position, encode_position
from stream.session import PartitionSessions
from stream.settings import KafkaSettings, TopicsSettings, Wiring
from stream.table import States
from stream.transport.clients import BATCH_BYTES, aiokafka_options, confluent_options
from stream.transport.protocol import Membership, Transaction
from stream.transport.reader import ends_of
from stream.transport.topics import create_topics
from stream.transport.transactions import Brokers, TransactionalProducer
from train.command import Settings, run_command

log = structlog.get_logger(__name__)

NOT_COUNTED = 10
"""Transactions that a client makes before its figures: connections and metadata are there then."""
BEGIN_MS = 1_700_000_000_000


class ClientsSettings(Settings):
    """Measure three transactional clients on the same batches."""

    rounds: PositiveInt = 3
    """Rounds, each with every client once."""
    warm_up_s: PositiveInt = 60
    """How long the broker works before anything counts."""
    out: Path = RESULTS / "clients.json"
    """File of the result."""


class Stream(NamedTuple):
    """A stream of batches to record."""

    clicks: int
    partitions: int
    batches: int

    @property
    def name(self) -> str:
        return f"{self.clicks} clicks, {self.partitions} partitions"


STREAMS = (Stream(16, 4, 200), Stream(256, 4, 100), Stream(256, 64, 50))


class Batch(NamedTuple):
    """What one transaction writes: records by topic and partition, offsets by partition."""

    records: dict[tuple[str, int], list[Message]]
    offsets: dict[int, int]

    @property
    def n_bytes(self) -> int:
        messages = itertools.chain.from_iterable(self.records.values())
        return sum(len(m.key or b"") + len(m.value or b"") for m in messages)


def record_batches(bundle: Path, wiring: Wiring, stream: Stream) -> list[Batch]:
    """The batches that a worker would commit, the same for the same stream."""
    model = load_model(bundle, 1)
    planner = Planner(Models(model), Rules.of(model.manifest, BadClickLimit(1000, 0.5)), "clicks")
    clicks, sessions = ClickStream(N_ITEMS, seed=1, open_sessions=2000), States()
    sessions.own({p: PartitionSessions() for p in range(stream.partitions)})
    for of_partition in sessions.partitions.values():
        of_partition.position = Position(0, "a topic's id of 22")
    ends, batches = [0] * stream.partitions, []
    for number in range(stream.batches + NOT_COUNTED):
        records: defaultdict[int, list[Record]] = defaultdict(list)
        for n in range(stream.clicks):
            now_ms = BEGIN_MS + 10 * number
            key, value = clicks.click(now_ms)
            # The first batches have every partition: none is new to a client that is measured.
            p = n % stream.partitions if number < NOT_COUNTED else crc32(key) % stream.partitions
            records[p].append(Record(p, ends[p], now_ms, key, value))
            ends[p] += 1
        positions = {p: sessions.partitions[p].position for p in records}
        plan = planner.plan(records, positions, sessions.get)
        planner.score(plan)
        planner.advance(plan)
        planner.answer(plan, BEGIN_MS)
        sessions.apply(plan.transaction)
        batches.append(as_batch(plan.transaction, wiring))
    return batches


def as_batch(transaction: Transaction, wiring: Wiring) -> Batch:
    """A transaction's records by the topics they go to; as many partitions in all of them."""
    records = {}
    for partition, position in transaction.positions.items():
        for output, topic in wiring.outputs.items():
            if messages := transaction.messages[output][partition]:
                records[topic, partition] = messages
        changelog = [Message(k, v) for k, v in transaction.changelog[partition].items()]
        changelog.append(Message(POSITION_KEY, encode_position(position)))
        records[wiring.changelog, partition] = changelog
    return Batch(
        records, {p: position.next_offset for p, position in transaction.positions.items()}
    )


class Member:
    """A consumer that is a member of the group, which every client's offsets are committed for."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.consumer = Consumer(
            confluent_options(kafka)
            | {
                "group.id": kafka.app_id,
                "enable.auto.commit": False,
                "max.poll.interval.ms": 3_600_000,  # nobody polls while a client is measured
            }
        )
        self.consumer.subscribe([kafka.clicks_topic])
        wait_for(self._assigned, 60, "an assignment")

    def membership(self) -> Membership:
        raw = bytes(self.consumer.consumer_group_metadata())
        at = len(b"CGMDv2:")
        (generation,) = struct.unpack_from("=i", raw, at)
        return Membership(generation, raw[at + 4 :].split(b"\0")[1].decode())

    def _assigned(self) -> bool:
        self.consumer.poll(0.1)
        return bool(self.consumer.assignment())


class Client(Protocol):
    """One transactional id of one client."""

    async def start(self) -> None: ...
    async def commit(self, batch: Batch) -> None: ...
    async def close(self) -> None: ...


class Librdkafka:
    """librdkafka's transactional producer, which knows no batches: a call a record."""

    def __init__(self, kafka: KafkaSettings, member: Member, name: str) -> None:
        self._kafka, self._member, self._name = kafka, member, name

    async def start(self) -> None:
        self._producer = Producer(
            confluent_options(self._kafka)
            | {
                "transactional.id": self._name,
                "linger.ms": 5,  # a commit flushes at once
                "batch.size": BATCH_BYTES,
                "message.max.bytes": BATCH_BYTES,
            }
        )
        self._producer.init_transactions(60)

    async def commit(self, batch: Batch) -> None:
        """Blocks the event loop, in which nothing else runs."""
        producer = self._producer
        producer.begin_transaction()
        for (topic, partition), messages in batch.records.items():
            for m in messages:
                headers: Any = list(m.headers)
                producer.produce(topic, m.value, m.key, partition, headers=headers)
        offsets = [TopicPartition(self._kafka.clicks_topic, p, n) for p, n in batch.offsets.items()]
        producer.send_offsets_to_transaction(
            offsets, self._member.consumer.consumer_group_metadata(), 60
        )
        producer.commit_transaction(60)

    async def close(self) -> None:
        self._producer.flush(10)


class Aiokafka:
    """aiokafka's producer, a batch of records for each partition.

    Its offsets carry no generation: the broker takes them from a worker that was expelled.
    """

    def __init__(self, kafka: KafkaSettings, member: Member, name: str) -> None:
        self._kafka, self._name = kafka, name

    async def start(self) -> None:
        self._producer = AIOKafkaProducer(
            **aiokafka_options(self._kafka),
            transactional_id=self._name,
            max_batch_size=BATCH_BYTES,
            max_request_size=16 * BATCH_BYTES,
        )
        await self._producer.start()

    async def commit(self, batch: Batch) -> None:
        producer, sent = self._producer, []
        await producer.begin_transaction()
        now_ms = time.time_ns() // 1_000_000
        for (topic, partition), messages in batch.records.items():
            builder = producer.create_batch()
            for m in messages:
                headers = list(m.headers)
                if not builder.append(timestamp=now_ms, key=m.key, value=m.value, headers=headers):
                    raise DeployError(f"the records of {topic}-{partition} are no single batch")
            sent.append(await producer.send_batch(builder, topic, partition=partition))
        topic = self._kafka.clicks_topic
        offsets = {AioTopicPartition(topic, p): n for p, n in batch.offsets.items()}
        await producer.send_offsets_to_transaction(offsets, self._kafka.app_id)
        await producer.commit_transaction()
        await asyncio.gather(*sent)

    async def close(self) -> None:
        await self._producer.stop()


class Ours:
    """The worker's own: three requests a transaction."""

    def __init__(self, kafka: KafkaSettings, member: Member, name: str) -> None:
        self._kafka, self._member = kafka, member
        self._brokers = Brokers(kafka, partial(ends_of, kafka))
        self._producer = TransactionalProducer(self._brokers, name)

    async def start(self) -> None:
        wiring = self._kafka.wiring
        await self._brokers.start((wiring.input, wiring.changelog, *wiring.outputs.values()))
        await self._producer.start()

    async def commit(self, batch: Batch) -> None:
        kafka, producer = self._kafka, self._producer
        await producer.send_offsets(
            kafka.app_id, self._member.membership, kafka.clicks_topic, batch.offsets
        )
        await producer.send_records(batch.records)
        await producer.end(commit=True)

    async def close(self) -> None:
        await self._brokers.close()


class Contender(NamedTuple):
    """A client with its transactional ids, which take turns."""

    name: str
    kind: Callable[[KafkaSettings, Member, str], Client]
    ids: int
    fenced_by_generation: bool


CONTENDERS = (
    Contender("librdkafka, 2 ids", Librdkafka, 2, True),
    Contender("librdkafka, 1 id", Librdkafka, 1, True),
    Contender("aiokafka, 2 ids", Aiokafka, 2, False),
    Contender("aiokafka, 1 id", Aiokafka, 1, False),
    Contender("ours, 2 ids", Ours, 2, True),
    Contender("ours, 1 id", Ours, 1, True),
)


async def measured(clients: Sequence[Client], batches: Sequence[Batch], broker_pid: int) -> Row:
    """Commit the batches one after the other, each by the next client; times in milliseconds."""
    ms: list[float] = []
    before = 0.0, 0.0
    try:
        for client in clients:
            await client.start()
        for number, (batch, client) in enumerate(zip(batches, itertools.cycle(clients))):
            if number == NOT_COUNTED:
                before = time.process_time(), cpu_seconds(broker_pid)
            began = time.perf_counter()
            await client.commit(batch)
            ms.append(round(1000 * (time.perf_counter() - began), 2))
        after = time.process_time(), cpu_seconds(broker_pid)
    finally:
        for client in clients:
            await client.close()
    ms = ms[NOT_COUNTED:]
    client_ms, broker_ms = (1000 * (b - a) / len(ms) for a, b in zip(before, after, strict=True))
    return {"client_cpu_ms": round(client_ms, 2), "broker_cpu_ms": round(broker_ms, 2), "ms": ms}


class Recorded:
    """A recorded stream, with topics and a member of its own."""

    def __init__(self, broker: EmbeddedKafka, bundle: Path, stream: Stream) -> None:
        self._broker, self._stream = broker, stream
        name = f"clients-{stream.clicks}-{stream.partitions}"
        self._kafka = kafka = KafkaSettings(
            bootstrap_servers=broker.bootstrap_servers,
            app_id=name,
            clicks_topic=f"{name}-clicks",
            recommendations_topic=f"{name}-recommendations",
            dead_letter_topic=f"{name}-dead-letters",
        )
        names = kafka.model_dump(exclude_none=True)
        create_topics(TopicsSettings(**names, partitions=stream.partitions))
        self._batches = record_batches(bundle, kafka.wiring, stream)
        self._member = Member(kafka)
        self.bytes_a_batch = round(sum(b.n_bytes for b in self._batches) / len(self._batches))

    def row(self, contender: Contender, number: int) -> Row:
        """Measure a contender's round; its transactional ids are the same in all of them."""
        names = (f"{self._kafka.app_id}-{contender.name[:4]}-{n}" for n in range(contender.ids))
        clients = [contender.kind(self._kafka, self._member, name) for name in names]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            row = runner.run(measured(clients, self._batches, self._broker.pid))
        return {"stream": self._stream.name, "client": contender.name, "round": number} | row


def summary(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """By stream and client: median and p95 of all transactions, and CPU a transaction."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for contender in CONTENDERS:
        for stream in STREAMS:
            own = [
                row
                for row in rows
                if (row["stream"], row["client"]) == (stream.name, contender.name)
            ]
            if own:
                ms = [one for row in own for one in row["ms"]]
                found.setdefault(stream.name, {})[contender.name] = {
                    "ms_median": round(median(ms), 2),
                    "ms_p95": round(float(np.quantile(ms, 0.95)), 2),
                    "client_cpu_ms": median(row["client_cpu_ms"] for row in own),
                    "broker_cpu_ms": median(row["broker_cpu_ms"] for row in own),
                    "fenced_by_generation": contender.fenced_by_generation,
                }
    return found


def run(settings: ClientsSettings) -> None:
    # aiokafka says so of every request that it repeats while the last transaction's markers are
    # being written: hundreds of lines.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        folder = Path(name)
        bundle = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K)
        with EmbeddedKafka(folder / "kafka") as broker:
            recorded = {stream.name: Recorded(broker, bundle, stream) for stream in STREAMS}
            began = time.monotonic()
            for contender, stream in itertools.cycle(itertools.product(CONTENDERS, recorded)):
                if time.monotonic() - began > settings.warm_up_s:
                    break
                log.info("warm_up", stream=stream, client=contender.name)
                recorded[stream].row(contender, 0)
            for number, stream in itertools.product(range(1, 1 + settings.rounds), recorded):
                for contender in CONTENDERS[:: 1 if number % 2 else -1]:
                    row = recorded[stream].row(contender, number)
                    rows.append(row)
                    log.info("measured", **row | {"ms": round(median(row["ms"]), 2)})
    figures = summary(rows)
    bytes_a_batch = {stream: of_stream.bytes_a_batch for stream, of_stream in recorded.items()}
    keep(settings.out, {"bytes_a_batch": bytes_a_batch, "transactions": figures, "rows": rows})
    for stream, clients in figures.items():
        print(stream)
        for client, of_client in clients.items():
            print(f"  {client:18}", "  ".join(f"{k} {v}" for k, v in of_client.items()))
    print(f"written to {settings.out}")


if __name__ == "__main__":
    sys.exit(run_command(ClientsSettings, run, errors=(DeployError,)))
