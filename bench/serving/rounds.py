"""One measurement at a time: a backlog worked off, or the latency at a steady rate."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from bench.serving.producer import (
    PRODUCER_OPTIONS,
    ClickStream,
    ProducerReport,
    ProducerSettings,
    Sender,
    send_backlog,
)
from bench.serving.reader import ReaderSettings, append_times_ms, committed_reader, latencies_ms
from bench.serving.workers import (
    PARTITIONS,
    Contender,
    Running,
    Usage,
    command,
    cpu_seconds,
    program,
    usage_of,
)
from deploy.broker import free_port
from stream.settings import KafkaSettings, TopicsSettings
from stream.transport.clients import confluent_options
from stream.transport.topics import create_topics
from train.command import TrainError

STUCK_S = 60.0
DRAIN_S = 600.0
"""A contender that falls behind is given so long for the rest."""
N_ITEMS, HIDDEN_SIZE, K = 43_000, 100, 20
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Topics of its own."""

    name: str
    kafka: KafkaSettings
    folder: Path
    web_port: int

    @property
    def log(self) -> Path:
        return self.log_of("worker")

    def log_of(self, process: str) -> Path:
        return self.folder / f"{self.name}-{process}.log"

    @contextmanager
    def running(self, contender: Contender) -> Iterator[Running]:
        """Run a contender's processes for the length of the block."""
        settings = contender.settings(self.kafka, self.web_port, self.folder)
        items = contender.item_settings(self.kafka, free_port())
        with ExitStack() as stack:
            counting = (
                stack.enter_context(program(command(items), self.log_of("items")))
                if items
                else None
            )
            worker = stack.enter_context(program(command(settings), self.log, contender.checkout))
            yield Running(worker, counting)


class Rounds:
    """Measures contenders on one broker; every measurement has topics of its own.

    The same seed brings the same clicks. A measurement is a row: its figures by name.
    """

    def __init__(self, bootstrap_servers: str, broker_pid: int, folder: Path) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._broker_pid = broker_pid
        self._folder = folder
        self._number = count(1)

    def backlog(self, contender: Contender, n_clicks: int, seed: int) -> Row:
        """Measure clicks/s over a backlog, from the append times of the answers.

        All clicks are there before the contender starts; nothing else reads or writes meanwhile.
        Raises TrainError unless each click was answered once.
        """
        with self._measurement(contender.name, contender.partitions) as run:
            send_backlog(run.kafka, N_ITEMS, n_clicks, seed)
            topic = run.kafka.recommendations_topic
            reader = committed_reader(run.kafka, topic, from_end=False)
            partitions = [TopicPartition(topic, p) for p in range(contender.partitions)]

            def answered() -> int:
                # Counts the markers of transactions too: a few in a thousand.
                return sum(reader.get_watermark_offsets(tp, timeout=20)[1] for tp in partitions)

            with run.running(contender) as running:
                worker = running.worker
                _wait(lambda: answered() > 0, worker, run.log)
                before = self._usage(run, contender, running, answered())
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
                usage = self._usage(run, contender, running, min(n_now, n_clicks))
            reader.close()
            appended = append_times_ms(run.kafka, topic).values()
            times_ms = np.concatenate([rows[:, 1] for rows in appended])
        if len(times_ms) != n_clicks:
            raise TrainError(
                f"{run.name} answered {len(times_ms)} of {n_clicks} clicks; see {run.log}"
            )
        first_ms, last_ms = int(times_ms.min()), int(times_ms.max())
        n_after_first = int((times_ms > first_ms).sum())
        rate = round(n_after_first / (last_ms - first_ms) * 1000, 1)
        return {"clicks_per_second": rate, "cpu_us_per_click": usage.per_click(before)}

    def latency(
        self, contender: Contender, rate: int, warm_up_s: int, measure_s: int, seed: int
    ) -> Row:
        """Measure each click's way from its append to a read_committed reader's hands.

        ``last_answer_ms`` is how long after the last click its answer came: a contender that
        falls behind needs seconds. Raises TrainError unless each click was answered once.
        """
        with self._measurement(contender.name, contender.partitions) as run:
            load = self._load(run, rate, warm_up_s + measure_s, seed)
            arrivals = self._folder / f"{run.name}.npy"
            names = run.kafka.model_dump(exclude_none=True)
            reader = ReaderSettings(**names, records=load.n_clicks, out=arrivals)
            reader_log, load_log = run.log_of("reader"), run.log_of("producer")
            with run.running(contender) as running:
                _probe(run, running.worker, seed)
                with program(command(reader), reader_log) as reading:
                    _wait(lambda: "reading" in reader_log.read_text(), reading, reader_log)
                    with program(command(load), load_log) as loading:
                        time.sleep(warm_up_s)
                        before = self._usage(run, contender, running, rate * warm_up_s)
                        time.sleep(measure_s)
                        usage = self._usage(run, contender, running, load.n_clicks)
                        _wait_for_end(loading, STUCK_S, load_log)
                    _wait_for_end(reading, DRAIN_S, reader_log)
            report = msgspec.json.decode(load_log.read_bytes(), type=ProducerReport)
            appended = append_times_ms(run.kafka, run.kafka.clicks_topic)
        received = np.load(arrivals)
        # The probe came when the contender was up, which may be as long before as the warm-up.
        ms, missing, repeated = latencies_ms(received, appended, warm_up_s * 1000, n_probes=1)
        if missing or repeated or report.refused:
            raise TrainError(
                f"{run.name}: {missing} clicks without an answer, {repeated} answered again, "
                f"{report.refused} refused by the broker; see {run.log}"
            )
        last_click_ms = max(int(rows[-1, 1]) for rows in appended.values() if rows.size)
        return {
            "latency_ms": {
                name: round(float(np.quantile(ms, q)), 2) for name, q in QUANTILES.items()
            },
            "last_answer_ms": round(float(received[:, 2].max()) / 1e6 - last_click_ms, 1),
            "producer_behind_ms": report.most_behind_ms,
            "cpu_us_per_click": usage.per_click(before),
        }

    def producer(self, rate: int, warm_up_s: int, measure_s: int, seed: int) -> Row:
        """Measure the producer's share of the broker's CPU: nobody reads and nobody answers."""
        with self._measurement("producer", PARTITIONS) as run:
            load = self._load(run, rate, warm_up_s + measure_s, seed)
            with program(command(load), run.log_of("producer")) as loading:
                time.sleep(warm_up_s)
                before = cpu_seconds(self._broker_pid)
                time.sleep(measure_s)
                used = cpu_seconds(self._broker_pid) - before
                _wait_for_end(loading, STUCK_S, run.log_of("producer"))
        return {"cpu_us_per_click": {"broker": round(used / (rate * measure_s) * 1e6, 1)}}

    @staticmethod
    def _load(run: Measurement, rate: int, seconds: int, seed: int) -> ProducerSettings:
        names = run.kafka.model_dump(exclude_none=True)
        return ProducerSettings(**names, rate=rate, seconds=seconds, n_items=N_ITEMS, seed=seed)

    def _usage(
        self,
        run: Measurement,
        contender: Contender,
        running: Running,
        clicks: int,
    ) -> Usage:
        return usage_of(contender, running, self._broker_pid, run.web_port, clicks)

    @contextmanager
    def _measurement(self, who: str, partitions: int) -> Iterator[Measurement]:
        """Topics that are deleted afterwards: no cleaner works on them during the next one."""
        name = f"{who}-{next(self._number)}"
        kafka = KafkaSettings(
            bootstrap_servers=self._bootstrap_servers,
            app_id=f"bench-{name}",
            clicks_topic=f"clicks-{name}",
            recommendations_topic=f"recommendations-{name}",
            dead_letter_topic=f"dead-letters-{name}",
        )
        create_topics(TopicsSettings(**kafka.model_dump(exclude_none=True), partitions=partitions))
        yield Measurement(name, kafka, self._folder, free_port())
        admin = AdminClient(confluent_options(kafka))  # its futures fail once it is collected
        # A Quix application has made a changelog topic of its own.
        topics = [topic for topic in admin.list_topics(timeout=20).topics if topic[:2] != "__"]
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


def _wait_for_end(process: "subprocess.Popen[bytes]", seconds: float, log: Path) -> None:
    """Wait until a process has done its work. Raises TrainError if that takes too long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise TrainError(f"process has not ended within {seconds:g} s; see {log}") from None
