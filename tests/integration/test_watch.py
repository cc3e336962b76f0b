"""``python -m stream watch`` on a real broker: in a pipe, in a terminal, and where nothing is."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.faults.service import ROOT, Deployment
from bench.faults.traffic import LOG_BEGIN_MS, click, produce
from bench.faults.wire import RawProducer, batch_of, one_record, record
from bench.serving.bundles import write_tiny_bundle
from deploy.broker import free_port

SESSION = "session-1"


@pytest.fixture
def deployment(
    kafka: str, fresh_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Deployment]:
    deployment = Deployment(kafka, fresh_name("watch"), write_tiny_bundle(tmp_path, k=20), tmp_path)
    yield deployment
    deployment.close()


@contextmanager
def watching(
    deployment: Deployment, *flags: str, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "stream", "watch", "--from-beginning", *flags],
        cwd=ROOT,
        env=deployment.environment() | {"TERM": "xterm", "COLUMNS": "120"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def serve_clicks(deployment: Deployment) -> None:
    """Five clicks, one of them twice, an unknown item, and a bad one: all answered."""
    items = ["item-1", "item-2", "item-2", "item-3", "nobody-knows", "item-1"]
    events = ["a", "b", "b", "c", "d", "e"]
    key = SESSION.encode()
    deployment.create_topics()
    deployment.start()
    deployment.send(
        (key, click(SESSION, item, LOG_BEGIN_MS + n, event))
        for n, (item, event) in enumerate(zip(items, events, strict=True))
    )
    raw = RawProducer(deployment.bootstrap_servers)
    odd = [(b"trace", b"\xff\xfe"), (b"reason", b"\xff"), (b"offset", None)]
    raw.send(deployment.clicks, 0, one_record(b"other", b"no JSON", odd, gzip=True))
    raw.close()
    deployment.wait_until_answered(7)


def test_in_a_pipe_a_followed_session_is_told_click_by_click(deployment: Deployment) -> None:
    serve_clicks(deployment)
    with watching(deployment, "--session", SESSION) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        while not (lines and "dead letters 1" in lines[-1]):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines.append(line)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    followed = [line for line in lines if line.startswith(SESSION)]
    verdicts = [re.fullmatch(r"session-1 click \d: (\S+) \((.*)\) -> .*\n", f) for f in followed]
    shown = [(match[1], match[2]) for match in verdicts if match]
    assert [item for item, _ in shown][:3] == ["item-1", "item-2", "item-2"]
    assert [v for _, v in shown if not v.startswith(("#", "not"))] == [
        "first",
        "duplicate",
        "unknown_item",
    ]
    figures = lines[-1]
    assert "clicks 7 " in figures
    assert "lists 6 " in figures
    assert "of 3 |" in figures  # item-2, item-3 and item-1 again judge the list before them
    assert "model 4, duplicate 1, unknown_item 1, fallback 0" in figures
    assert re.search(r"waiting 0 \| latency p50 \d+ ms, p99 \d+ ms", figures)


def test_in_a_terminal_it_draws_until_it_is_interrupted(deployment: Deployment) -> None:
    serve_clicks(deployment)
    reading, writing = pty.openpty()
    with watching(deployment, "--session", SESSION, stdout=writing) as process:
        os.close(writing)
        drawn = ""
        while not all(text in drawn for text in (SESSION, "not_json 1", "4 ", "Recall@20")):
            drawn += os.read(reading, 65_536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            try:
                os.read(reading, 65_536)
            except OSError:  # Linux: the other end is closed
                process.wait(10)
        assert process.returncode == 0
    os.close(reading)


def test_what_is_not_ours_and_what_cannot_be_read_is_passed_over_and_told(
    deployment: Deployment,
) -> None:
    deployment.create_topics(partitions=1)
    servers, lists = deployment.bootstrap_servers, deployment.recommendations
    bad = record(b"", b"value", key_length=-2) + record(b"k", b"v", number=1)
    raw = RawProducer(servers)
    for topic in (deployment.clicks, lists):
        produce(servers, topic, [(b"k", b"{"), (b"k", None)], partition=0)
        raw.send(topic, 0, batch_of(bad, 2))
        produce(servers, topic, [(b"k", bytes(300_000_000))], partition=0, compression="zstd")
        produce(servers, topic, [(b"k", b"{")], partition=0)
    raw.send(deployment.dead_letters, 0, one_record(b"k", b"v", [(b"\xff", b"x")]))
    raw.close()
    with watching(deployment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = ""
        while "6 offsets" not in line or "clicks 3" not in line or "4 records" not in line:
            line = process.stdout.readline()
            assert line, process.stderr.read()
    assert re.search(r"4 records that no worker has written, the first at \S+-0 offset 0 ", line)
    assert re.search(r"6 offsets skipped that .*, the first at \S+-0 offset 2$", line)


def test_missing_topics_are_one_sentence(deployment: Deployment) -> None:
    done = deployment.command("watch")
    assert done.returncode == 2
    assert done.stderr == (
        f"missing topics: {deployment.clicks}, {deployment.recommendations}, "
        f"{deployment.dead_letters}; `python -m stream topics create` creates them\n"
    )


def test_no_broker_is_one_sentence(deployment: Deployment) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = deployment.command("watch", "--bootstrap-servers", address)
    assert done.returncode == 2
    assert done.stderr.startswith(f"no broker answers at {address}: ")
    assert done.stderr.count("\n") == 1
