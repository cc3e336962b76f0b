"""The embedded broker: the promises that every other integration test stands on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.broker import EmbeddedKafka, answers, free_port
from deploy.command import DeployError
from deploy.processes import wait_for
from train.command import TrainError
from train.folders import locked

TOPIC = "kept"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka(tmp_path_factory.mktemp("broker")) as started:
        yield started


def make_topic(bootstrap_servers: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)


def append(bootstrap_servers: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all"})
    producer.produce(topic, value)
    assert producer.flush(30) == 0


def values(bootstrap_servers: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "reader"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    records = consumer.consume(count, timeout=30)
    consumer.close()
    return [record.value() or b"" for record in records]


def folder_is_free(folder: Path) -> bool:
    """Whether both the command and its broker, which inherits the lock, have ended."""
    try:
        with locked(folder, "in use"):
            return True
    except TrainError:
        return False


@pytest.mark.parametrize("crash", [False, True], ids=["stop", "kill -9"])
def test_a_restarted_broker_has_its_records_and_its_port(
    broker: EmbeddedKafka, fresh_name: Callable[[str], str], crash: bool
) -> None:
    topic, servers = fresh_name(TOPIC), broker.bootstrap_servers
    make_topic(servers, topic)
    append(servers, topic, b"before")
    if crash:
        broker.kill()
    else:
        broker.stop()
    assert not broker.running
    assert not answers(broker.port)
    broker.start()
    assert broker.bootstrap_servers == servers
    append(servers, topic, b"after")
    assert values(servers, topic, 2) == [b"before", b"after"]


def test_a_second_start_on_the_same_folder_names_the_folder(broker: EmbeddedKafka) -> None:
    with pytest.raises(TrainError, match=f"{broker.data_dir} is in use by another broker"):
        EmbeddedKafka(broker.data_dir).start()
    assert answers(broker.port)


def test_a_taken_port_is_named(broker: EmbeddedKafka, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=f"port {broker.port} of 127.0.0.1 is taken"):
        EmbeddedKafka(tmp_path, broker.port).start()


def test_a_wrong_property_ends_the_start_with_kafkas_reason_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    wrong = EmbeddedKafka(tmp_path, properties={"log.segment.bytes": "many"})
    with pytest.raises(DeployError, match=r"log\.segment\.bytes"):
        wrong.start()
    assert not wrong.running
    with pytest.raises(DeployError, match=r"log\.segment\.bytes"):
        wrong.start()  # the folder is not left locked


def test_topics_are_never_made_by_accident(broker: EmbeddedKafka) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "message.timeout.ms": 2000})
    producer.produce("misspelt", b"")
    producer.flush(10)
    assert "misspelt" not in admin.list_topics(timeout=10).topics


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_ends_with_its_broker(tmp_path: Path, end: signal.Signals) -> None:
    if end == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux ends the children of a killed process")
    port = free_port()
    command = subprocess.Popen(
        [sys.executable, "-m", "deploy.broker", "--port", str(port), "--data", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with command:
        assert command.stdout is not None
        assert command.stdout.readline() == f"Kafka 4.4.0 listens on 127.0.0.1:{port}\n"
        assert not folder_is_free(tmp_path)
        os.kill(command.pid, end)
        code = command.wait(30)
    assert code == (-signal.SIGKILL if end == signal.SIGKILL else 0)
    wait_for(lambda: folder_is_free(tmp_path), 30, "the end of the broker")
    assert not answers(port)
