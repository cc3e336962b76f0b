"""The path in containers, as deploy/compose.yaml describes it: Kafka, two workers, and items."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker  # type: ignore[import-untyped]  # publishes no types
import pytest
import yaml
from confluent_kafka import Consumer, Producer
from docker.errors import ImageNotFound  # type: ignore[import-untyped]  # publishes no types
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from bench.serving.bundles import even_live, write_tiny_bundle
from deploy.broker import answers, free_port
from deploy.images import BASE_IMAGE, KAFKA_IMAGE, STREAM_IMAGE, make_stream
from deploy.processes import wait_for

pytestmark = pytest.mark.docker

SERVICES: dict[str, Any] = yaml.safe_load(Path("deploy/compose.yaml").read_text())["services"]
N_CLICKS = 2000
N_SESSIONS = 100


@dataclass(frozen=True, slots=True)
class Deployment:
    bootstrap_servers: str
    network: Network
    bundle: Path
    workers: list[Any]  # docker-py's containers
    items: Any


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    # Asked by its command line: a Python client that fails to connect leaks its socket.
    found = shutil.which("docker") and subprocess.run(["docker", "version"], capture_output=True)
    if not found or found.returncode:
        said = found.stderr.decode().strip() if found else "there is no docker command"
        reason = f"no Docker engine answers: {said}"
        if os.environ.get("NEXTCLICK_REQUIRE_DOCKER") == "1":
            pytest.fail(f"NEXTCLICK_REQUIRE_DOCKER=1 and {reason}")
        pytest.skip(reason)
    client = docker.from_env()
    # Its reaper is one more image to pull; every container here ends with its `with` block.
    testcontainers_config.ryuk_disabled = True
    yield client
    client.close()


def has_image(engine: Any, name: str) -> bool:
    try:
        engine.images.get(name)
    except ImageNotFound:
        return False
    return True


@pytest.fixture(scope="module")
def deployment(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The compose file's services, from images made here or, where there are none, pulled."""
    make_stream(BASE_IMAGE if has_image(engine, BASE_IMAGE) else "python:3.11-slim")
    kafka_image = KAFKA_IMAGE if has_image(engine, KAFKA_IMAGE) else SERVICES["kafka"]["image"]
    folder = tmp_path_factory.mktemp("bundles")
    folder.chmod(0o755)  # pytest's folders are closed to the worker's user
    bundle = write_tiny_bundle(folder, k=20, live=even_live(20))
    port = free_port()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network())
        environment = SERVICES["kafka"]["environment"] | {
            "KAFKA_ADVERTISED_LISTENERS": f"INSIDE://kafka:29092,OUTSIDE://localhost:{port}"
        }
        kafka = DockerContainer(kafka_image).with_bind_ports(9092, port)
        kafka.with_network(network).with_network_aliases("kafka")
        for name, value in environment.items():
            kafka.with_env(name, str(value))
        broker = stack.enter_context(kafka).get_wrapped_container()

        def broker_answers() -> bool:
            broker.reload()
            if broker.status == "exited":
                pytest.fail(f"Kafka ended: {broker.logs().decode()[-2000:]}")
            return answers(port)

        wait_for(broker_answers, 60, "Kafka's answer")
        topics = stack.enter_context(service("topics", network)).get_wrapped_container()
        assert topics.wait(timeout=60)["StatusCode"] == 0, topics.logs().decode()
        workers = [
            stack.enter_context(running_on(bundle, "worker", network))
            for _ in range(SERVICES["worker"]["deploy"]["replicas"])
        ]
        items = stack.enter_context(running_on(bundle, "items", network))
        for container in (*workers, items):
            wait_until_healthy(container)
        yield Deployment(f"localhost:{port}", network, bundle, workers, items)


@contextlib.contextmanager
def running_on(bundle: Path, name: str, network: Network) -> Iterator[Any]:
    """The container (docker-py's) of a service with a bundle while the block runs."""
    with service(name, network).with_volume_mapping(str(bundle), "/bundle", "ro") as started:
        yield started.get_wrapped_container()


def wait_until_healthy(worker: Any) -> None:
    """Return when the image's own health check has found the worker well; fail when it ends."""

    def healthy() -> bool:
        worker.reload()
        if worker.status != "running":
            pytest.fail(f"a service is {worker.status}: {worker.logs().decode()[-2000:]}")
        return bool(worker.attrs["State"]["Health"]["Status"] == "healthy")

    wait_for(healthy, 90, "a healthy service")


def service(name: str, network: Network) -> DockerContainer:
    """One of our services as the compose file runs it: settings, command and confinement."""
    described = SERVICES[name]
    container = DockerContainer(STREAM_IMAGE).with_network(network)
    for setting, value in described["environment"].items():
        container.with_env(setting, str(value))
    for folder in described["tmpfs"]:
        container.with_tmpfs_mount(folder)
    return container.with_command(described["command"]).with_kwargs(
        read_only=described["read_only"],
        cap_drop=described["cap_drop"],
        security_opt=described["security_opt"],
    )


def test_every_click_gets_exactly_one_recommendation(deployment: Deployment) -> None:
    servers = {"bootstrap.servers": deployment.bootstrap_servers}
    producer = Producer(servers | {"partitioner": "murmur2_random", "enable.idempotence": True})
    now_ms = int(time.time() * 1000)
    sent = []
    for n in range(N_CLICKS):
        session_id, item_id = f"session-{n % N_SESSIONS}", f"item-{n % 50}"
        click = {"session_id": session_id, "item_id": item_id, "timestamp_ms": now_ms + n}
        producer.produce("clicks", json.dumps(click), session_id)
        sent.append((session_id, item_id, now_ms + n))
    assert producer.flush(30) == 0

    consumer = Consumer(
        servers
        | {
            "group.id": "shop",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe(["recommendations"])
    received: list[dict[str, Any]] = []

    def all_there() -> bool:
        for record in consumer.consume(1000, timeout=1):
            assert record.error() is None
            received.append(json.loads(record.value() or b""))
        return len(received) >= N_CLICKS

    wait_for(all_there, 90, f"{N_CLICKS} recommendations")
    received += [json.loads(r.value() or b"") for r in consumer.consume(1, timeout=3)]
    consumer.close()
    answered = Counter(
        (r["session_id"], r["click"]["item_id"], r["click"]["timestamp_ms"]) for r in received
    )
    assert answered == Counter(sent)
    assert {len(r["items"]) for r in received} == {20}
    assert {r["outcome"] for r in received} == {"model"}

    viewer = Consumer(servers | {"group.id": "looks", "auto.offset.reset": "earliest"})
    viewer.subscribe(["nextclick-item-view"])
    counted: set[bytes | None] = set()

    def all_items_counted() -> bool:
        counted.update(record.key() for record in viewer.consume(1000, timeout=1))
        return counted >= {f"item-{n}".encode() for n in range(50)}

    wait_for(all_items_counted, 60, "counts of 50 items")
    viewer.close()


def test_a_worker_is_not_root_and_cannot_write_its_image(deployment: Deployment) -> None:
    for worker in deployment.workers:
        status = worker.exec_run(["cat", "/proc/1/status"]).output.decode()
        (uids,) = [line.split()[1:] for line in status.splitlines() if line.startswith("Uid:")]
        assert set(uids) == {"10001"}
        assert worker.exec_run(["touch", "/app/x"]).exit_code != 0


def test_the_worker_cannot_import_torch(deployment: Deployment) -> None:
    done = deployment.workers[0].exec_run(["python", "-c", "import torch"])
    assert done.exit_code == 1
    assert b"No module named 'torch'" in done.output


def test_a_stopped_worker_ends_by_itself_within_its_grace_period(deployment: Deployment) -> None:
    grace_s = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    with running_on(deployment.bundle, "worker", deployment.network) as worker:
        wait_until_healthy(worker)
        worker.stop(timeout=grace_s)
        assert worker.wait()["StatusCode"] == 0, worker.logs().decode()[-2000:]
