"""Memory of a process that computes with a model: what a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of parameters, as glibc's malloc.h numbers them."""
_LARGEST = 32 << 20
"""Bytes from which on a block has a mapping of its own; glibc takes no more."""
_ALL = (1 << 31) - 1
"""Bytes that may lie free at the end of the heap, as many as glibc's parameter can say."""


@cache
def keep_freed() -> bool:
    """Let glibc keep what is freed, for as long as this process lives; False where it is another C library.

    By default it gives memory back as soon as some lies free, and the system hands it out anew page by page,
    each cleared: thousands of pages in every training step that leaves the frozen blocks out. What it costs,
    simulations/benchmarks/local_step.py measures. The process then holds the most it ever needed.
    """
    return _set(_MMAP_THRESHOLD, _LARGEST) and _set(_TRIM_THRESHOLD, _ALL)


@contextmanager
def freed_given_back(largest: int) -> Iterator[None]:
    """Give memory back until the block ends, to compare with.

    So glibc does by itself once blocks of ``largest`` bytes have been freed.
    """
    _set(_MMAP_THRESHOLD, largest)
    _set(_TRIM_THRESHOLD, 2 * largest)
    try:
        yield
    finally:
        _set(_MMAP_THRESHOLD, _LARGEST)
        _set(_TRIM_THRESHOLD, _ALL)


def _set(parameter: int, value: int) -> bool:
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(parameter, value))
