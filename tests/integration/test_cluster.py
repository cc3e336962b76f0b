"""Three brokers, of which one is enough to lose."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.faults.service import Deployment
from bench.faults.verdict import verdict
from bench.serving.bundles import write_tiny_bundle
from deploy.broker import EmbeddedKafka, new_cluster_id
from tests.integration.conftest import steady_load

N_BROKERS, N_CLICKS, PER_SECOND = 3, 6000, 200.0
REPLICATED = {
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
}


@contextmanager
def cluster(folder: Path) -> Iterator[list[EmbeddedKafka]]:
    """Brokers that are all controllers, too. They start together: one alone has no quorum."""
    cluster_id = new_cluster_id()
    brokers = [
        EmbeddedKafka(folder / f"kafka-{n}", properties=REPLICATED, cluster_id=cluster_id)
        for n in range(N_BROKERS)
    ]
    voters = ",".join(f"{n}@127.0.0.1:{b.controller_port}" for n, b in enumerate(brokers, 1))
    for n, broker in enumerate(brokers, 1):
        broker.properties |= {"node.id": str(n), "controller.quorum.voters": voters}
    # A broker ends with the thread that has started it.
    with ThreadPoolExecutor(N_BROKERS) as pool:
        try:
            list(pool.map(EmbeddedKafka.start, brokers))
            yield brokers
        finally:
            for broker in brokers:
                broker.kill()


@pytest.mark.timeout(240)
def test_a_broker_of_three_that_is_lost_stops_and_loses_nothing(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, n_items=50, hidden_size=8, k=20)
    with cluster(tmp_path) as brokers:
        servers = ",".join(broker.bootstrap_servers for broker in brokers)
        deployment = Deployment(servers, "own", bundle, tmp_path)
        try:
            deployment.create_topics(replication_factor=N_BROKERS)
            workers = [deployment.start() for _ in range(2)]
            load = steady_load(deployment, N_CLICKS, PER_SECOND)
            load.start()
            time.sleep(5)
            brokers[0].kill()
            load.join()
            deployment.wait_until_answered(N_CLICKS)
            for worker in workers:
                assert worker.process.poll() is None, worker.log()
                assert "weak_replication" not in worker.log()
            found = verdict(deployment)
        finally:
            deployment.close()
    assert found.exact, str(found)
