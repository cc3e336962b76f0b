"""Child processes that never outlive their parent, and waiting for them."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from deploy.command import DeployError

STOP_TIMEOUT_S = 20.0
POLL_S = 0.02
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


def wait_for(condition: Callable[[], T], timeout_s: float, what: str = "") -> T:
    """Return the first true value of `condition`, which is tried every 20 ms. Raises DeployError,
    which names `what` was waited for, after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise DeployError(f"timed out after {timeout_s:g} s waiting for {what or condition}")
        time.sleep(POLL_S)
    return value


class Child:
    """A process in a session of its own, started with the object.

    Ctrl-C therefore reaches the parent alone, which stops its children in the right order. If the
    parent is killed, the kernel (Linux) ends the child: when the *thread* that started it dies,
    so start it from a thread that lives long enough. Output is appended to `log`, or goes where
    the parent's goes. `inherited` are file descriptors the child keeps open.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path | None, inherited: Sequence[int] = ()
    ) -> None:
        self.name, self._log = name, log
        with log.open("ab") if log is not None else contextlib.nullcontext() as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if log is not None else None,
                start_new_session=True,
                pass_fds=inherited,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def check_runs(self) -> None:
        """Raise DeployError if it has ended."""
        if not self.running:
            raise DeployError(f"{self.name} exited with code {self._ending()}")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Return when `condition` holds. Raises DeployError if it ends or takes longer."""

        def holds() -> bool:
            self.check_runs()
            return condition()

        wait_for(holds, timeout_s, what)

    def wait(self) -> None:
        """Return when it has done its work. Raises DeployError if it failed."""
        # Not one blocking wait: Polars, once imported, has SIGINT restart system calls
        # (SA_RESTART), and a restarted call leaves Python no moment to hear Ctrl-C.
        while self.running:
            time.sleep(POLL_S)
        if self._process.returncode != 0:
            self.check_runs()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and what it started, after 20 s with SIGKILL; no effect if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _ending(self) -> str:
        """The exit code, and the last line of the log that names an error, or the last one."""
        code = str(self._process.returncode)
        if self._log is None:
            return code
        lines = self._log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if "Exception" in line or "ERROR" in line] or lines
        return f"{code}: {errors[-1].strip() if errors else 'no output'} (log: {self._log})"


@contextlib.contextmanager
def running(arguments: Sequence[str], log: Path | None = None) -> Iterator[Child]:
    """`python -m` with these arguments, stopped at the end of the block."""
    name = f"python -m {' '.join(arguments[:2])}"
    child = Child(name, [sys.executable, "-m", *arguments], log)
    try:
        yield child
    finally:
        child.stop()


def end_on_signals() -> None:
    """Make the first signal that asks us to end unwind the stack, and ignore those after it.
    Unwinding stops the children; a second Ctrl-C must not interrupt that."""

    def end(number: int, _: object) -> None:
        for name in ENDING_SIGNALS:
            signal.signal(name, signal.SIG_IGN)
        sys.exit(128 + number)

    for name in ENDING_SIGNALS:
        if name != signal.SIGHUP or signal.getsignal(name) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(name, end)


def _end_with_parent() -> None:
    # Runs in the child between fork and exec: one system call, no lock, hardly an allocation.
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# Loaded before any fork: loading a library in the child could wait for a lock nobody holds.
_LIBC = ctypes.CDLL(None)
