"""What `resume` makes of the workers' answers, and of those of others at their addresses."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from stream import resume as module
from stream.errors import StreamError
from stream.position import Position
from stream.resume import resume_partitions
from stream.settings import ResumeSettings

STANDS = (
    "; not at its log's end: {} (offset 5 of 7); where that offset stays the same, see "
    "ClicksNotProcessed in docs/operations.md"
)


@contextmanager
def answering(code: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A host that answers so: its address, and the pages it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            serving.join()


def owned_by(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the changelog name a worker's address for each partition, whose logs end at 7.

    Partition 0 is at 5, all others are at the end.
    """
    positions = {p: Position(7 if p else 5, "t", address=a) for p, a in enumerate(addresses)}
    monkeypatch.setattr(module, "chosen_partitions", lambda _, topic, only: positions)
    monkeypatch.setattr(module, "bounds", lambda *_: dict.fromkeys(positions, (0, 7, 7)))
    monkeypatch.setattr(module, "_positions", lambda *_: (positions, []))


def test_a_paused_partition_goes_on_and_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        answering(200, b'{"offset": 5}') as (a, asked),
        answering(404, b'{"offset": null}') as (
            b,
            _,
        ),
    ):
        owned_by(monkeypatch, a, b)
        assert [*resume_partitions(ResumeSettings(pass_over=True))] == [
            "partition 0: skips offset 5"
        ]
    assert asked == ["/partitions/0/resume?excused_until=7&pass_over=true"]


def test_a_partition_that_was_asked_for_and_is_not_paused_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering(404, b'{"offset": null}') as (address, _):
        owned_by(monkeypatch, address)
        with pytest.raises(StreamError) as refusal:
            [*resume_partitions(ResumeSettings(partition=0))]
    assert str(refusal.value) == f"partition 0 is not paused{STANDS.format('partition 0')}"


def test_where_none_is_paused_those_that_may_stand_still_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering(404, b'{"offset": null}') as (address, _):
        owned_by(monkeypatch, address, address)
        (line,) = resume_partitions(ResumeSettings())
        assert line == f"no partition is paused{STANDS.format('partition 0')}"
        ended = dict.fromkeys(range(2), (0, 5, 5))
        monkeypatch.setattr(module, "bounds", lambda *_: ended)
        assert [*resume_partitions(ResumeSettings())] == ["no partition is paused"]


@pytest.mark.parametrize(
    ("code", "body"),
    [(500, b""), (405, b""), (200, b"{}"), (200, b"[]"), (200, b"<html>"), (404, b"not found")],
)
def test_an_address_of_somebody_else_is_named_and_the_other_partitions_go_on(
    monkeypatch: pytest.MonkeyPatch, code: int, body: bytes
) -> None:
    with answering(code, body) as (other, _), answering(200, b'{"offset": 5}') as (ours, _):
        owned_by(monkeypatch, other, ours)
        resumed = resume_partitions(ResumeSettings())
        assert next(resumed) == "partition 1: continues at offset 5"
        with pytest.raises(StreamError, match=f"no worker answers for partition 0 at '{other}'"):
            next(resumed)


def test_a_port_that_nobody_listens_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host, port = taken.getsockname()
        owned_by(monkeypatch, f"{host}:{port}", "")
        with pytest.raises(StreamError) as refusal:
            [*resume_partitions(ResumeSettings())]
    first, second = str(refusal.value).splitlines()
    assert "Connection refused" in first
    assert "`curl -X POST 'http://HOST:PORT/partitions/1/resume?excused_until=7" in second
