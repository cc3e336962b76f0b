"""One measurement at a time: a backlog worked off, or the latency at a steady rate."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from jaxtyping import Float64

from bench.serving.producer import (
    PRODUCER_OPTIONS,
    ClickStream,
    ProducerReport,
    ProducerSettings,
    Sender,
    send_backlog,
)
from bench.serving.reader import ReaderSettings, append_times_ms, committed_reader, latencies_ms
from bench.serving.workers import PARTITIONS, Contender, Usage, command, program, usage_of
from deploy.broker import free_port
from stream.settings import KafkaSettings, TopicsSettings
from stream.transport.clients import confluent_options
from stream.transport.topics import create_topics
from train.command import TrainError

STUCK_S = 60.0
N_ITEMS, HIDDEN_SIZE, K = 43_000, 100, 20
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Backlog:
    """A backlog worked off. ``cpu_us``: microseconds per click, in total and by stage."""

    clicks_per_second: float
    cpu_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of every click at a steady rate, after the warm-up."""

    ms: Float64[np.ndarray, "T"]
    cpu_us: dict[str, float]
    producer_behind_ms: float

    @property
    def quantiles(self) -> dict[str, float]:
        return {name: round(float(np.quantile(self.ms, q)), 2) for name, q in QUANTILES.items()}


@dataclass(frozen=True, slots=True)
class Measurement:
    """A worker on topics of its own."""

    name: str
    contender: Contender
    kafka: KafkaSettings
    folder: Path
    web_port: int

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def worker(self) -> AbstractContextManager["subprocess.Popen[bytes]"]:
        settings = self.contender.settings(self.kafka, self.web_port)
        return program(command(settings), self.log, self.contender.checkout)

    def usage(self, worker: "subprocess.Popen[bytes]", clicks: int) -> Usage:
        return usage_of(self.contender, worker.pid, self.web_port, clicks)


class Rounds:
    """Measures contenders on one broker; every measurement has topics of its own.

    The same seed brings the same clicks.
    """

    def __init__(self, bootstrap_servers: str, folder: Path) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._folder = folder
        self._number = count(1)

    def backlog(self, contender: Contender, n_clicks: int, seed: int) -> Backlog:
        """Measure clicks/s over a backlog, from the append times of the answers.

        All clicks are there before the contender starts; nothing else reads or writes meanwhile.
        Raises TrainError unless each click was answered once.
        """
        with self._measurement(contender) as run:
            send_backlog(run.kafka, N_ITEMS, n_clicks, seed)
            topic = run.kafka.recommendations_topic
            reader = committed_reader(run.kafka, topic, from_end=False)
            partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]

            def answered() -> int:
                # Counts the markers of transactions too: a few in a thousand.
                return sum(reader.get_watermark_offsets(tp, timeout=20)[1] for tp in partitions)

            with run.worker() as worker:
                _wait(lambda: answered() > 0, worker, run.log)
                before = run.usage(worker, answered())
                n_now, changed = before.clicks, time.monotonic()
                while n_now < n_clicks or time.monotonic() - changed < 1.0:
                    time.sleep(0.1)
                    n_before, n_now = n_now, answered()
                    if n_now > n_before:
                        changed = time.monotonic()
                    if worker.poll() is not None or time.monotonic() - changed > STUCK_S:
                        raise TrainError(
                            f"{run.name} answered {n_now} of {n_clicks} clicks; see {run.log}"
                        )
                usage = run.usage(worker, n_now)
            reader.close()
            appended = append_times_ms(run.kafka, topic).values()
            times_ms = np.concatenate([rows[:, 1] for rows in appended])
        if len(times_ms) != n_clicks:
            raise TrainError(
                f"{run.name} answered {len(times_ms)} of {n_clicks} clicks; see {run.log}"
            )
        first_ms, last_ms = int(times_ms.min()), int(times_ms.max())
        n_after_first = int((times_ms > first_ms).sum())
        return Backlog(n_after_first / (last_ms - first_ms) * 1000, usage.per_click(before))

    def latency(self, contender: Contender, warm_up_s: int, measure_s: int, seed: int) -> Latency:
        """Measure each click's way from its append to a read_committed reader's hands.

        Raises TrainError unless each click was answered once.
        """
        with self._measurement(contender) as run:
            names, rate = run.kafka.model_dump(exclude_none=True), contender.rate
            seconds = warm_up_s + measure_s
            load = ProducerSettings(**names, rate=rate, seconds=seconds, n_items=N_ITEMS, seed=seed)
            arrivals = self._folder / f"{run.name}.npy"
            reader = ReaderSettings(**names, records=load.n_clicks, out=arrivals)
            reader_log, load_log = (
                self._folder / f"{run.name}-{process}.log" for process in ("reader", "producer")
            )
            with run.worker() as worker:
                _probe(run, worker, seed)
                with program(command(reader), reader_log) as reading:
                    _wait(lambda: "reading" in reader_log.read_text(), reading, reader_log)
                    with program(command(load), load_log) as loading:
                        time.sleep(warm_up_s)
                        before = run.usage(worker, rate * warm_up_s)
                        time.sleep(measure_s)
                        usage = run.usage(worker, load.n_clicks)
                        loading.wait(STUCK_S)
                    reading.wait(STUCK_S)
            report = msgspec.json.decode(load_log.read_bytes(), type=ProducerReport)
            appended = append_times_ms(run.kafka, run.kafka.clicks_topic)
        ms, missing, repeated = latencies_ms(np.load(arrivals), appended, warm_up_s * 1000)
        if missing or repeated or report.refused:
            raise TrainError(
                f"{run.name}: {missing} clicks without an answer, {repeated} answered again, "
                f"{report.refused} refused by the broker; see {run.log}"
            )
        return Latency(ms, usage.per_click(before), report.most_behind_ms)

    @contextmanager
    def _measurement(self, contender: Contender) -> Iterator[Measurement]:
        """Topics that are deleted afterwards: no cleaner works on them during the next one."""
        name = f"{contender.name}-{next(self._number)}"
        kafka = KafkaSettings(
            bootstrap_servers=self._bootstrap_servers,
            app_id=f"bench-{name}",
            clicks_topic=f"clicks-{name}",
            recommendations_topic=f"recommendations-{name}",
            dead_letter_topic=f"dead-letters-{name}",
        )
        create_topics(TopicsSettings(**kafka.model_dump(exclude_none=True), partitions=PARTITIONS))
        yield Measurement(name, contender, kafka, self._folder, free_port())
        topics = [kafka.clicks_topic, kafka.recommendations_topic]
        topics += [kafka.dead_letter_topic, kafka.changelog_topic]
        admin = AdminClient(confluent_options(kafka))  # its futures fail once it is collected
        for done in admin.delete_topics(topics, operation_timeout=20).values():
            done.result()


def _probe(run: Measurement, worker: "subprocess.Popen[bytes]", seed: int) -> None:
    """Wait until a contender answers: it sees one click."""
    sender = Sender(run.kafka, PRODUCER_OPTIONS)
    sender.send(*ClickStream(N_ITEMS, seed + 1_000_000).click(time.time_ns() // 1_000_000))
    sender.flush()
    reader = committed_reader(run.kafka, run.kafka.recommendations_topic, from_end=False)

    def answered() -> bool:
        message = reader.poll(0.2)
        return message is not None and message.error() is None

    _wait(answered, worker, run.log)
    reader.close()


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for what a process does. Raises TrainError if it ends or takes too long."""
    deadline = time.monotonic() + STUCK_S
    while not condition():
        if process.poll() is not None:
            raise TrainError(f"process ended with code {process.returncode}; see {log}")
        if time.monotonic() > deadline:
            raise TrainError(f"nothing happened within {STUCK_S:g} s; see {log}")
        time.sleep(0.02)
