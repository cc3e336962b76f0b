"""A broker that is away for longer than the session timeout, and a start that is interrupted."""

import signal
import time
from pathlib import Path

import pytest

from bench.faults.service import SESSION_TIMEOUT_S, Deployment
from bench.faults.traffic import session_load
from bench.faults.verdict import verdict
from bench.serving.bundles import write_tiny_bundle
from deploy.broker import EmbeddedKafka
from deploy.processes import wait_for

AWAY_S = 2 * SESSION_TIMEOUT_S + 8


@pytest.mark.timeout(180)
def test_workers_outlive_an_outage_in_silence_and_go_on_when_it_ends(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, n_items=50, hidden_size=8, k=20)
    with EmbeddedKafka(tmp_path / "kafka") as broker:
        deployment = Deployment(broker.bootstrap_servers, "outage", bundle, tmp_path)
        deployment.create_topics()
        try:
            worker = deployment.start()
            load = list(session_load(2000))
            deployment.send(load[:1000])
            broker.stop()
            began = time.monotonic()
            n_lines = len(worker.log().splitlines())
            wait_for(lambda: worker.get("/ready")[0] == 503, AWAY_S, "a worker that is not ready")
            time.sleep(max(0.0, began + AWAY_S - time.monotonic()))
            assert worker.process.poll() is None, worker.log()
            assert worker.get("/healthz")[0] == 200
            assert len(worker.log().splitlines()) - n_lines <= AWAY_S
            broker.start()
            back = time.monotonic()
            wait_for(lambda: worker.get("/ready")[0] == 200, 30, "a ready worker")
            print(f"ready {time.monotonic() - back:.1f} s after the broker")
            deployment.send(load[1000:])
            deployment.wait_until_answered(2000)
            assert worker.process.poll() is None, worker.log()
            found = verdict(deployment)
        finally:
            deployment.close()
    assert found.exact, str(found)


@pytest.mark.parametrize("after_s", [0.2, 0.6, 1.2, 2.0, 3.0])
def test_a_start_that_is_interrupted_ends_with_0(deployment: Deployment, after_s: float) -> None:
    worker = deployment.start(wait=False)
    time.sleep(after_s)
    worker.end(signal.SIGTERM)
    assert worker.wait_for_exit(30) == 0, worker.log()
