"""Run the cells of a grid, several at a time, each once; what is finished is never run again."""

from __future__ import annotations

import fcntl
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

from common.errors import ConfigError, FedcxrError, WorkerError
from simulations.benchmark.cells import Cell
from simulations.benchmark.results import FAILURE, Failure, Result, read_result, write_part
from simulations.benchmark.run_cell import SITES, place_of_cell, run_cell
from simulations.benchmark.shared_sites import lay_out

Done = Callable[[Cell, Result | Failure], None]


def unfinished(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Return the cells that have no result yet, each digest once."""
    each = {cell.digest: cell for cell in cells}
    return [cell for cell in each.values() if read_result(place_of_cell(cell, folder)) is None]


def run_grid(
    cells: Sequence[Cell], folder: Path, jobs: int, done: Done
) -> list[tuple[Cell, Result | Failure]]:
    """Run what is unfinished, ``jobs`` cells at a time; returns every cell with what became of it.

    ``done`` is called in this thread's process after each cell. With one job cells run in this process;
    with more, in processes of their own, and one that dies (out of memory, say) costs its cell only.

    Raises:
        ConfigError: if another process runs a grid in this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        pending = unfinished(cells, folder)
        if jobs == 1 or len(pending) <= 1:
            became = {}
            for cell in pending:
                became[cell.digest] = run_cell(cell, folder)
                done(cell, became[cell.digest])
        else:
            became = _side_by_side(pending, folder, jobs, done)
        for cell in cells:
            if cell.digest not in became:
                became[cell.digest] = run_cell(cell, folder)  # finished: it is only read
    return [(cell, became[cell.digest]) for cell in cells]


def _side_by_side(
    pending: Sequence[Cell], folder: Path, jobs: int, done: Done
) -> dict[str, Result | Failure]:
    with suppress(FedcxrError):  # the cells that need these sites will say so
        lay_out([cell.experiment for cell in pending], folder / SITES)
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in pending:
        waiting.put(cell)
    became: dict[str, Result | Failure] = {}
    told, stop = threading.Lock(), threading.Event()
    faults: list[BaseException] = []

    def slot() -> None:
        try:
            with _Slot(folder) as process:
                while not stop.is_set() and not waiting.empty():
                    try:
                        cell = waiting.get_nowait()
                    except queue.Empty:
                        break
                    result = process.run(cell)
                    with told:
                        became[cell.digest] = result
                        done(cell, result)
        except BaseException as fault:  # noqa: BLE001  (raised again by the thread that waits)
            faults.append(fault)
            stop.set()

    threads = [threading.Thread(target=slot, daemon=True) for _ in range(min(jobs, len(pending)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if faults:
        raise faults[0]
    return became


class _Slot:
    """One process that runs cells one after the other, replaced when it dies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Slot:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, cell: Cell) -> Result | Failure:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_end_with_the_parent)
        try:
            return self._pool.submit(run_cell, cell, self._folder).result()
        except BrokenProcessPool:
            self._pool = None
        place = place_of_cell(cell, self._folder)
        if (known := read_result(place)) is not None:  # it died after it had finished
            return known
        failure = Failure(
            digest=cell.digest,
            title=cell.experiment.title,
            code=WorkerError.code,
            problem="the process that ran this cell died; memory may have run out",
            fix="start the benchmark again with fewer --jobs; the cell goes on where it was",
        )
        write_part(failure, place / FAILURE)
        return failure


def _end_with_the_parent() -> None:
    """End this process when the one that started it is gone: nobody else may run its cell meanwhile."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process runs a benchmark in {folder}", fix="wait for it, or use another --out"
            ) from None
        yield
