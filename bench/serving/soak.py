"""Sessions come and go, and the worker must end where it began: ``bench.serving.sessions --soak``.

Clicks are sent as fast as the worker takes them; their timestamps go over four hours, in which
sessions end all the time. Behind the last click, hours later by its timestamp, all of them end.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib as mpl
import structlog
from matplotlib.figure import Figure

from bench.faults.service import Deployment, WorkerProcess
from bench.faults.traffic import LOG_BEGIN_MS, click
from bench.measuring import Background
from bench.serving.bundles import write_tiny_bundle
from bench.serving.producer import ClickStream
from bench.serving.rounds import HIDDEN_SIZE, N_ITEMS, K, Row
from bench.serving.workers import PARTITIONS, disk_mib, memory_mib, metric_totals
from deploy.broker import EmbeddedKafka
from deploy.processes import wait_for

log = structlog.get_logger(__name__)

LOG_MS = 4 * 3_600_000
OPEN_SHARE = 50
"""One session is open at a time for so many clicks of the soak: its visitor clicks every 5 minutes
on average, and after the idle timeout of 30 the session is another one."""
AHEAD = 20_000
"""Clicks that wait for the worker at most."""
SAMPLE_S = 5.0
LATE_SESSIONS = 100
LATE_RATE = 500
TRICKLE_RATE = 20
PATIENCE_S = 900
# Answers and clicks that were read need not stay: the disk is not measured but for the changelog.
BROKER = {
    "log.retention.bytes": "268435456",
    "log.segment.bytes": "67108864",
    "log.retention.check.interval.ms": "10000",
}


def clicks(n_clicks: int, wait: Callable[[int], None]) -> Iterator[tuple[bytes, bytes]]:
    """The soak's clicks; ``wait`` is told how many were sent and returns when more are wanted."""
    stream = ClickStream(N_ITEMS, seed=1, open_sessions=max(1, n_clicks // OPEN_SHARE))
    for n in range(n_clicks):
        if n % 500 == 0:
            wait(n)
        yield stream.click(LOG_BEGIN_MS + LOG_MS * n // n_clicks)


def late_clicks(ended: threading.Event) -> Iterator[tuple[bytes, bytes]]:
    """Clicks of few sessions, hours later, until the event."""
    for n in count():
        if ended.is_set():
            return
        session = f"late-{n % LATE_SESSIONS}"
        yield session.encode(), click(session, f"item-{n % 100}", LOG_BEGIN_MS + 2 * LOG_MS + n)


class Samples(Background):
    """Looks at worker and changelog every five seconds until it is stopped."""

    def __init__(self, worker: WorkerProcess, log_dir: Path, changelog: str) -> None:
        super().__init__()
        self._worker, self._log_dir, self._changelog = worker, log_dir, changelog
        self._began = time.monotonic()
        self.rows: list[Row] = [self._sample()]

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._began, 1)

    def run(self) -> None:
        while not self.stopped.wait(SAMPLE_S):
            self.rows.append(self._sample())
            log.info("sample", **self.rows[-1])

    def _sample(self) -> Row:
        totals = metric_totals(self._worker.port)
        return {
            "seconds": self.seconds,
            "clicks": round(totals["recs_batch_clicks_sum"]),
            "live_sessions": round(totals.get("recs_live_sessions", 0)),
            "memory_mib": memory_mib(self._worker.process.pid),
            "changelog_mib": disk_mib(self._log_dir, self._changelog),
        }


def measure_soak(n_clicks: int, settle_s: int, picture: Path, folder: Path) -> dict[str, Any]:
    """Run a soak and draw it; returns what is kept."""
    bundle = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K)
    with EmbeddedKafka(folder / "kafka", properties=BROKER) as broker:
        deployment = Deployment(broker.bootstrap_servers, "soak", bundle, folder)
        deployment.create_topics(partitions=PARTITIONS)
        try:
            worker = deployment.start()
            with Samples(worker, broker.data_dir / "log", deployment.changelog) as samples:
                deployment.send(clicks(n_clicks, until_answered(worker, AHEAD)))
                until_answered(worker, 0)(n_clicks)
                sent_s = samples.seconds
                log.info("sent", clicks=n_clicks, seconds=sent_s)
                with late(deployment, LATE_RATE):
                    wait_until_over(worker)
                ended_s = samples.seconds
                log.info("ended", seconds=ended_s)
                # The broker rolls a segment when something is appended to it.
                with late(deployment, TRICKLE_RATE):
                    time.sleep(settle_s)
            totals = metric_totals(worker.port)
        finally:
            deployment.close()
    rows = samples.rows
    figures = {
        "clicks": n_clicks,
        "sessions": round(totals["recs_expired_sessions_total"]),
        "clicks_per_second": round(n_clicks / sent_s, 1),
        "sent_s": sent_s,
        "ended_s": ended_s,
        "settle_s": settle_s,
        "begin": rows[0],
        "most": {name: max(row[name] for row in rows) for name in rows[0]},
        "end": rows[-1],
    }
    draw(picture, figures, rows)
    return figures | {"rows": rows}


def until_answered(worker: WorkerProcess, ahead: int) -> Callable[[int], None]:
    """Wait until the worker has answered all of the clicks sent but so many."""
    answered = 0.0

    def wait(n_sent: int) -> None:
        nonlocal answered
        while n_sent - answered > ahead:
            time.sleep(0.2)
            answered = metric_totals(worker.port)["recs_batch_clicks_sum"]

    return wait


@contextmanager
def late(deployment: Deployment, rate: int) -> Iterator[None]:
    """Late clicks at a steady rate for the length of the block."""
    ended = threading.Event()
    sending = threading.Thread(
        target=deployment.send, args=(late_clicks(ended),), kwargs={"per_second": rate}
    )
    sending.start()
    try:
        yield
    finally:
        ended.set()
        sending.join()


def wait_until_over(worker: WorkerProcess) -> None:
    """Wait until the late sessions alone are live."""

    def over() -> bool:
        time.sleep(1)
        return metric_totals(worker.port)["recs_live_sessions"] <= LATE_SESSIONS

    wait_for(over, PATIENCE_S, "the end of all sessions")


def draw(path: Path, figures: dict[str, Any], rows: list[Row]) -> None:
    """An SVG of live sessions, memory and changelog, one above the other, over minutes."""
    # Text stays text, and the same figures give the same file.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "nextclick"}
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(3, sharex=True)
    minutes = [row["seconds"] / 60 for row in rows]
    shown = (
        ("live_sessions", 1e-3, "live sessions, thousands"),
        ("memory_mib", 1.0, "memory, MiB"),
        ("changelog_mib", 1.0, "changelog, MiB"),
    )
    for axis, (name, scale, label) in zip(panels, shown, strict=True):
        axis.plot(minutes, [row[name] * scale for row in rows], color="#0072B2")
        for at in (figures["sent_s"], figures["ended_s"]):
            axis.axvline(at / 60, color="0.3", linestyle="--", linewidth=0.8)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(
        f"{figures['clicks']:,} clicks up to the first line; all sessions are over at the second",
        fontsize="medium",
    )
    panels[-1].set_xlabel("minutes")
    figure.savefig(path, metadata={"Date": None})
