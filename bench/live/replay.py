"""Broker, workers and item processor as processes, and a stream of clicks that they answer."""

import contextlib
import http
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from urllib.request import urlopen

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from bench.live.clicks import Stream, answered_before
from bench.live.judge import Judge, decode_answer
from bench.serving.producer import PRODUCER_OPTIONS
from bench.serving.reader import source_of
from bench.serving.workers import cpu_seconds
from deploy.broker import EmbeddedKafka, free_port
from deploy.command import DeployError
from deploy.processes import Child, running
from deploy.reader import TopicReader, place
from stream.settings import KafkaSettings, TopicsSettings
from stream.transport.clients import confluent_options
from stream.transport.topics import create_topics

APP = "live"
PARTITIONS = 4
WORKERS = 2
READY_S = 120.0
STUCK_S = 120.0
QUIET_S = 3.0
"""A view that did not grow for so long has all of the clicks."""
TELL_EVERY_S = 30.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Pace:
    """How far the clicks under way may lie apart in the log's time, how many there are at most, and
    how many are sent a second at most."""

    window_s: int
    most_open: int
    per_second: float = inf


@dataclass(frozen=True)
class Service:
    """What runs."""

    kafka: KafkaSettings
    broker: EmbeddedKafka
    workers: Sequence[Child]
    items: Child | None
    """The item processor."""

    def check_runs(self) -> None:
        """Raise DeployError if one of them has ended."""
        self.broker.check_runs()
        for child in (*self.workers, *([self.items] if self.items else [])):
            child.check_runs()

    def cpu_s(self) -> dict[str, float]:
        """What each part has used."""
        items = {"items": cpu_seconds(self.items.pid)} if self.items else {}
        workers = sum(cpu_seconds(worker.pid) for worker in self.workers)
        return {"workers": workers, **items, "broker": cpu_seconds(self.broker.pid)}

    def offsets(self) -> dict[str, list[int]]:
        """The end of every partition, by topic."""
        consumer = Consumer(confluent_options(self.kafka) | {"group.id": APP})
        try:
            return {
                name: [
                    consumer.get_watermark_offsets(TopicPartition(name, p), timeout=20)[1]
                    for p in sorted(topic.partitions)
                ]
                for name, topic in sorted(consumer.list_topics(timeout=20).topics.items())
                if not name.startswith("__")
            }
        finally:
            consumer.close()

    def settle(self) -> None:
        """Return when the view has all that was sent."""
        view, last, since = f"{APP}-item-view", 0, time.monotonic()
        while self.items and time.monotonic() - since < QUIET_S:
            time.sleep(0.2)
            self.check_runs()
            if (now := sum(self.offsets()[view])) > last:
                last, since = now, time.monotonic()


@contextmanager
def service(bundle: Path, logs: Path, *, live: bool) -> Iterator[Service]:
    """A broker with new topics, two workers that are ready and, if ``live``, the item processor.
    All end with the block, in this order's reverse. Their output goes to ``logs``."""
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nextclick-live-")))
        broker = stack.enter_context(EmbeddedKafka(data))
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, app_id=APP)
        create_topics(TopicsSettings(**kafka.model_dump(exclude_none=True), partitions=PARTITIONS))
        parts = {f"worker-{n}": "worker" for n in range(WORKERS)} | (
            {"items": "count"} if live else {}
        )
        started = {}
        for name, command in parts.items():
            port = free_port()
            flags = {
                "--bundle": str(bundle),
                "--bootstrap-servers": broker.bootstrap_servers,
                "--app-id": APP,
                "--web-port": str(port),
                "--log-level": "warning",
            }
            words = ["stream", command, *(word for flag in flags.items() for word in flag)]
            child = stack.enter_context(running(words, logs / f"{name}.log"))
            started[name] = child, partial(_is_ready, port)
        for name, (child, is_ready) in started.items():
            child.wait_until(is_ready, READY_S, f"{name} (log: {logs / name}.log)")
        items = started["items"][0] if live else None
        yield Service(kafka, broker, [started[f"worker-{n}"][0] for n in range(WORKERS)], items)


class Replay:
    """Sends a stream to a service and has each answer judged, in one thread.

    A plain reader of committed records takes the answers; the header ``source`` says whose they
    are.
    """

    def __init__(self, service: Service, stream: Stream, judge: Judge) -> None:
        self.answered = 0
        """So many clicks, from the first on, have their answers."""
        self._service, self._stream, self._judge = service, stream, judge
        self._sent = 0
        self._is_answered = bytearray(len(stream))
        self._delivered: dict[tuple[int, int], int] = {}
        self._early: dict[tuple[int, int], bytes] = {}
        """Answers that were here before the broker's word on where their click is."""
        options = confluent_options(service.kafka)
        self._producer = Producer(options | PRODUCER_OPTIONS)
        self._reader = TopicReader(options, service.kafka.recommendations_topic)

    def __enter__(self) -> "Replay":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()

    def run(self, end: int, pace: Pace) -> float:
        """Send the clicks up to ``end`` and return when all are answered, with the seconds that it
        took. Raises DeployError where answers stay away, or come twice."""
        stream = self._stream
        needed = answered_before(stream.timestamp_ms, 1000 * pace.window_s, pace.most_open)
        began = told = due = time.monotonic()
        begin = self._sent
        for n in range(begin, end):
            due += 1 / pace.per_second
            while (wait_s := due - time.monotonic()) > 0:
                self._take(wait_s)
            due = time.monotonic()
            self._wait_for(int(needed[n]))
            self._send(n)
            self._take(0.0)
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                rate = (n - begin) / (told - began)
                log.info("replaying", sent=n, of=len(stream), clicks_per_second=round(rate))
        self._wait_for(end)
        if self._early:
            where = ", ".join(f"{p}-{offset}" for p, offset in [*self._early][:3])
            raise DeployError(f"{len(self._early)} answers too many, to the clicks at {where}")
        return time.monotonic() - began

    def _send(self, n: int) -> None:
        session, stream = self._stream.session_id[n], self._stream
        value = {
            "session_id": session,
            "item_id": stream.item_id[n],
            "timestamp_ms": int(stream.timestamp_ms[n]),
        }
        topic, key = self._service.kafka.clicks_topic, session.encode()
        self._producer.produce(
            topic, msgspec.json.encode(value), key, on_delivery=partial(self._note, n)
        )
        self._sent = n + 1
        self._producer.poll(0)

    def _note(self, n: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise DeployError(f"the broker has refused a click: {error.str()}")
        where = place(message)
        if (early := self._early.pop(where, None)) is not None:
            self._judged(n, early)
        else:
            self._delivered[where] = n

    def _wait_for(self, answered: int) -> None:
        since, before = time.monotonic(), self.answered
        while self.answered < answered:
            self._take(0.05)
            if self.answered > before:
                since, before = time.monotonic(), self.answered
            elif time.monotonic() - since > STUCK_S:
                raise DeployError(
                    f"no answer to click {self.answered} of {len(self._stream)} in {STUCK_S:g} s"
                )

    def _take(self, seconds: float) -> None:
        """Judge the answers that are here, or the first that comes within so many seconds."""
        records = self._reader.next(1, seconds)
        if not records and seconds:
            self._service.check_runs()
        while records:
            for record in records:
                value, where = record.value(), source_of(record)
                assert value is not None, "the recommendations topic holds no tombstones"
                if (n := self._delivered.pop(where, None)) is None:
                    self._early[where] = value
                else:
                    self._judged(n, value)
            records = self._reader.next(1, 0.0)
        self._producer.poll(0)

    def _judged(self, n: int, value: bytes) -> None:
        self._judge.add(n, decode_answer(value))
        self._is_answered[n] = True
        while self.answered < self._sent and self._is_answered[self.answered]:
            self.answered += 1


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as page:
        return bool(page.status == http.HTTPStatus.OK)
    return False
