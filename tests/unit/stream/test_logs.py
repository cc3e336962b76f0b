"""Logs are events with fields: JSON lines where nobody sits at a terminal, and no payloads."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from stream.logs import configure_logging


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    chatty = {
        name: logging.getLogger(name).level for name in ("faust", "mode", "aiokafka", "kafka")
    }
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, its_level in chatty.items():
        logging.getLogger(name).setLevel(its_level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_event_is_one_json_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    structlog.get_logger("stream.test").info("restored", partitions=[0, 1], seconds=0.2)
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["logger"]) == ("restored", "info", "stream.test")
    assert (line["partitions"], line["seconds"]) == ([0, 1], 0.2)
    assert str(line["timestamp"]).endswith("Z")


def test_a_librarys_record_is_json_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("faust").warning("lost %s", "broker")
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["logger"]) == ("lost broker", "warning", "faust")


def test_a_broker_that_is_away_is_no_error_of_each_connection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("debug")
    logging.getLogger("aiokafka.conn").error("connection refused")
    assert lines(capsys) == []


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["ours-debug", "ours-info", "ours-error", "faust-warning", "faust-error"]),
        ("info", ["ours-info", "ours-error", "faust-warning", "faust-error"]),
        ("error", ["ours-error", "faust-error"]),
    ],
)
def test_the_level_holds_for_us_and_libraries_are_never_below_warning(
    level: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level)
    ours, faust = structlog.get_logger("stream.test"), logging.getLogger("faust.app")
    ours.debug("ours-debug")
    ours.info("ours-info")
    ours.error("ours-error")
    faust.debug("faust-debug")
    faust.info("faust-info")
    faust.warning("faust-warning")
    faust.error("faust-error")
    assert [line["event"] for line in lines(capsys)] == expected


def test_a_traceback_names_the_line_and_shows_no_variable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info")
    session_id = "visitor-" + "4711"
    try:
        raise ValueError(len(session_id))
    except ValueError as error:
        structlog.get_logger("stream.test").critical("worker_failed", exc_info=error)
    out = capsys.readouterr().out
    assert "test_logs.py" in out
    assert "ValueError" in out
    assert "visitor-4711" not in out
