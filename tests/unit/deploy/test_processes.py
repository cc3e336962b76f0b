"""Children end with their parent, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.command import DeployError
from deploy.processes import running, wait_for

SERVER = ["http.server", "--bind", "127.0.0.1", "0"]
"""Runs until it is ended."""

# Prints its child's process id, waits for it, and says when the stack has been unwound. With
# Polars imported: from then on SIGINT no longer interrupts a blocking system call. SIGHUP is
# ignored where the tests themselves run under nohup, which end_on_signals respects.
PARENT = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from deploy.processes import end_on_signals, running
end_on_signals()
import polars
try:
    with running(sys.argv[1:]) as child:
        print(child._process.pid, flush=True)
        child.wait()
finally:
    print("unwound", flush=True)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that has ended may wait for a parent to collect it.
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@contextmanager
def parent_and_child() -> Iterator[tuple[subprocess.Popen[str], int]]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *SERVER], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent:
        pid = int(parent.stdout.readline())
        try:
            yield parent, pid
        finally:
            parent.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_children_and_unwinds(how: signal.Signals) -> None:
    with parent_and_child() as (parent, child_pid):
        parent.send_signal(how)
        out, _ = parent.communicate(timeout=10)
        assert out.strip() == "unwound"
        assert parent.returncode == 128 + how
        assert not is_alive(child_pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_killed_parent_takes_its_children_along() -> None:
    with parent_and_child() as (parent, child_pid):
        parent.kill()
        wait_for(lambda: not is_alive(child_pid), 10, "the end of the child")


def test_a_child_ends_with_its_block(tmp_path: Path) -> None:
    with running(SERVER, log=tmp_path / "log") as child:
        child.check_runs()
    with pytest.raises(DeployError, match=r"python -m http\.server --bind exited with code -15"):
        child.check_runs()


def test_a_failed_child_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with (
        running(["http.server", "--nonsense"], log=tmp_path / "log") as child,
        pytest.raises(DeployError, match=r"code 2: .*unrecognized arguments: --nonsense"),
    ):
        child.wait()
