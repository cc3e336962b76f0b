"""Timing, and measurements in a process of their own, whose peak memory is their own."""

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Background(threading.Thread):
    """A thread for the length of a block; its ``run`` ends once ``stopped`` is set."""

    def __init__(self) -> None:
        super().__init__(name=type(self).__name__.lower(), daemon=True)
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()


class Spent(NamedTuple):
    """What a process took from its start, imports included."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, Spent]:
    """Call a module's function in a fresh process; its result and what the process took."""
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        result, cpu_seconds, peak_mib = pool.apply(_call, (function, args, kwargs))
    return result, Spent(round(time.perf_counter() - began, 3), cpu_seconds, peak_mib)


def _call(function: Callable[..., T], args: Any, kwargs: Any) -> tuple[T, float, float]:
    result, used = function(*args, **kwargs), resource.getrusage(resource.RUSAGE_SELF)
    return result, round(used.ru_utime + used.ru_stime, 1), round(used.ru_maxrss / 1024, 1)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the wall time of the block under a name."""
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 3)
