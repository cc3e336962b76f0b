"""The faults, each with its proof: what shows, from outside the worker, that it did harm."""

import contextlib
import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.faults.scene import Fault, Scene, admin_of, gaps
from bench.faults.service import WorkerProcess
from deploy.broker import EmbeddedKafka

Proof = dict[str, Any]
OUTAGE_S = 1.0
NO_SPACE = "No space left on device"


def _replace(scene: Scene, how: signal.Signals, n: int = 1) -> Proof:
    before = scene.settled()
    scene.end(how, *scene.victims(n))
    scene.start(n)
    return _moved(scene, before)


def _moved(scene: Scene, before: dict[int, str]) -> Proof:
    n = scene.moved(before)
    return {"hit": n > 0, "moved": n}


def join(scene: Scene) -> Proof:
    before = scene.settled()
    scene.start()
    return _moved(scene, before)


def leave(scene: Scene) -> Proof:
    before = scene.settled()
    scene.end(signal.SIGTERM, *scene.victims())
    return _moved(scene, before)


def join_leave(scene: Scene) -> Proof:
    """One more joins, and then one leaves."""
    joined, left = join(scene), leave(scene)
    return {"hit": joined["hit"] and left["hit"], "moved": joined["moved"] + left["moved"]}


def pause(scene: Scene) -> Proof:
    """Stop a worker until the group has given its partitions away, and wake it again."""
    before = scene.settled()
    (sleeper,) = scene.victims()
    sleeper.end(signal.SIGSTOP)
    try:
        n = scene.moved(before, besides=1)
        hit = n > 0 and sleeper.is_stopped
    finally:
        sleeper.end(signal.SIGCONT)
    scene.settled()
    return {"hit": hit, "moved": n}


def two(scene: Scene) -> Proof:
    """Two workers at the same instant: both killed and replaced, or both started."""
    if len(scene.running) > 1 and scene.random.random() < 0.5:
        return {"two": "killed", **_replace(scene, signal.SIGKILL, 2)}
    before = scene.settled()
    scene.start(2)
    return {"two": "started", **_moved(scene, before)}


def rolling(scene: Scene) -> Proof:
    """Replace every worker by one with another bundle, one after the other."""
    before = scene.settled()
    for worker in scene.running:
        scene.end(signal.SIGTERM, worker)
        (new,) = scene.start(bundle=scene.bundles.second)
        scene.wait(partial(_is_ready, new), "a ready worker")
        scene.settled()
    proof = _moved(scene, before)
    both = {bundle.name for bundle in (scene.bundles.first, scene.bundles.second)}
    # A worker is ready before its first answer.
    scene.wait(lambda: _models(scene) == both, "answers of both bundles")
    return proof | {"hit": True}


def _models(scene: Scene) -> set[str]:
    """Names of the bundles that have answered."""
    answers = scene.deployment.read(scene.deployment.recommendations)
    return {json.loads(answer.value or b"")["model"] for answer in answers}


def _is_ready(worker: WorkerProcess) -> bool:
    return worker.get("/ready")[0] == 200


def _broker_ends(scene: Scene, end: Callable[[EmbeddedKafka], None]) -> Proof:
    """End the broker in the middle of the load, and start it again."""
    broker = scene.broker
    assert broker is not None
    answers, sent, ended_s = len(scene.watcher.arrivals), scene.sent, time.monotonic()
    end(broker)
    assert not broker.running
    time.sleep(OUTAGE_S)
    broker.start()
    # One that has lost its connection may end the process (librdkafka issue 4605).
    scene.admin = admin_of(scene.deployment)
    back_s = time.monotonic()
    scene.wait(lambda: scene.watcher.last_s() > back_s, "an answer after the outage")
    scene.settled()
    kept_out = scene.sent - sent
    quiet_s = gaps(scene.watcher.arrivals, ended_s)["gap_s"]
    return {
        # Answers came before, clicks came meanwhile, and nobody was answered while it was away.
        "hit": answers > 0 and kept_out > 0 and quiet_s >= OUTAGE_S,
        "sent_meanwhile": kept_out,
        "away_s": round(back_s - ended_s, 1),
    }


def disk_full(scene: Scene) -> Proof:
    """Fill the broker's disk, wait until it has refused bytes, free the disk, start it again."""
    broker = scene.broker
    assert broker is not None
    ballast, log = broker.data_dir / "log" / "ballast", broker.data_dir / "broker.log"

    def fill(broker: EmbeddedKafka) -> None:
        _fill(ballast)
        scene.wait(lambda: NO_SPACE in log.read_text(errors="replace"), "refused bytes")
        time.sleep(OUTAGE_S)
        broker.kill()  # it has ended by itself, or its log directory is offline for good
        ballast.unlink()

    proof = _broker_ends(scene, fill)
    refused = log.read_text(errors="replace").count(NO_SPACE)
    return proof | {"hit": proof["hit"] and refused > 0, "refused": refused}


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # no space left
        while file.write(bytes(1 << 20)):
            pass


FAULTS = {
    "kill": Fault(partial(_replace, how=signal.SIGKILL)),
    "term": Fault(partial(_replace, how=signal.SIGTERM)),
    "join": Fault(join),
    "leave": Fault(leave, workers=(2, 3)),
    "broker_kill": Fault(partial(_broker_ends, end=EmbeddedKafka.kill), own_broker=True),
    "broker_term": Fault(partial(_broker_ends, end=EmbeddedKafka.stop), own_broker=True),
    "pause": Fault(pause, workers=(2, 3)),
    "two": Fault(two),
    "disk_full": Fault(disk_full, own_broker=True, disk_mib=64),
    "rolling": Fault(rolling, workers=(1, 2), replaces_bundle=True),
    "live_kill": Fault(partial(_replace, how=signal.SIGKILL), live=True),
    "kill_items": Fault(partial(_replace, how=signal.SIGKILL), (1, 2), "count", live=True),
    "term_items": Fault(partial(_replace, how=signal.SIGTERM), (1, 2), "count", live=True),
    "join_leave_items": Fault(join_leave, (1, 2), "count", live=True),
    "broker_kill_items": Fault(
        partial(_broker_ends, end=EmbeddedKafka.kill), (1, 2), "count", live=True, own_broker=True
    ),
}
