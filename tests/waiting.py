"""Waiting for a condition, so that no test sleeps a guessed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], timeout: float, what: str = "") -> T:
    """The first true value of ``condition``, asked every 20 ms; TimeoutError after ``timeout`` s.

    ``what`` says in the error what did not come; a name of the condition is the default.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what or condition!r}")
        time.sleep(0.02)
    return value
