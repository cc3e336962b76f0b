"""The contenders as processes: how each is started, and what it has used."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from bench.serving.naive_agent import NaiveSettings
from bench.serving.producer import ProducerSettings
from bench.serving.quix_app import QuixSettings
from bench.serving.reader import ReaderSettings
from stream.settings import CountSettings, KafkaSettings, WorkerSettings
from train.command import TrainError

PARTITIONS = 4
ROOT = Path(__file__).parents[2]
QUIX_PYTHON = ROOT / "build" / "quix" / "bin" / "python"
STOP_TIMEOUT_S = 20
WORKER_STAGES = ("plan", "score", "finish", "apply")
"""Stages that compute; ``deliver`` waits for the broker."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to answer clicks."""

    name: str
    bundle: Path
    backlog_clicks: int
    kind: type[KafkaSettings] = WorkerSettings
    checkout: Path | None = None
    """Folder whose code it runs; default: this one."""
    partitions: int = PARTITIONS
    commit_interval_s: float = 0.0
    """Of a Quix application."""
    is_live: bool = False
    """Whether its lists learn from the stream: an item processor runs beside it."""

    def settings(self, kafka: KafkaSettings, web_port: int, folder: Path) -> KafkaSettings:
        """Of its process, which may keep files in a folder of its own below ``folder``."""
        names = self._names(kafka)
        if self.kind is NaiveSettings:
            return NaiveSettings(**names, partitions=self.partitions)
        if self.kind is QuixSettings:
            state = folder / f"state-{kafka.app_id}"
            return QuixSettings(**names, state_dir=state, commit_interval_s=self.commit_interval_s)
        return WorkerSettings(**names, web_port=web_port, log_level="warning")

    def item_settings(self, kafka: KafkaSettings, web_port: int) -> CountSettings | None:
        """Of the item processor beside it; None: there is none."""
        if not self.is_live:
            return None
        return CountSettings(**self._names(kafka), web_port=web_port, log_level="warning")

    def _names(self, kafka: KafkaSettings) -> dict[str, Any]:
        return kafka.model_dump(exclude_none=True) | {"bundle": self.bundle}


MODULES: dict[type[KafkaSettings], list[str]] = {
    WorkerSettings: ["stream", "worker"],
    CountSettings: ["stream", "count"],
    NaiveSettings: ["bench.serving.naive_agent"],
    QuixSettings: ["bench.serving.quix_app"],
    ProducerSettings: ["bench.serving.producer"],
    ReaderSettings: ["bench.serving.reader"],
}


def command(settings: KafkaSettings) -> list[str]:
    flags = []
    for name, value in settings.model_dump(mode="json", exclude_defaults=True).items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    python = str(QUIX_PYTHON) if isinstance(settings, QuixSettings) else sys.executable
    return [python, "-m", *MODULES[type(settings)], *flags]


@contextmanager
def program(
    command: Sequence[str], output: Path, folder: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a folder for the length of the block; its output goes to a file."""
    with output.open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder or ROOT)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def cpu_seconds(pid: int, thread: str = "") -> float:
    """CPU time that all threads of a process, or one, have used in user and kernel mode."""
    # The second field is the program's name in brackets, which may hold spaces.
    fields = Path(f"/proc/{pid}{thread}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loop_cpu_seconds(pid: int) -> float:
    """CPU time of a process's first thread, which is the event loop's."""
    return cpu_seconds(pid, f"/task/{pid}")


def memory_mib(pid: int) -> float:
    """The process's memory (resident set) now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found, "a process that has not ended"
    return round(int(found[1]) / 1024, 1)


def disk_mib(log_dir: Path, topic: str) -> float:
    """What a topic takes of the broker's disk; files may come and go meanwhile."""
    n_blocks = 0
    for path in log_dir.glob(f"{topic}-*/*"):
        with suppress(FileNotFoundError):
            n_blocks += path.stat().st_blocks
    return round(n_blocks * 512 / 2**20, 1)


def metric_totals(web_port: int) -> dict[str, float]:
    """A worker's samples by name, added up over labels, and each series with its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{web_port}/metrics", timeout=60) as page:
        return totals(page.read().decode())


def totals(text: str) -> dict[str, float]:
    """Samples in Prometheus' text format; see ``metric_totals``."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            found[name] = found.get(name, 0.0) + float(value)
            if labels:
                found[series] = float(value)
    return found


@dataclass(frozen=True, slots=True)
class Usage:
    """What worker and broker have used so far. Seconds by stage are wall time."""

    clicks: int
    worker_s: float
    broker_s: float
    loop_s: float
    batches: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    items_s: float | None = None
    """Of the item processor, where there is one."""

    def per_click(self, before: "Usage") -> dict[str, float]:
        """Microseconds per click since then: CPU of each process, and the worker's by stage.

        Nothing else runs on the event loop while a stage computes, so a stage's wall time is its
        CPU time as long as a core is free. ``kafka_and_faust`` is the rest of the worker's CPU
        time; ``event_loop`` is the part of all of it that one core must do sequentially. Raises
        TrainError where no click was answered since.
        """
        clicks = self.clicks - before.clicks
        if clicks <= 0:
            raise TrainError("no click was answered while it was measured")
        seconds = {
            "worker": self.worker_s - before.worker_s,
            "broker": self.broker_s - before.broker_s,
            "event_loop": self.loop_s - before.loop_s,
        }
        if self.items_s is not None and before.items_s is not None:
            seconds["items"] = self.items_s - before.items_s
        stages = {name: s - before.stage_s.get(name, 0.0) for name, s in self.stage_s.items()}
        if stages:
            computing = {stage: stages[stage] for stage in WORKER_STAGES}
            rest = seconds["worker"] - sum(computing.values())
            seconds |= computing | {"kafka_and_faust": rest, "deliver_wall": stages["deliver"]}
        figures = {name: round(s / clicks * 1e6, 1) for name, s in seconds.items()}
        if stages:
            figures["clicks_a_batch"] = round(clicks / (self.batches - before.batches), 1)
        return figures


class Running(NamedTuple):
    """A contender's processes."""

    worker: "subprocess.Popen[bytes]"
    items: "subprocess.Popen[bytes] | None"


def usage_of(
    contender: Contender, running: Running, broker_pid: int, web_port: int, clicks: int
) -> Usage:
    """What a contender has used; ``clicks`` is for one that does not count them itself."""
    pid = running.worker.pid
    used = cpu_seconds(pid), cpu_seconds(broker_pid), loop_cpu_seconds(pid)
    items_s = cpu_seconds(running.items.pid) if running.items else None
    if contender.kind is not WorkerSettings:
        return Usage(clicks, *used)
    with urllib.request.urlopen(f"http://127.0.0.1:{web_port}/metrics", timeout=30) as page:
        text = page.read().decode()
    counted, batches, stage_s = 0.0, 0.0, {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "recs_clicks_total":
                counted += sample.value
            elif sample.name == "recs_batch_clicks_count":
                batches = sample.value
            elif sample.name == "recs_stage_seconds_sum":
                stage_s[sample.labels["stage"]] = sample.value
    return Usage(int(counted), *used, int(batches), stage_s, items_s)


def shown(settings: KafkaSettings) -> dict[str, Any]:
    """The settings that affect speed, to keep with the figures."""
    ours = set(type(settings).model_fields) - set(KafkaSettings.model_fields)
    return settings.model_dump(
        mode="json", include=ours - {"bundle", "state_dir", "web_host", "web_port"}
    )
