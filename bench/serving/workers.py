"""The contenders as processes: how each is started, and what it has used."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench.serving.naive_agent import NaiveSettings
from bench.serving.producer import ProducerSettings
from bench.serving.reader import ReaderSettings
from stream.settings import KafkaSettings, WorkerSettings

PARTITIONS = 4
STOP_TIMEOUT_S = 20
WORKER_STAGES = ("plan", "score", "finish", "apply")
"""Stages that compute; ``deliver`` waits for the broker."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to answer clicks."""

    name: str
    bundle: Path
    backlog_clicks: int
    rate: int
    """Clicks/s at which its latency is measured."""
    naive: bool = False
    checkout: Path | None = None
    """Folder whose code it runs; default: this one."""

    def settings(self, kafka: KafkaSettings, web_port: int) -> KafkaSettings:
        names = kafka.model_dump(exclude_none=True)
        if self.naive:
            return NaiveSettings(**names, bundle=self.bundle, partitions=PARTITIONS)
        return WorkerSettings(**names, bundle=self.bundle, web_port=web_port, log_level="warning")


MODULES: dict[type[KafkaSettings], list[str]] = {
    WorkerSettings: ["stream", "worker"],
    NaiveSettings: ["bench.serving.naive_agent"],
    ProducerSettings: ["bench.serving.producer"],
    ReaderSettings: ["bench.serving.reader"],
}


def command(settings: KafkaSettings) -> list[str]:
    flags = []
    for name, value in settings.model_dump(mode="json", exclude_defaults=True).items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    return [sys.executable, "-m", *MODULES[type(settings)], *flags]


@contextmanager
def program(
    command: Sequence[str], output: Path, folder: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a folder for the length of the block; its output goes to a file."""
    with output.open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
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


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker has used so far. Seconds by stage are wall time."""

    clicks: int
    cpu_s: float
    loop_cpu_s: float
    batches: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)

    def per_click(self, before: "Usage") -> dict[str, float]:
        """Microseconds per click since then: CPU in total, and by stage.

        Nothing else runs on the event loop while a stage computes, so a stage's wall time is its
        CPU time as long as a core is free. ``kafka_and_faust`` is the rest of the process's CPU
        time; ``event_loop`` is the part of all of it that one core must do sequentially.
        """
        clicks = self.clicks - before.clicks
        us = {
            stage: (seconds - before.stage_s.get(stage, 0.0)) / clicks * 1e6
            for stage, seconds in self.stage_s.items()
        }
        cpu_us = (self.cpu_s - before.cpu_s) / clicks * 1e6
        loop_us = (self.loop_cpu_s - before.loop_cpu_s) / clicks * 1e6
        figures = {"cpu": cpu_us, "event_loop": loop_us}
        if us:
            computing = {stage: us[stage] for stage in WORKER_STAGES}
            figures |= computing | {"kafka_and_faust": cpu_us - sum(computing.values())}
            figures["deliver_wall"] = us["deliver"]
            figures["clicks_a_batch"] = clicks / (self.batches - before.batches)
        return {name: round(value, 1) for name, value in figures.items()}


def usage_of(contender: Contender, pid: int, web_port: int, clicks: int) -> Usage:
    """What a contender has used; ``clicks`` is for one that does not count them itself."""
    if contender.naive:
        return Usage(clicks, cpu_seconds(pid), loop_cpu_seconds(pid))
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
    return Usage(int(counted), cpu_seconds(pid), loop_cpu_seconds(pid), int(batches), stage_s)


def shown(settings: KafkaSettings) -> dict[str, Any]:
    """The settings that affect speed, to keep with the figures."""
    ours = set(type(settings).model_fields) - set(KafkaSettings.model_fields)
    return settings.model_dump(mode="json", include=ours - {"bundle", "web_host", "web_port"})
