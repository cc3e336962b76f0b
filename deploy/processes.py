"""Child processes that never outlive their parent."""

import contextlib
import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ProcessError(Exception):
    """A child that failed: one sentence with its last words."""


class Child:
    """``python -m`` something, as a process of its own, started with the object.

    It stands in a session of its own: Ctrl-C reaches the parent alone, which ends its children
    in the right order. Output goes to ``log``, or where the parent's goes.
    """

    def __init__(self, arguments: Sequence[str], log: Path | None = None) -> None:
        self.name = f"python -m {' '.join(arguments[:2])}"
        self._log = log
        with log.open("wb") if log is not None else contextlib.nullcontext() as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if log is not None else None,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def check_runs(self) -> None:
        """Raise ProcessError when it has ended."""
        if self._process.poll() is not None:
            raise ProcessError(self._last_words())

    def wait(self) -> None:
        """Return when it has done its work; raise ProcessError when it failed."""
        # Not one blocking wait: Polars, once imported, has SIGINT restart system calls
        # (SA_RESTART), and a restarted call leaves Python no moment to hear Ctrl-C.
        while self._process.poll() is None:
            time.sleep(POLL_S)
        if self._process.returncode != 0:
            raise ProcessError(self._last_words())

    def stop(self) -> None:
        """End it, kindly first; nothing happens when it has ended already."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        text = f"{self.name} ended with code {self._process.returncode}"
        if self._log is None:
            return text
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"{text}: {lines[-1] if lines else 'no output'} (log: {self._log})"


@contextlib.contextmanager
def running(arguments: Sequence[str], log: Path | None = None) -> Iterator[Child]:
    """A child that ends with the block."""
    child = Child(arguments, log)
    try:
        yield child
    finally:
        child.stop()


def end_on_signals() -> None:
    """Make the first signal that asks us to end unwind the stack, and ignore those after it.

    What it unwinds stops the children; a second Ctrl-C must not interrupt that.
    """

    def end(number: int, _: object) -> None:
        for name in ENDING_SIGNALS:
            signal.signal(name, signal.SIG_IGN)
        sys.exit(128 + number)

    for name in ENDING_SIGNALS:
        if name != signal.SIGHUP or signal.getsignal(name) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(name, end)


def _end_with_parent() -> None:
    # Runs in the child between fork and exec; covers a parent that is killed (SIGKILL).
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# Loaded before any fork: loading a library in the child could wait for a lock nobody holds.
_LIBC = ctypes.CDLL(None)
