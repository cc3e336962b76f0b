"""A worker process, a load and a verdict: what the fault tests are made of.

The verdict comes from the topics alone. Its reference is a fault-free run: the same clicks, read
back from the clicks topic, go one by one through the batch functions in this process.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from deploy.broker import free_port
from stream.batch import Rules, finish_batch, plan_batch, score_plan
from stream.bundle import load_bundle
from stream.click import Record
from stream.position import POSITION_KEY, BadClickLimit, Position, decode_position
from stream.scorer import OnnxScorer
from stream.session import decode_state

ROOT = Path(__file__).parents[2]
CHANGELOG = "{app}-sessions-changelog"
DAY_MS = 1_700_000_000_000
"""When the clicks of the tests begin: in the past, so that no clock refuses them."""


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait until a condition holds; fails the test with a sentence if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.05)


@dataclass
class Deployment:
    """One set of topics, one bundle, and the workers that were started on it."""

    bootstrap_servers: str
    app: str
    bundle: Path
    log_dir: Path
    extra: dict[str, str] = field(default_factory=dict)
    workers: list["WorkerProcess"] = field(default_factory=list)

    @property
    def clicks(self) -> str:
        return f"{self.app}-clicks"

    @property
    def recommendations(self) -> str:
        return f"{self.app}-recommendations"

    @property
    def dead_letters(self) -> str:
        return f"{self.app}-dead-letter"

    @property
    def changelog(self) -> str:
        return CHANGELOG.format(app=self.app)

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "NEXTCLICK_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "NEXTCLICK_APP_ID": self.app,
            "NEXTCLICK_CLICKS_TOPIC": self.clicks,
            "NEXTCLICK_RECOMMENDATIONS_TOPIC": self.recommendations,
            "NEXTCLICK_DEAD_LETTER_TOPIC": self.dead_letters,
        }

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m stream`` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "stream", *words],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def create_topics(self, *flags: str) -> None:
        done = self.command("topics", "create", *flags)
        assert done.returncode == 0, done.stderr

    def start(self, *broken: str, wait: bool = True, **settings: str) -> "WorkerProcess":
        """Start a worker, with the named guards taken out (see broken_worker.py)."""
        module = ["tests.integration.broken_worker", *broken, "--"] if broken else ["stream"]
        port = free_port()
        environment = self.environment() | {
            "NEXTCLICK_BUNDLE": str(self.bundle),
            "NEXTCLICK_SESSION_TIMEOUT_S": "6",
            "NEXTCLICK_WEB_PORT": str(port),
            **{f"NEXTCLICK_{k.upper()}": v for k, v in (self.extra | settings).items()},
        }
        log_path = self.log_dir / f"{self.app}-{len(self.workers)}.log"
        with log_path.open("wb") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-m", *module, "worker"],
                cwd=ROOT,
                env=environment,
                stdout=log_file,
                stderr=subprocess.STDOUT,
            )
        worker = WorkerProcess(process, port, log_path)
        self.workers.append(worker)
        if wait:
            worker.wait_until_ready()
        return worker

    def close(self) -> None:
        for worker in self.workers:
            worker.end(signal.SIGCONT)
            worker.end(signal.SIGKILL)
            worker.process.wait(30)


@dataclass
class WorkerProcess:
    """A worker as its operator sees it: a process, a port and a log."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    def get(self, page: str) -> tuple[int, str]:
        """Fetch a page; status 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{page}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, line: str) -> float:
        """Value of one series, such as ``recs_clicks_total{outcome="model"}``; 0 if absent."""
        for row in self.get("/metrics")[1].splitlines():
            if row.startswith(f"{line} "):
                return float(row.rpartition(" ")[2])
        return 0.0

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            return self.get("/ready")[0] == 200

        wait_for(ready, 60, "a ready worker")

    def wait_for_exit(self, timeout_s: float = 60) -> int:
        return self.process.wait(timeout_s)

    def end(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(how)

    def log(self) -> str:
        return self.log_path.read_text()


def click(session: str, item: str, timestamp_ms: int, event: str | None = None) -> bytes:
    """A click's JSON, as a producer that is not ours would write it."""
    fields: dict[str, object] = {
        "session_id": session,
        "item_id": item,
        "timestamp_ms": timestamp_ms,
    }
    if event is not None:
        fields["event_id"] = event
    return json.dumps(fields).encode()


def produce(
    deployment: Deployment,
    messages: Iterable[tuple[bytes | None, bytes | None]],
    *,
    topic: str | None = None,
    partition: int | None = None,
    per_second: float | None = None,
) -> int:
    """Send records with a plain confluent-kafka producer; returns how many."""
    producer = Producer(
        {
            "bootstrap.servers": deployment.bootstrap_servers,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "message.max.bytes": 20_000_000,
            "linger.ms": 2,
        }
    )
    started = time.monotonic()
    n = 0
    where = {} if partition is None else {"partition": partition}
    for key, value in messages:
        if per_second is not None:
            ahead = n / per_second - (time.monotonic() - started)
            if ahead > 0.005:
                time.sleep(ahead)
        while True:
            try:
                producer.produce(topic or deployment.clicks, key=key, value=value, **where)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
        n += 1
    assert producer.flush(60) == 0
    return n


def read_topic(deployment: Deployment, topic: str) -> list[Message]:
    """Everything a read_committed reader finds in a topic, in order of partition and offset."""
    consumer = Consumer(
        {
            "bootstrap.servers": deployment.bootstrap_servers,
            "group.id": "not-used",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.message.max.bytes": 20_000_000,
        }
    )
    try:
        partitions = list(consumer.list_topics(topic, timeout=20).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
        open_partitions = set(partitions)
        messages: list[Message] = []
        deadline = time.monotonic() + 60
        while open_partitions:
            assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
            for message in consumer.consume(1000, 1.0):
                error = message.error()
                if error is None:
                    messages.append(message)
                elif error.name() == "_PARTITION_EOF":
                    open_partitions.discard(message.partition())
                else:
                    raise AssertionError(error)
        return sorted(messages, key=lambda m: (m.partition(), m.offset()))
    finally:
        consumer.close()


def sources(messages: Sequence[Message]) -> list[str]:
    """The header ``source`` of recommendations."""
    return [dict(m.headers())["source"].decode() for m in messages]


def positions(deployment: Deployment) -> dict[int, Position]:
    """The last committed position records."""
    return {
        m.partition(): decode_position(m.value())
        for m in read_topic(deployment, deployment.changelog)
        if m.key() == POSITION_KEY
    }


def wait_until_answered(deployment: Deployment, n_clicks: int, timeout_s: float = 90) -> None:
    """Wait until the positions have passed all clicks that were sent."""

    def answered() -> bool:
        done = sum(p.next_offset for p in positions(deployment).values())
        return done >= n_clicks

    wait_for(answered, timeout_s, f"{n_clicks} answered clicks")


@dataclass(frozen=True)
class Verdict:
    """What faults have done to the topics: all zeros after an exact run."""

    missing: int
    duplicates: int
    different: int
    wrong_states: int
    hidden_error: float

    @property
    def exact(self) -> bool:
        return self.hidden_error < 1e-5 and not (
            self.missing or self.duplicates or self.different or self.wrong_states
        )


def verdict(deployment: Deployment) -> Verdict:
    """Compare recommendations and final states with those of a fault-free run."""
    expected_lists, expected_states = _fault_free(deployment)
    found = read_topic(deployment, deployment.recommendations)
    by_source = dict(zip(sources(found), found, strict=True))
    different = 0
    for source, message in by_source.items():
        expected = expected_lists[source]
        value = json.loads(message.value())
        different += (value["session_id"], value["outcome"], value["click"]) != (
            expected["session_id"],
            expected["outcome"],
            expected["click"],
        ) or [i["item_id"] for i in value["items"]] != [i["item_id"] for i in expected["items"]]
    states: dict[tuple[int, bytes], bytes] = {}
    for message in read_topic(deployment, deployment.changelog):
        if message.key() != POSITION_KEY:
            key = (message.partition(), message.key())
            if message.value() is None:
                states.pop(key, None)
            else:
                states[key] = message.value()
    wrong = len(states.keys() ^ expected_states.keys())
    hidden_error = 0.0
    for key in states.keys() & expected_states.keys():
        ours, theirs = decode_state(states[key]), decode_state(expected_states[key])
        wrong += (ours.n_clicks, ours.trail, ours.last_click_ms, ours.last_outcome) != (
            theirs.n_clicks,
            theirs.trail,
            theirs.last_click_ms,
            theirs.last_outcome,
        )
        hidden_error = max(hidden_error, float(np.abs(ours.hidden - theirs.hidden).max()))
    return Verdict(
        missing=len(expected_lists.keys() - by_source.keys()),
        duplicates=len(found) - len(by_source),
        different=different,
        wrong_states=wrong,
        hidden_error=hidden_error,
    )


def _fault_free(
    deployment: Deployment,
) -> tuple[dict[str, dict[str, object]], dict[tuple[int, bytes], bytes]]:
    """Answer every click of the topic, one at a time, with nothing but the batch functions."""
    bundle = load_bundle(deployment.bundle)
    scorer = OnnxScorer(bundle)
    idle_timeout_s = bundle.manifest.idle_timeout_s
    lateness_s = int(deployment.extra.get("allowed_lateness_s", "600"))
    rules = Rules(
        None if idle_timeout_s is None else idle_timeout_s * 1000,
        lateness_s * 1000,
        BadClickLimit(1_000_000, 1.0),
    )
    states: dict[tuple[int, bytes], bytes] = {}
    at: dict[int, Position] = {}
    lists: dict[str, dict[str, object]] = {}
    for message in read_topic(deployment, deployment.clicks):
        p, offset = message.partition(), message.offset()
        record = Record(p, offset, message.timestamp()[1], message.key(), message.value())
        position = at.setdefault(p, Position(offset, "any"))
        plan = plan_batch(
            {p: [record]},
            {p: position},
            lambda partition, key: states.get((partition, key)),
            bundle,
            rules,
            deployment.clicks,
        )
        output = finish_batch(plan, score_plan(plan, scorer), bundle, deployment.clicks, 0)[p]
        at[p] = output.position
        states |= {(p, key): raw for key, raw in output.states.items()}
        for answer in output.recommendations:
            assert answer.value is not None
            lists[dict(answer.headers)["source"].decode()] = json.loads(answer.value)
    return lists, states


def session_load(
    n_clicks: int, n_sessions: int = 300, n_items: int = 50, seed: int = 1
) -> Iterator[tuple[bytes, bytes]]:
    """Clicks of many sessions in order of time, one in twenty a repeated event."""
    random = np.random.default_rng(seed)
    last: dict[str, bytes] = {}
    for n in range(n_clicks):
        session = f"session-{random.integers(n_sessions)}"
        if session in last and random.random() < 0.05:
            yield session.encode(), last[session]
            continue
        value = click(session, f"item-{random.integers(n_items + 2)}", DAY_MS + n, f"event-{n}")
        last[session] = value
        yield session.encode(), value
