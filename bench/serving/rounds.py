"""One measurement at a time: a backlog worked off, or the latency at a steady rate."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
from confluent_kafka import Message, TopicPartition
from confluent_kafka.admin import AdminClient
from jaxtyping import Float64

from bench.serving.clicks import ClickStream
from bench.serving.producer import PRODUCER_OPTIONS, LoadReport, LoadSettings, Sender, send_backlog
from bench.serving.reader import ReaderSettings, append_times_ms, committed_reader, latencies_ms
from bench.serving.workers import (
    PARTITIONS,
    Contender,
    command,
    program,
    usage_of,
)
from deploy.broker import free_port
from stream.settings import KafkaSettings, TopicsSettings
from stream.transport.clients import confluent_options
from stream.transport.topics import create_topics

STUCK_S = 60.0
N_ITEMS, HIDDEN_SIZE, K = 43_000, 100, 20


class BenchError(Exception):
    """A measurement that means nothing: answers are missing, or a process has ended."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """A backlog worked off. ``cpu_us``: microseconds a click, in all and by stage."""

    clicks_per_second: float
    cpu_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of every click at a steady rate, after the warm-up."""

    ms: Float64[np.ndarray, "T"]
    cpu_us: dict[str, float]
    sender_behind_ms: float


class Rounds:
    """Measures contenders on one broker; every measurement has topics of its own."""

    def __init__(self, bootstrap_servers: str, folder: Path) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._folder = folder
        self._number = count(1)

    def backlog(self, contender: Contender, n_clicks: int) -> Backlog:
        """Measure clicks/s over a backlog, from the append times of the answers.

        The clicks are all there before the contender starts, nothing else reads or writes
        meanwhile. Raises BenchError unless each click was answered once.
        """
        name, kafka = self._topics(contender)
        send_backlog(kafka, N_ITEMS, n_clicks, seed=next(self._number))
        web_port = free_port()
        worker_command = command(contender.settings(kafka, web_port))
        reader = committed_reader(kafka, kafka.recommendations_topic, from_end=False)
        partitions = [TopicPartition(kafka.recommendations_topic, p) for p in range(PARTITIONS)]

        def answered() -> int:
            # Counts the markers of transactions too: a few in a thousand.
            return sum(reader.get_watermark_offsets(tp, timeout=20)[1] for tp in partitions)

        log = self._folder / f"{name}.log"
        with program(worker_command, log) as worker:
            _wait(lambda: answered() > 0, worker, log)
            before = usage_of(contender, worker.pid, web_port, answered())
            n_now, changed = before.clicks, time.monotonic()
            while n_now < n_clicks or time.monotonic() - changed < 1.0:
                time.sleep(0.1)
                n_before, n_now = n_now, answered()
                if n_now > n_before:
                    changed = time.monotonic()
                if worker.poll() is not None or time.monotonic() - changed > STUCK_S:
                    raise BenchError(f"{name} answered {n_now} of {n_clicks}; see {log}")
            usage = usage_of(contender, worker.pid, web_port, n_now)
        reader.close()
        times_ms = np.concatenate(
            [rows[:, 1] for rows in append_times_ms(kafka, kafka.recommendations_topic).values()]
        )
        self._drop(kafka)
        if len(times_ms) != n_clicks:
            raise BenchError(f"{name} answered {len(times_ms)} of {n_clicks}; see {log}")
        first_ms, last_ms = int(times_ms.min()), int(times_ms.max())
        n_after_first = int((times_ms > first_ms).sum())
        return Backlog(n_after_first / (last_ms - first_ms) * 1000, usage.per_click(before))

    def latency(self, contender: Contender, rate: int, warm_up_s: int, measure_s: int) -> Latency:
        """Measure each click's way from its append to a read_committed reader's hands.

        Raises BenchError unless each click was answered once.
        """
        name, kafka = self._topics(contender)
        web_port = free_port()
        worker_command = command(contender.settings(kafka, web_port))
        names = kafka.model_dump(exclude_none=True)
        seed = next(self._number)
        load = LoadSettings(
            **names, rate=rate, seconds=warm_up_s + measure_s, n_items=N_ITEMS, seed=seed
        )
        arrivals = self._folder / f"{name}.npy"
        reader = ReaderSettings(**names, records=load.n_clicks, out=arrivals)
        log, reader_log, load_log = (
            self._folder / f"{name}{part}.log" for part in ("", "-reader", "-load")
        )
        with program(worker_command, log) as worker:
            self._probe(kafka, worker, log)
            with program(command(reader), reader_log) as reading:
                _wait(lambda: "reading" in reader_log.read_text(), reading, reader_log)
                with program(command(load), load_log) as loading:
                    time.sleep(warm_up_s)
                    before = usage_of(contender, worker.pid, web_port, rate * warm_up_s)
                    time.sleep(measure_s)
                    usage = usage_of(contender, worker.pid, web_port, load.n_clicks)
                    loading.wait(STUCK_S)
                reading.wait(STUCK_S)
        report = msgspec.json.decode(load_log.read_bytes(), type=LoadReport)
        appended = append_times_ms(kafka, kafka.clicks_topic)
        self._drop(kafka)
        ms, missing, repeated = latencies_ms(np.load(arrivals), appended, warm_up_s * 1000)
        if missing or repeated or report.refused:
            raise BenchError(
                f"{name}: {missing} clicks without an answer, {repeated} answered again, "
                f"{report.refused} refused by the broker; see {log}"
            )
        return Latency(ms, usage.per_click(before), report.most_behind_ms)

    def _topics(self, contender: Contender) -> tuple[str, KafkaSettings]:
        """Make fresh topics; returns the measurement's name and how to reach them."""
        name = f"{contender.name}-{next(self._number)}"
        kafka = KafkaSettings(
            bootstrap_servers=self._bootstrap_servers,
            app_id=f"bench-{name}",
            clicks_topic=f"clicks-{name}",
            recommendations_topic=f"recommendations-{name}",
            dead_letter_topic=f"dead-letters-{name}",
        )
        create_topics(TopicsSettings(**kafka.model_dump(exclude_none=True), partitions=PARTITIONS))
        return name, kafka

    def _drop(self, kafka: KafkaSettings) -> None:
        """Delete the topics, so that no cleaner works on them during the next measurement."""
        admin = AdminClient(confluent_options(kafka))
        topics = [
            kafka.clicks_topic,
            kafka.recommendations_topic,
            kafka.dead_letter_topic,
            kafka.changelog_topic,
        ]
        for deleted in admin.delete_topics(topics, operation_timeout=20).values():
            deleted.result()

    def _probe(self, kafka: KafkaSettings, worker: "subprocess.Popen[bytes]", log: Path) -> None:
        """Wait until a contender answers: it sees one click."""
        sender = Sender(kafka, PRODUCER_OPTIONS)
        sender.send(*ClickStream(N_ITEMS, next(self._number)).click(time.time_ns() // 1_000_000))
        sender.flush()
        reader = committed_reader(kafka, kafka.recommendations_topic, from_end=False)
        _wait(lambda: _is_record(reader.poll(0.2)), worker, log)
        reader.close()


def _is_record(message: Message | None) -> bool:
    return message is not None and message.error() is None


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for what a process does. Raises BenchError if it ends or takes too long."""
    deadline = time.monotonic() + STUCK_S
    while not condition():
        if process.poll() is not None:
            raise BenchError(f"process ended with code {process.returncode}; see {log}")
        if time.monotonic() > deadline:
            raise BenchError(f"nothing happened within {STUCK_S:g} s; see {log}")
        time.sleep(0.02)
