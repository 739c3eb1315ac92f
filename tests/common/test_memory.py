"""Memory that is kept: pages are asked for once, not in every step."""

from __future__ import annotations

import multiprocessing
import platform
import resource
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from common.memory import freed_given_back, keep_freed

LARGE = 10 << 20
"""Bytes: what the hidden layer of a ViT-S holds of a batch of 32."""
STEPS = 10
"""Steps that are counted."""


def pages_of_steps() -> int:
    """Return how many pages the system hands out while large blocks come and go, each place once found."""
    for _ in range(10):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def step() -> None:
    """Fill three blocks, as a layer and its gradient do, and free them."""
    first = torch.ones(LARGE // 4)
    second = first + 1
    del first
    third = second * 2
    del second, third


def pages_given_back_and_kept() -> tuple[int, int]:
    """Return the pages of steps that give memory back and of steps that keep it."""
    assert keep_freed()
    with freed_given_back(LARGE // 2):
        given_back = pages_of_steps()
    return given_back, pages_of_steps()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library manages memory itself")
def test_what_a_step_freed_serves_the_next() -> None:
    """In a process of its own: what other tests have left free in this one's heap would serve the steps."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        given_back, kept = fresh.submit(pages_given_back_and_kept).result()
    assert given_back > STEPS * 3 * 2, "each block came anew, in huge pages where the system has them"
    assert kept < given_back / 10
