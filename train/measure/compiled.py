"""One way to compile a loop: numba, without the interpreter's lock, kept on disk between runs."""

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as machine code for one thread; its first call of each argument type compiles.

    The machine code is kept next to the source, or in NUMBA_CACHE_DIR.
    """
    # The tests' checks of argument types wrap a function before it gets here, and numba cannot read
    # the wrapper.
    compile_ = numba.njit(cache=True, nogil=True, error_model="numpy")
    return cast("Callable[P, R]", compile_(inspect.unwrap(function)))
