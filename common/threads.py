"""Threads of a process that trains: torch's, as many as there are cores, and none that spin beside them."""

from __future__ import annotations

import os
from functools import cache

from threadpoolctl import ThreadpoolController


def cores_here() -> int:
    """Return how many cores this process may run on, fewer than the machine has where it is confined.

    As by ``taskset``, a batch system or a container. Two threads that train on one core take turns at
    spinning for each other.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def keep_to_torch() -> None:
    """Let numpy's OpenBLAS compute in the thread that calls it, for as long as this process lives.

    Once a product or a norm has woken its threads they wait for the next one at full speed, some tens of
    milliseconds long, on the cores that torch's threads are then computing on: a simulation on two cores
    took half as long again. torch has its own BLAS, whose threads these are not.
    """
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)
