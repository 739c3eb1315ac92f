"""Pieces of work side by side on a processor's threads, instead of all threads on one piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

STREAMS = 8
"""Pieces worked on at the same time, at most: each holds its activations."""
_AHEAD = 2
"""Pieces begun for each stream before the first of them is taken."""

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def side_by_side(work: Callable[[Piece], Made], pieces: Sequence[Piece], streams: int) -> Iterator[Made]:
    """Yield what ``work`` makes of each piece, in their order, up to ``streams`` at the same time.

    torch's threads of the caller are dealt out evenly; a piece by itself has them all. A network's small
    operations cost more to share out among threads than they take, and threads wait for each other at the
    end of every one of them; streams meet once, at the end. What ``work`` raises is raised here.
    """
    threads = torch.get_num_threads()
    streams = min(threads, streams, len(pieces))
    if streams < 2:
        yield from map(work, pieces)
        return
    begun: deque[Future[Made]] = deque()
    share = threads // streams
    try:
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            try:
                for piece in pieces:
                    begun.append(pool.submit(work, piece))
                    if len(begun) > _AHEAD * streams:
                        yield begun.popleft().result()
                while begun:
                    yield begun.popleft().result()
            finally:
                for left in begun:
                    left.cancel()
    finally:
        torch.set_num_threads(threads)  # a thread that is new begins with what was set last, by whichever
