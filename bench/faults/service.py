"""A deployment under test: its topics, its bundle and its worker processes."""

import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.faults.traffic import Reader, Stored, produce, read_topic
from deploy.broker import free_port
from deploy.processes import wait_for
from stream.position import POSITION_KEY, Position, decode_position
from stream.settings import TopicsSettings
from stream.transport.topics import create_topics

ROOT = Path(__file__).parents[2]
SESSION_TIMEOUT_S = 6


@dataclass
class Deployment:
    """One set of topics, one bundle, and the workers that were started on it."""

    bootstrap_servers: str
    app: str
    bundle: Path
    log_dir: Path
    extra: dict[str, str] = field(default_factory=dict)
    workers: list["WorkerProcess"] = field(default_factory=list)
    folder: Path = ROOT
    """The checkout whose worker runs."""
    module: str = "stream"
    """What a worker process runs, with the command."""

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
        return f"{self.app}-sessions-changelog"

    @property
    def item_events(self) -> str:
        return f"{self.app}-item-events"

    @property
    def item_view(self) -> str:
        return f"{self.app}-item-view"

    @property
    def items_changelog(self) -> str:
        return f"{self.app}-items-changelog"

    @property
    def topics(self) -> list[str]:
        of_items = [self.item_events, self.item_view, self.items_changelog]
        return [self.clicks, self.recommendations, self.dead_letters, self.changelog, *of_items]

    def environment(self) -> dict[str, str]:
        return os.environ | self.names()

    def names(self) -> dict[str, str]:
        return {
            "NEXTCLICK_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "NEXTCLICK_APP_ID": self.app,
            "NEXTCLICK_CLICKS_TOPIC": self.clicks,
            "NEXTCLICK_RECOMMENDATIONS_TOPIC": self.recommendations,
            "NEXTCLICK_DEAD_LETTER_TOPIC": self.dead_letters,
        }

    def settings(self) -> dict[str, Any]:
        """The names as ``KafkaSettings`` takes them."""
        return {n.removeprefix("NEXTCLICK_").lower(): value for n, value in self.names().items()}

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

    def create_topics(self, **settings: int) -> None:
        """Create the topics in this process, which is faster than a command."""
        create_topics(TopicsSettings.model_validate(self.settings() | settings))

    def start(
        self, *without: str, wait: bool = True, command: str = "worker", **settings: str
    ) -> "WorkerProcess":
        """Start a worker, with the named guards taken out (see worker_without.py).

        command: ``count`` for the item processor.
        """
        module = ["bench.faults.worker_without", *without, "--"] if without else [self.module]
        port = free_port()
        environment = self.environment() | {
            "NEXTCLICK_BUNDLE": str(self.bundle),
            "NEXTCLICK_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
            "NEXTCLICK_WEB_PORT": str(port),
            **{f"NEXTCLICK_{k.upper()}": v for k, v in (self.extra | settings).items()},
        }
        log_path = self.log_dir / f"{self.app}-{len(self.workers)}.log"
        with log_path.open("wb") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-m", *module, command],
                cwd=self.folder,
                env=environment,
                stdout=log_file,
                stderr=subprocess.STDOUT,
            )
        worker = WorkerProcess(process, port, log_path, command)
        self.workers.append(worker)
        if wait:
            worker.wait_until_ready()
        return worker

    def send(self, messages: Iterable[tuple[bytes | None, bytes | None]], **how: Any) -> int:
        """Produce to the clicks topic; see ``produce``."""
        return produce(self.bootstrap_servers, self.clicks, messages, **how)

    def read(self, topic: str) -> list[Stored]:
        """Everything a read_committed reader finds in a topic."""
        return read_topic(self.bootstrap_servers, topic)

    def positions(self) -> dict[int, Position]:
        """The last committed position of each partition."""
        return {
            record.partition: decode_position(record.value or b"")
            for record in self.read(self.changelog)
            if record.key == POSITION_KEY
        }

    def wait_until_answered(self, n_clicks: int, timeout_s: float = 90) -> None:
        """Wait until the positions have passed all clicks that were sent."""

        def all_answered(answered: dict[int, int]) -> bool:
            return sum(answered.values()) >= n_clicks

        self._follow(self.changelog, all_answered, timeout_s, f"{n_clicks} answered clicks")

    def wait_until_counted(self, timeout_s: float = 90) -> None:
        """Wait until the item processor has counted all that the workers have published by now."""
        last = {record.partition: record.offset for record in self.read(self.item_events)}

        def all_counted(counted: dict[int, int]) -> bool:
            return all(counted.get(p, 0) > offset for p, offset in last.items())

        self._follow(self.items_changelog, all_counted, timeout_s, "counted item events")

    def _follow(
        self, changelog: str, done: Callable[[dict[int, int]], bool], timeout_s: float, what: str
    ) -> None:
        """Wait until positions are there, by partition the next offset.

        The changelog is followed: read again for every look, its reading took more of the
        machine than the worker did.
        """
        found: dict[int, int] = {}
        with Reader(self.bootstrap_servers, changelog) as reader:

            def seen() -> bool:
                for record in reader.stored():
                    if record.key == POSITION_KEY:
                        position = decode_position(record.value or b"")
                        found[record.partition] = position.next_offset
                return done(found)

            wait_for(seen, timeout_s, what)

    def endings(self) -> list[str]:
        """How each worker ended, and what it called critical."""
        return [
            f"{worker.command} {n}: exit {worker.process.poll()} {worker.critical()}"
            for n, worker in enumerate(self.workers)
        ]

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
    command: str = "worker"

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

    @property
    def is_stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        status = Path(f"/proc/{self.process.pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    def log(self) -> str:
        return self.log_path.read_text()

    def critical(self) -> list[str]:
        """The log's critical lines, without their stacks."""
        return [line[:600] for line in self.log().splitlines() if '"critical"' in line]
