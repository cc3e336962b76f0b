"""Hostile records in good traffic: ``python -m bench.fuzz`` (``make fuzz``).

Two workers answer good clicks, and between them whatever a producer can put on a topic. With
``--hours 24`` it is a day of event time in some minutes, with late and doubled clicks, sessions
that end, aborted transactions and, meanwhile, faults of workers and broker. docs/performance.md
says how to read the result.
"""

import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from pydantic import PositiveFloat

from bench.faults.catalogue import FAULTS
from bench.faults.hostile import CODECS, MINUTE_MS, Corpus, Shot, hostile
from bench.faults.scene import PARTITIONS, Bundles, Scene, Watcher, admin_of
from bench.faults.service import Deployment
from bench.faults.traffic import PATIENT, click
from bench.faults.verdict import verdict
from bench.faults.wire import RawProducer, RefusedError, one_record
from bench.provenance import RESULTS, keep, provenance
from bench.serving.bundles import write_tiny_bundle
from bench.serving.workers import memory_mib
from deploy.broker import EmbeddedKafka
from deploy.command import DeployError
from deploy.processes import end_on_signals
from stream.contract.click import Click, ClickParser
from stream.contract.records import Record
from train.command import Settings, run_command

log = structlog.get_logger()

CORPUS = Path(__file__).with_name("fuzz_corpus.jsonl")
PER_SECOND = 400.0
CLICKS_A_MINUTE = 200
"""Of event time, in a day."""
HOSTILE = 0.12
"""Share of the hostile records; more than half would be the bad-click limit's business."""
AHEAD = PARTITIONS - 1
"""The partition of hostile clicks that are good and ahead of the others' time: their watermark
would, by the contract, end the sessions of a day in the past."""
ACTS = "kill,join,broker_term,leave,pause,broker_kill,term"
ACT_S = 25
"""What a fault may take, until the group has settled behind it."""
TRANSACTION_EVERY = 1000
_HOUR_MS = 3_600_000

Place = tuple[int, int]
"""Partition and offset of a click."""


class FuzzSettings(Settings):
    """Send hostile records in between good clicks, and count what was not answered once."""

    minutes: PositiveFloat = 10.0
    """How long to send."""
    hours: PositiveFloat | None = None
    """So much event time instead, in minutes, and with faults."""
    faults: str = ACTS
    """Of those hours, in this order, separated by commas."""
    seed: int = 1
    """Of everything that is drawn."""
    out: Path | None = None
    """File of the result; unset: fuzz.json or day.json among the kept ones."""


class Load:
    """Good clicks, hostile records and transactions, and where each of them has gone."""

    def __init__(self, scene: Scene, seed: int, corpus: Corpus, hours: float | None) -> None:
        self.random = Random(seed)
        self.good: set[Place] = set()
        self.aborted: set[Place] = set()
        self.shots: dict[Place, Shot] = {}
        self.counts: Counter[str] = Counter()
        self._scene, self._topic, self._hours = scene, scene.deployment.clicks, hours
        self._servers = scene.deployment.bootstrap_servers
        self.total = 0 if hours is None else round(60 * hours * CLICKS_A_MINUTE)
        self._begin_ms = time.time_ns() // 1_000_000 - round((hours or 0) * _HOUR_MS)
        self._raw = RawProducer(self._servers)
        self._producers = {codec: self._producer(codec) for codec in CODECS}
        self._shop: Producer | None = None
        self._recent: deque[tuple[bytes, bytes]] = deque(maxlen=500)
        self._parse = ClickParser()
        self._corpus = [*corpus.shots]

    def run(self, enough: Callable[[], bool], per_second: float) -> None:
        """Send until it is enough, or the hours are over."""
        began_s = time.monotonic()
        while not enough() and (not self.total or self._scene.sent < self.total):
            self._scene.sent += 1
            ahead_s = self._scene.sent / per_second - (time.monotonic() - began_s)
            if ahead_s > 0.005:
                time.sleep(ahead_s)
            if self._corpus or self.random.random() < HOSTILE:
                self._shoot()
            elif self._scene.sent % TRANSACTION_EVERY == 0:
                self._transact()
            else:
                self._click(*self._next())
        for producer in self._producers.values():
            assert producer.flush(120) == 0
        self._raw.close()

    def now_ms(self) -> int:
        """The traffic's time."""
        if self._hours is None:
            return time.time_ns() // 1_000_000
        return self._begin_ms + round(self._scene.sent / self.total * self._hours * _HOUR_MS)

    def _next(self) -> tuple[bytes, bytes]:
        """A good click: of a busy session or one that comes back after hours, now and then late;
        or one that was sent before."""
        random = self.random
        if self._recent and random.random() < 0.05:
            self.counts["retries"] += 1
            return random.choice(self._recent)
        number = random.randrange(300) if random.random() < 0.5 else random.randrange(10_000)
        # A whole producer is late: half of its sessions' clicks come up to two hours behind.
        behind_ms = (
            random.randrange(2 * _HOUR_MS) if number % 50 == 7 and self._scene.sent % 2 else 0
        )
        name, event = f"session-{number}", f"event-{self._scene.sent}" if number % 2 else None
        item = f"item-{random.randrange(52)}"
        made = name.encode(), click(name, item, max(0, self.now_ms() - behind_ms), event)
        self._recent.append(made)
        return made

    def _click(self, key: bytes, value: bytes) -> None:
        self.counts["good"] += 1
        partition = zlib.crc32(key) % AHEAD
        producer = self._producers[CODECS[partition]]
        self._produce(producer, partition, key, value, self._placed)

    def _shoot(self) -> None:
        if self._corpus:
            shot, key = self._corpus.pop(), b"corpus"
        else:
            key, good = self._next()
            shot = hostile(self.random, key, good, self.now_ms())
        self.counts[shot.kind] += 1
        value, now_ms = shot.body, time.time_ns() // 1_000_000
        read = self._parse(Record(0, 0, now_ms, shot.key, value))
        is_ahead = isinstance(read, Click) and read.timestamp_ms > self.now_ms() + MINUTE_MS
        partition = AHEAD if is_ahead else zlib.crc32(key) % AHEAD
        if shot.codec not in ("none", "gzip"):

            def delivered(error: KafkaError | None, message: Message) -> None:
                if error is None:
                    self.shots[place_of(message)] = shot
                else:
                    self.counts["refused"] += 1

            producer = self._producers[shot.codec]
            self._produce(producer, partition, shot.key, value, delivered)
            return
        batch = one_record(
            shot.key,
            value,
            shot.headers,
            timestamp_ms=shot.timestamp_ms,
            gzip=shot.codec == "gzip",
        )
        while True:
            try:
                offset = self._raw.send(self._topic, partition, batch)
            except RefusedError:
                self.counts["refused"] += 1
                return
            except OSError:  # the broker is away
                time.sleep(0.2)
                continue
            self.shots[partition, offset] = shot
            return

    def _transact(self) -> None:
        """Good clicks in a transaction, two of three aborted."""
        aborts = self.random.random() < 0.67
        places: set[Place] = set()

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                places.add(place_of(message))

        try:
            if self._shop is None:
                self._shop = self._producer("lz4", {"transactional.id": f"shop-{uuid.uuid4().hex}"})
                self._shop.init_transactions(10)
            self._shop.begin_transaction()
            for _ in range(self.random.randint(1, 30)):
                key, value = self._next()
                partition = zlib.crc32(key) % AHEAD
                self._produce(self._shop, partition, key, value, delivered)
            self._shop.flush(10)  # else nothing of what is aborted reaches the topic
            if aborts:
                self._shop.abort_transaction(10)
            else:
                self._shop.commit_transaction(10)
        except KafkaException:  # the broker is away: what became of it nobody knows
            self.counts["lost transactions"] += 1
            self._shop = None
            return
        self.counts["aborted" if aborts else "good"] += len(places)
        (self.aborted if aborts else self.good).update(places)

    def _placed(self, error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        self.good.add(place_of(message))

    def _produce(
        self, producer: Producer, partition: int, key: bytes | None, value: bytes | None, told: Any
    ) -> None:
        while True:
            try:
                producer.produce(self._topic, value, key, partition, on_delivery=told)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)

    def _producer(self, codec: str, more: dict[str, str] | None = None) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._servers,
                "enable.idempotence": True,
                "message.max.bytes": 100_000_000,
                "compression.type": codec,
                "transaction.timeout.ms": 10_000,
                "linger.ms": 5,
                **PATIENT,
                **(more or {}),
            }
        )


def place_of(message: Message) -> Place:
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None
    return partition, offset


def account(deployment: Deployment, load: Load, corpus: Corpus) -> dict[str, Any]:
    """Who was answered, by the topics alone; keeps in the corpus what revealed something."""
    there = {(r.partition, r.offset) for r in deployment.read(deployment.clicks)}
    answers: Counter[Place] = Counter()
    for answer in deployment.read(deployment.recommendations):
        partition, offset = answer.headers["source"].decode().rsplit("-", 2)[1:]
        answers[int(partition), int(offset)] += 1
    letters: Counter[Place] = Counter()
    reasons: Counter[str] = Counter()
    known = {shot.why for shot in corpus.shots}
    for letter in deployment.read(deployment.dead_letters):
        where = int(letter.headers["partition"]), int(letter.headers["offset"])
        letters[where] += 1
        reason = letter.headers["reason"].decode()
        reasons[reason] += 1
        if reason not in known and where in load.shots:
            corpus.add(load.shots[where], reason)
    both = answers + letters
    acked = {place for place in load.good if place[1] >= 0}
    wrong = {
        "unanswered": [p for p in there if not both[p]],
        "doubled": [p for p, n in both.items() if n > 1],
        "good_rejected": [p for p in acked if letters[p]],
        "never_sent": [p for p in both if p not in there],
        "unread": [p for p in acked | load.shots.keys() if p not in there and p[1] >= 0],
        "aborted_answered": [p for p in load.aborted if both[p]],
    }
    for name, places in wrong.items():
        for place in sorted(places)[:3]:
            near = [p for p in load.shots if p[0] == place[0] and p[1] <= place[1]]
            if near:
                corpus.add(load.shots[max(near)], f"{name} at or behind it")
    once = sum(both[place] == 1 and not letters[place] for place in acked)
    return {
        "records": len(there),
        "good": len(acked),
        "good_answered_once": once,
        "dead_letters": dict(sorted(reasons.items())),
        "wrong": {name: len(places) for name, places in wrong.items()},
    }


def measure(
    settings: FuzzSettings, broker: EmbeddedKafka | None, deployment: Deployment, corpus: Corpus
) -> dict[str, Any]:
    """One run; the deployment has topics of four partitions, and no worker yet.

    broker: where it is ours, as the faults of a broker need it.
    """
    hours, servers = settings.hours, deployment.bootstrap_servers
    acts: list[dict[str, Any]] = []
    began_s = time.monotonic()
    with Watcher(servers, deployment.recommendations) as watcher, ThreadPoolExecutor(1) as pool:
        bundles = Bundles(deployment.bundle, deployment.bundle)
        admin = admin_of(deployment)
        scene = Scene(deployment, bundles, broker, Random(settings.seed), watcher, admin)
        load = Load(scene, settings.seed, corpus, hours)
        for worker in scene.start(2):
            worker.wait_until_ready()
        scene.settled()
        memory = [memory_mib(worker.process.pid) for worker in scene.running]
        enough = threading.Event()
        faults = settings.faults.split(",")
        rate = min(3 * PER_SECOND, load.total / (ACT_S * len(faults))) or PER_SECOND
        sending = pool.submit(load.run, enough.is_set, rate)
        try:
            if hours is None:
                _watch(sending.done, deployment, 60 * settings.minutes)
                enough.set()
            else:
                acts = _act(scene, faults, load.total, sending.done)
            sending.result(600)
        finally:
            enough.set()
        sent_s = time.monotonic() - began_s
        ends: Counter[int] = Counter()
        for record in deployment.read(deployment.clicks):
            ends[record.partition] = max(ends[record.partition], record.offset + 1)
        deployment.wait_until_answered(sum(ends.values()), 300)
        answered_s = time.monotonic() - began_s
    ended = [w for w in deployment.workers if w.process.poll() not in (None, 0, -9)]
    ended += [w for w in deployment.workers if not hours and w.process.poll() is not None]
    if ended:
        for shot in [*load.shots.values()][-5:]:
            corpus.add(shot, f"a worker ended at {shot.kind}")
    found = account(deployment, load, corpus)
    judged = verdict(deployment)
    return {
        "seed": settings.seed,
        "hours": hours,
        "seconds": {"sent": round(sent_s), "answered": round(answered_s)},
        "sent": dict(sorted(load.counts.items())),
        **found,
        "verdict": asdict(judged) | {"exact": judged.exact},
        "ended": len(ended),
        "acts": acts,
        "memory_mib": {
            "begin": memory,
            "end": [memory_mib(worker.process.pid) for worker in scene.running],
        },
    }


def passed(row: dict[str, Any]) -> bool:
    """Whether every click was answered once, and no worker ended."""
    return bool(
        row["verdict"]["exact"]
        and not any(row["wrong"].values())
        and row["good"] == row["good_answered_once"]
        and not row["ended"]
        and all(act["hit"] for act in row["acts"])
    )


def _watch(done: Callable[[], bool], deployment: Deployment, seconds: float) -> None:
    """Wait, and no longer than a worker lives."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not done():
        if any(worker.process.poll() is not None for worker in deployment.workers):
            return
        time.sleep(0.5)


def _act(
    scene: Scene, faults: Sequence[str], total: int, done: Callable[[], bool]
) -> list[dict[str, Any]]:
    """One fault after the other, as the day goes on."""
    acts: list[dict[str, Any]] = []
    for n, name in enumerate(faults, start=1):
        while scene.sent < total * n / (len(faults) + 1) and not done():
            time.sleep(0.2)
        began_s = time.monotonic()
        proof = FAULTS[name].act(scene)
        acts.append({"fault": name, "seconds": round(time.monotonic() - began_s, 1)} | proof)
        log.info("acted", **acts[-1])
    return acts


def run(settings: FuzzSettings) -> int:
    end_on_signals()
    out = settings.out or RESULTS / ("fuzz.json" if settings.hours is None else "day.json")
    made = provenance()  # before the run extends the corpus
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nextclick-fuzz-")))
        broker = stack.enter_context(EmbeddedKafka(folder / "kafka"))
        bundle = write_tiny_bundle(folder, constant=True)
        deployment = Deployment(broker.bootstrap_servers, "fuzz", bundle, folder)
        stack.callback(deployment.close)
        deployment.create_topics(partitions=PARTITIONS)
        row = measure(settings, broker, deployment, Corpus(CORPUS))
        if not passed(row):
            for worker in deployment.workers:
                print(worker.log()[-3000:], file=sys.stderr)
    keep(out, made | row | {"passed": passed(row)})
    print(f"{row['good_answered_once']} of {row['good']} good clicks answered once; {out}")
    return 0 if passed(row) else 1


if __name__ == "__main__":
    sys.exit(run_command(FuzzSettings, run, errors=(DeployError,)))
