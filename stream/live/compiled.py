"""Loops as machine code, by numba: of training and of the lists that learn from the stream.

Its import takes a second or two and 80 MB: only what needs it should import this.
"""

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as machine code for one thread, which holds no lock of the interpreter.

    The first call of each argument type compiles it. The machine code is kept next to the source,
    in the user's cache folder, or in NUMBA_CACHE_DIR; nowhere, if none of them can be written.
    """
    # The tests' checks of argument types wrap a function before it gets here, and numba cannot read
    # the wrapper.
    plain = inspect.unwrap(function)
    try:
        made = numba.njit(cache=True, nogil=True, error_model="numpy")(plain)
    except RuntimeError:  # no folder for a cache
        made = numba.njit(nogil=True, error_model="numpy")(plain)
    return cast("Callable[P, R]", made)
