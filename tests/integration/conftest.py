"""The real broker of the integration tests, and their time limit."""

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.faults.service import Deployment
from bench.faults.traffic import session_load
from bench.serving.bundles import write_tiny_bundle
from deploy.broker import EmbeddedKafka, resolve_kafka

HERE = Path(__file__).parent
TIMEOUT_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real Apache Kafka; where none can be had the test fails.

    The broker is shared by the whole run: take topic names and group ids from ``fresh_name``.
    A test that stops or restarts its broker starts its own ``deploy.broker.EmbeddedKafka``.
    """
    with resolve_kafka(tmp_path_factory.mktemp("kafka")) as bootstrap_servers:
        yield bootstrap_servers


@pytest.fixture
def fresh_name() -> Callable[[str], str]:
    """Names for topics, groups and applications that no other test has used.

    ``fresh_name("clicks")`` is ``clicks-<8 hex digits>``; the digits are the same within a test.
    """
    run = uuid.uuid4().hex[:8]
    return lambda base: f"{base}-{run}"


@pytest.fixture
def deployment(
    kafka: str, fresh_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Deployment]:
    """Topics of four partitions and a small random GRU over item-0 to item-49; no worker yet."""
    bundle = write_tiny_bundle(tmp_path, n_items=50, hidden_size=8, k=20)
    deployment = Deployment(kafka, fresh_name("app"), bundle, tmp_path)
    deployment.create_topics()
    yield deployment
    deployment.close()


@contextmanager
def own_deployment(
    folder: Path, properties: Mapping[str, str] | None = None, **topics: int
) -> Iterator[tuple[EmbeddedKafka, Deployment]]:
    """As ``deployment``, on a broker of its own that the test may end, freeze or configure."""
    bundle = write_tiny_bundle(folder, n_items=50, hidden_size=8, k=20)
    with EmbeddedKafka(folder / "kafka", properties=properties) as broker:
        deployment = Deployment(broker.bootstrap_servers, "own", bundle, folder)
        deployment.create_topics(**topics)
        try:
            yield broker, deployment
        finally:
            deployment.close()


def steady_load(deployment: Deployment, n_clicks: int, per_second: float) -> threading.Thread:
    """A thread that sends clicks at a steady rate, once it is started."""
    return threading.Thread(
        target=deployment.send,
        args=(session_load(n_clicks),),
        kwargs={"per_second": per_second},
    )
