"""What an operator reads when a setting is wrong: one line on stderr, exit code 2."""

from pathlib import Path

import pytest
import structlog

from bench.serving.bundles import write_tiny_bundle
from stream import __main__ as cli
from stream.__main__ import COMMANDS, main
from stream.position import decode_position
from stream.settings import KafkaSettings


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The lines on stderr of a command that ends with exit code 2."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["worker"],
            "--bundle (or NEXTCLICK_BUNDLE) is missing: Folder of the bundle to serve.",
        ),
        (
            ["worker", "--bundle=b", "--batch-clicks=0"],
            "--batch-clicks (or NEXTCLICK_BATCH_CLICKS) is '0', expected greater than 0. "
            "Description: Most clicks in one micro-batch.",
        ),
        (
            ["worker", "--bundle=b", "--batch-clicks=many"],
            "--batch-clicks (or NEXTCLICK_BATCH_CLICKS) is 'many', expected a valid integer. "
            "Description: Most clicks in one micro-batch.",
        ),
        (
            ["worker", "--bundle=b", "--log-level=loud"],
            "--log-level (or NEXTCLICK_LOG_LEVEL) is 'loud', expected 'debug', 'info', "
            "'warning' or 'error'. Description: Least severe log events that are written.",
        ),
        (
            ["topics", "check", "--bootstrap-servers="],
            "--bootstrap-servers (or NEXTCLICK_BOOTSTRAP_SERVERS) is '', expected host:port "
            "pairs separated by commas, without a scheme; instead of SSL://, set "
            "security_protocol. Description: Kafka brokers, host:port, separated by commas.",
        ),
        (
            ["topics", "check", "--bootstrap-servers=SSL://broker:9093"],
            "--bootstrap-servers (or NEXTCLICK_BOOTSTRAP_SERVERS) is 'SSL://broker:9093', expected "
            "host:port pairs separated by commas, without a scheme; instead of SSL://, set "
            "security_protocol. Description: Kafka brokers, host:port, separated by commas.",
        ),
        (
            ["topics", "check", "--ssl-cafile=missing.pem"],
            "--ssl-cafile (or NEXTCLICK_SSL_CAFILE) is 'missing.pem', expected a file. "
            "Description: CA certificates (PEM) that signed the brokers'; unset: the system's.",
        ),
        (
            ["reset", "--to=now"],
            "--to (or NEXTCLICK_TO) is 'now', expected earliest, latest or an offset. Description: "
            "earliest, latest or an offset.",
        ),
        (
            ["topics", "check", "--app-id=a b"],
            "--app-id (or NEXTCLICK_APP_ID) is 'a b', expected 1 to 200 ASCII letters, digits, "
            "dots, hyphens and underscores. Description: Consumer group, and prefix of the "
            "transactional ids and of the changelog topic.",
        ),
        (
            ["watch", "--clicks-topic="],
            "--clicks-topic (or NEXTCLICK_CLICKS_TOPIC) is '', expected 1 to 249 ASCII letters, "
            "digits, dots, hyphens and underscores. Description: Topic the clicks are read from.",
        ),
        (
            ["worker", "--bundle=b", "--batch-click=3"],
            "unrecognized arguments: --batch-click=3; "
            "`python -m stream worker --help` lists the flags",
        ),
        (
            ["topics", "create", "--partitions"],
            "argument --partitions: expected one argument; "
            "`python -m stream topics create --help` lists the flags",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *words) == sentence + "\n"


def test_every_wrong_setting_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "worker", "--bundle=b", "--batch-clicks=0", "--web-port=99999")
    assert [line.split()[0] for line in err.splitlines()] == ["--batch-clicks", "--web-port"]


def test_a_wrong_environment_variable_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTCLICK_BATCH_WINDOW_S", "2")
    err = refused(capsys, "worker", "--bundle=b")
    assert err == (
        "--batch-window-s (or NEXTCLICK_BATCH_WINDOW_S) is '2', expected less than or equal to "
        "1. Description: How long a broker gathers clicks for a micro-batch; batches are at least "
        "half of it apart.\n"
    )


def test_the_password_is_in_no_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What pydantic reports as the input of a missing field is every other setting.
    monkeypatch.setenv("NEXTCLICK_SASL_PASSWORD", "hunter2")
    assert "hunter2" not in refused(capsys, "worker")
    assert "hunter2" not in refused(capsys, "worker", "--sasl-password=hunter2", "--web-port=0")


@pytest.mark.parametrize("words", [[], ["work"], ["topics"], ["topics", "delete"], ["work", "-h"]])
def test_an_unknown_command_lists_the_known_ones(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(capsys, *words)
    assert err.startswith(f"unknown command {' '.join(words)!r}" if words else "no command")
    assert all(command in err for command in COMMANDS)


def test_a_bundle_that_is_not_there_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a worker does to its process first, and a test must not do to the others.
    monkeypatch.setattr("stream.service.configure_logging", lambda level: None)
    err = refused(capsys, "worker", "--bundle=nowhere")
    assert err == f"{Path.cwd()}/nowhere/manifest.json cannot be read: No such file or directory\n"


def test_another_bundle_than_the_expected_one_is_not_served(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.service.configure_logging", lambda level: None)
    monkeypatch.setattr("stream.transport.topics.TIMEOUT_S", 0.2)
    folder = write_tiny_bundle(Path("bundles"))
    words = ["worker", f"--bundle={folder}", "--bootstrap-servers=127.0.0.1:1"]
    with structlog.testing.capture_logs():
        other, own = (
            refused(capsys, *words, f"--expected-bundle-id={bundle_id}")
            for bundle_id in ("0" * 16, folder.name)
        )
    assert other == f"{folder} holds bundle {folder.name}, but expected_bundle_id is {'0' * 16}\n"
    assert own.startswith("no broker answers")


def test_where_lists_are_the_networks_alone_there_is_nothing_to_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.service.configure_logging", lambda level: None)
    folder = write_tiny_bundle(Path("bundles"))
    err = refused(capsys, "count", f"--bundle={folder}")
    assert err == (
        f"{folder} holds bundle {folder.name}, whose lists are the network's alone: there is "
        "nothing to count for them\n"
    )


def test_a_broker_that_does_not_answer_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.transport.topics.TIMEOUT_S", 0.2)
    err = refused(capsys, "topics", "check", "--bootstrap-servers=127.0.0.1:1")
    assert err.startswith("no broker answers at 127.0.0.1:1: ")
    assert err.count("\n") == 1


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_help_of_a_group_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topics", "--help"]) == 0
    out = capsys.readouterr().out
    assert [command for command in COMMANDS if command in out] == ["topics create", "topics check"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_begins_as_it_is_typed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command.split(), "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m stream {command} ")


def test_a_position_of_another_version_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(settings: KafkaSettings) -> None:
        decode_position(b"\x93")

    monkeypatch.setitem(cli.COMMANDS, "reset", (KafkaSettings, run))
    assert refused(capsys, "reset").startswith("a position record cannot be read as format 1: ")


def test_a_bug_is_not_dressed_up_as_a_bad_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(settings: KafkaSettings) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "worker", (KafkaSettings, run))
    with pytest.raises(ZeroDivisionError):
        main(["worker"])
