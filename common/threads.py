"""Threads of a process that trains: torch's, and none that spin beside them."""

from __future__ import annotations

from functools import cache

from threadpoolctl import ThreadpoolController


@cache
def keep_to_torch() -> None:
    """Let numpy's OpenBLAS compute in the thread that calls it, for as long as this process lives.

    Once a product or a norm has woken its threads they wait for the next one at full speed, some tens of
    milliseconds long, on the cores that torch's threads are then computing on: a simulation on two cores
    took half as long again. torch has its own BLAS, whose threads these are not.
    """
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)
