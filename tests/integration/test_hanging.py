"""A commit whose markers the broker loses: what a broker that shuts down leaves now and then."""

import signal
import struct
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from bench.faults.service import SESSION_TIMEOUT_S, Deployment
from bench.faults.traffic import session_load
from bench.faults.verdict import verdict
from bench.serving.bundles import write_tiny_bundle
from deploy.broker import EmbeddedKafka
from deploy.processes import wait_for

N_CLICKS = 300
CONTROL = 0x20
"""The attribute of a batch that holds a transaction's marker (record format 2)."""


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[tuple[EmbeddedKafka, Deployment]]:
    bundle = write_tiny_bundle(tmp_path, n_items=50, hidden_size=8, k=20)
    with EmbeddedKafka(tmp_path / "kafka") as broker:
        deployment = Deployment(broker.bootstrap_servers, "hanging", bundle, tmp_path)
        deployment.create_topics(partitions=1)
        try:
            yield broker, deployment
        finally:
            deployment.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("survives", "guards"),
    [(False, ()), (True, ()), (False, ("abort",))],
    ids=["a new worker", "the same worker", "broken"],
)
def test_a_transaction_that_lost_its_commit_markers_is_answered_once(
    deployed: tuple[EmbeddedKafka, Deployment], survives: bool, guards: tuple[str, ...]
) -> None:
    broker, deployment = deployed
    worker = deployment.start(*guards)
    load = list(session_load(N_CLICKS))
    deployment.send(islice(load, 0, 200))
    deployment.wait_until_answered(200)
    before = len(deployment.read(deployment.recommendations))

    worker.end(signal.SIGSTOP if survives else signal.SIGKILL)
    broker.stop()
    log = broker.data_dir / "log"
    for topic in (deployment.recommendations, deployment.changelog):
        cut_last_marker(log / f"{topic}-0" / f"{0:020}.log")
    # Without the notes of a clean end the broker looks at the logs themselves.
    for note in (".kafka_cleanshutdown", "*-checkpoint", f"{deployment.app}-*/*.snapshot"):
        for path in log.glob(note):
            path.unlink()
    broker.start()
    assert len(deployment.read(deployment.recommendations)) < before, "nothing hangs"

    if survives:
        time.sleep(SESSION_TIMEOUT_S + 2)  # it rejoins, and restores what it had applied
        worker.end(signal.SIGCONT)
    else:
        worker = deployment.start(*guards, wait=False)
    if guards:
        time.sleep(30)  # no owner of other ids ends the transaction, and no restore passes it
        assert worker.get("/ready")[0] == 503
        return
    wait_for(lambda: "hanging_transaction_aborted" in worker.log(), 60, "an abort")
    deployment.send(islice(load, 200, None))
    deployment.wait_until_answered(N_CLICKS)
    found = verdict(deployment)
    assert found.exact, str(found)


def cut_last_marker(path: Path) -> None:
    """Take the last batch off a partition's log; it must be a marker."""
    log = path.read_bytes()
    begin = end = 0
    while end < len(log):
        begin = end
        end += 12 + struct.unpack_from(">i", log, begin + 8)[0]
    attributes = struct.unpack_from(">h", log, begin + 21)[0]
    assert attributes & CONTROL, f"the last batch of {path} is no marker"
    path.write_bytes(log[:begin])
