"""A million live sessions in one worker: ``python -m bench.serving.sessions``.

Their restore, their memory, and the longest pauses of the event loop: while they are restored,
while clicks are answered, and while all of them expire. ``--soak`` is another measurement: sessions
come and go, and memory and changelog must end where they began (soak.py).
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
from confluent_kafka.admin import AdminClient
from pydantic import PositiveInt

from bench.faults.service import Deployment, WorkerProcess
from bench.faults.traffic import LOG_BEGIN_MS, click, produce
from bench.provenance import RESULTS, keep
from bench.serving.bundles import write_tiny_bundle
from bench.serving.pauses import Pauses
from bench.serving.rounds import HIDDEN_SIZE, N_ITEMS, K
from bench.serving.soak import late, measure_soak, wait_until_over
from bench.serving.workers import (
    PARTITIONS,
    ROOT,
    cpu_seconds,
    disk_mib,
    memory_mib,
    metric_totals,
)
from deploy.broker import EmbeddedKafka
from deploy.command import DeployError
from deploy.processes import wait_for
from stream.contract.click import TRAIL_CLICKS
from stream.metrics import STAGE_BUCKETS
from stream.model.bundle import load_bundle
from stream.position import POSITION_KEY, Position, encode_position
from stream.session import LastOutcome, SessionState, TrailClick, encode_state
from stream.transport.topics import topic_id
from train.command import Settings, run_command

log = structlog.get_logger(__name__)

MEAN_TRAIL = 5
SPREAD_MS = 1_200_000
"""The last clicks lie within 20 minutes: no session is over at the watermark."""
RATE = 500
BASE_S = 10
SERVING_S = 30
PATIENCE_S = 300


class SessionsSettings(Settings):
    """Measure a worker with very many live sessions, or let it soak."""

    sessions: PositiveInt = 1_000_000
    """Live sessions to restore."""
    soak: PositiveInt | None = None
    """Send so many clicks instead (5000000), with five of them to a session, and draw memory and
    changelog."""
    settle_s: PositiveInt = 780
    """How long a soak looks on after the last session's end: a segment of the changelog is closed
    after ten minutes, and compacted then."""
    out: Path = RESULTS / "sessions.json"
    """File of the result."""
    soak_out: Path = RESULTS / "soak.json"
    """File of the soak's result."""
    picture: Path = ROOT / "docs" / "soak.svg"
    """File of the soak's picture."""


def states(model_id: str, n_sessions: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and states of live sessions; every other one has event ids.

    Trails have a geometric length, 5 on average. Model states and lists are of few hundred kinds.
    """
    random = np.random.default_rng(1)
    kinds = [
        (
            random.normal(0, 0.5, HIDDEN_SIZE).astype(np.float32),
            random.integers(N_ITEMS, size=K, dtype=np.int32),
            np.sort(random.normal(0, 1, K).astype(np.float32))[::-1],
        )
        for _ in range(499)
    ]
    lengths = np.minimum(random.geometric(1 / MEAN_TRAIL, n_sessions), TRAIL_CLICKS)
    for n, length in enumerate(lengths.tolist()):
        last_ms = LOG_BEGIN_MS - int(random.integers(SPREAD_MS))
        items = random.integers(N_ITEMS, size=length).tolist()
        hashes = random.integers(1, 2**63, size=length).tolist() if n % 2 else [0] * length
        trail = tuple(
            TrailClick(f"item-{item}", last_ms - 10_000 * (length - 1 - at), event_hash)
            for at, (item, event_hash) in enumerate(zip(items, hashes, strict=True))
        )
        model_state, index, score = kinds[n % len(kinds)]
        state = SessionState(
            *(model_id, last_ms, last_ms, length, LastOutcome.MODEL),
            *(trail, model_state, index, score),
        )
        yield f"session-{n:07d}".encode(), encode_state(state)


def fill(deployment: Deployment, n_sessions: int) -> None:
    """Write the states and a position for each partition, as if a worker had left them."""
    servers, topic = deployment.bootstrap_servers, deployment.changelog
    model_id = load_bundle(deployment.bundle).manifest.bundle_id
    produce(servers, topic, states(model_id, n_sessions))
    admin = AdminClient({"bootstrap.servers": servers})
    position = Position(0, topic_id(admin, deployment.clicks), LOG_BEGIN_MS, owner="left")
    for partition in range(PARTITIONS):
        produce(servers, topic, [(POSITION_KEY, encode_position(position))], partition=partition)


def clicks_on(n_sessions: int, n_clicks: int) -> Iterator[tuple[bytes, bytes]]:
    """Clicks on the live sessions, in order of time; every other session has event ids."""
    random = np.random.default_rng(2)
    for n in range(n_clicks):
        number = int(random.integers(n_sessions))
        session, event = f"session-{number:07d}", f"event-{n}" if number % 2 else None
        item = f"item-{random.integers(N_ITEMS)}"
        yield session.encode(), click(session, item, LOG_BEGIN_MS + 2 * n, event)


def measure(settings: SessionsSettings, folder: Path) -> dict[str, Any]:
    bundle = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K)
    with EmbeddedKafka(folder / "kafka") as broker:
        base = Deployment(broker.bootstrap_servers, "none", bundle, folder)
        full = Deployment(broker.bootstrap_servers, "many", bundle, folder)
        try:
            for deployment in (base, full):
                deployment.create_topics(partitions=PARTITIONS)
            idle = measure_base(base)
            log.info("base", **idle)
            base.close()
            log.info("filling", sessions=settings.sessions)
            fill(full, settings.sessions)
            changelog_mib = disk_mib(broker.data_dir / "log", full.changelog)
            began = time.monotonic()
            worker = full.start(wait=False)
            with Pauses(worker.port) as pauses:
                restore = measure_restore(worker, pauses, began)
                restore["memory_mib"] = memory_mib(worker.process.pid)
                more = restore["memory_mib"] - idle["memory_mib"]
                restore["bytes_a_session"] = round(more * 2**20 / settings.sessions)
                log.info("restore", **restore)
                serving = measure_serving(full, worker, pauses, settings.sessions)
                log.info("serving", **serving)
                expiry = measure_expiry(full, worker, pauses)
                log.info("expiry", **expiry)
        finally:
            base.close()
            full.close()
    return {
        "sessions": settings.sessions,
        "mean_trail": MEAN_TRAIL,
        "model": {"n_items": N_ITEMS, "hidden_size": HIDDEN_SIZE, "n_recommendations": K},
        "partitions": PARTITIONS,
        "changelog_mib": changelog_mib,
        "without_sessions": idle,
        "restore": restore,
        "serving": serving,
        "expiry": expiry,
    }


def measure_base(deployment: Deployment) -> dict[str, Any]:
    """A worker without sessions or clicks: its memory, and what the machine alone delays."""
    worker = deployment.start()
    with Pauses(worker.port) as pauses:
        began = time.monotonic()
        time.sleep(BASE_S)
        return {"memory_mib": memory_mib(worker.process.pid), "pauses": pauses.since(began)}


def measure_restore(worker: WorkerProcess, pauses: Pauses, began: float) -> dict[str, Any]:
    """From the start of the process until it is ready."""

    def ready() -> bool:
        if worker.process.poll() is not None:
            raise DeployError(f"the worker has ended: {worker.log()}")
        return '"restored"' in worker.log() and worker.get("/ready")[0] == 200

    wait_for(ready, PATIENCE_S, "a restored worker")
    seconds = time.monotonic() - began
    lines = [json.loads(line) for line in worker.log().splitlines() if '"restored"' in line]
    return {
        "seconds_from_start": round(seconds, 1),
        "seconds": lines[-1]["seconds"],
        "records": lines[-1]["records"],
        "records_per_second": round(lines[-1]["records"] / lines[-1]["seconds"]),
        "cpu_s_from_start": round(cpu_seconds(worker.process.pid), 1),
        "pauses": pauses.since(began),
    }


def measure_serving(
    deployment: Deployment, worker: WorkerProcess, pauses: Pauses, n_sessions: int
) -> dict[str, Any]:
    """Clicks at a steady rate on the sessions."""
    began, before = time.monotonic(), metric_totals(worker.port)
    n_clicks = RATE * SERVING_S
    deployment.send(clicks_on(n_sessions, n_clicks), per_second=RATE)
    return after(worker, pauses, began, before)


def measure_expiry(deployment: Deployment, worker: WorkerProcess, pauses: Pauses) -> dict[str, Any]:
    """Clicks at the same rate, hours later by their timestamps, until the sessions are gone."""
    began, before = time.monotonic(), metric_totals(worker.port)
    with late(deployment, RATE):
        wait_until_over(worker)
    return after(worker, pauses, began, before)


def after(
    worker: WorkerProcess, pauses: Pauses, began: float, before: dict[str, float]
) -> dict[str, Any]:
    now = metric_totals(worker.port)
    expired = now["recs_expired_sessions_total"] - before["recs_expired_sessions_total"]
    return {
        "seconds": round(time.monotonic() - began, 1),
        "clicks": round(now["recs_batch_clicks_sum"] - before["recs_batch_clicks_sum"]),
        "batches": round(now["recs_batch_clicks_count"] - before["recs_batch_clicks_count"]),
        "expired": round(expired),
        "memory_mib": memory_mib(worker.process.pid),
        "pauses": pauses.since(began),
        "stages_ms": slowest_stages(before, now),
    }


def slowest_stages(before: dict[str, float], now: dict[str, float]) -> dict[str, dict[str, float]]:
    """By stage its mean, and a bound that no batch since then has passed (infinity: over 1 s)."""
    found = {}
    for stage in ("plan", "score", "finish", "apply", "deliver"):

        def more(name: str, labels: str = f'stage="{stage}"') -> float:
            key = f"recs_stage_seconds_{name}{{{labels}}}"
            return now.get(key, 0.0) - before.get(key, 0.0)

        n_batches = more("count")
        bounds = [
            bound
            for bound in STAGE_BUCKETS
            if more("bucket", f'le="{bound}",stage="{stage}"') >= n_batches
        ]
        mean_ms = 1000 * more("sum") / n_batches if n_batches else 0.0
        bound_ms = 1000 * min(bounds, default=float("inf"))
        found[stage] = {"mean": round(mean_ms, 2), "at_most": round(bound_ms, 1)}
    return found


def run(settings: SessionsSettings) -> None:
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        if settings.soak is None:
            result, out = measure(settings, Path(name)), settings.out
        else:
            result = measure_soak(settings.soak, settings.settle_s, settings.picture, Path(name))
            out = settings.soak_out
    keep(out, result)
    shown = {name: value for name, value in result.items() if name != "rows"}
    print(msgspec.json.format(msgspec.json.encode(shown)).decode())
    print(f"written to {out}")


if __name__ == "__main__":
    sys.exit(run_command(SessionsSettings, run, errors=(DeployError,)))
