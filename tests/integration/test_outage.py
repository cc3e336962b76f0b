"""A broker that is away, frozen or forgetful, and a start that is interrupted."""

import os
import signal
import time
from pathlib import Path

import pytest

from bench.faults.service import SESSION_TIMEOUT_S, Deployment
from bench.faults.traffic import session_load
from bench.faults.verdict import verdict
from deploy.processes import wait_for
from tests.integration.conftest import own_deployment, steady_load

AWAY_S = 2 * SESSION_TIMEOUT_S + 8


FORGETFUL = {
    "transactional.id.expiration.ms": "2000",
    "transaction.remove.expired.transaction.cleanup.interval.ms": "500",
    "producer.id.expiration.ms": "2000",
    "producer.id.expiration.check.interval.ms": "500",
}
"""A week's silence in seconds: the broker forgets ids, and the producers behind them."""


def test_the_first_click_after_a_long_silence_is_answered(tmp_path: Path) -> None:
    with own_deployment(tmp_path, FORGETFUL) as (_, deployment):
        worker = deployment.start()
        load = list(session_load(400))
        for begin in (0, 200):
            deployment.send(load[begin : begin + 200])
            deployment.wait_until_answered(begin + 200)
            time.sleep(6)
        assert worker.process.poll() is None, worker.log()
        assert "transaction_lost" in worker.log(), "the ids had been forgotten"
        found = verdict(deployment)
    assert found.exact, str(found)


@pytest.mark.timeout(180)
def test_a_broker_that_freezes_under_load_loses_nothing(tmp_path: Path) -> None:
    with own_deployment(tmp_path) as (broker, deployment):
        load = steady_load(deployment, 6000, 500.0)
        workers = [deployment.start() for _ in range(2)]
        load.start()
        time.sleep(3)
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            time.sleep(AWAY_S)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        load.join()
        deployment.wait_until_answered(6000)
        for worker in workers:
            assert worker.process.poll() is None, worker.log()
        found = verdict(deployment)
    assert found.exact, str(found)


@pytest.mark.timeout(180)
def test_workers_outlive_an_outage_in_silence_and_go_on_when_it_ends(tmp_path: Path) -> None:
    with own_deployment(tmp_path) as (broker, deployment):
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
    assert found.exact, str(found)


@pytest.mark.parametrize("after_s", [0.2, 0.6, 1.2, 2.0, 3.0])
def test_a_start_that_is_interrupted_ends_with_0(deployment: Deployment, after_s: float) -> None:
    worker = deployment.start(wait=False)
    time.sleep(after_s)
    worker.end(signal.SIGTERM)
    assert worker.wait_for_exit(30) == 0, worker.log()
