"""Where simulated sites meet: each answers by its own code, up to the point where it would train.

Every site has a thread, of which one runs at a time, in order; a site that comes to train waits. When all
have come or have answered without training, what they brought is trained in one pass, and each goes on.
So a site reads, refuses, encodes and measures as it does by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from client.train import LocalResult, trained_by
from simulations.stacked.training import Student, Task, train_stacked

T = TypeVar("T")


class Meeting:
    """Lets up to ``size`` sites answer together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.passes: list[int] = []
        """How many sites went through each pass."""

    def answer(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Return what each call returns, in order; a call may come to train any number of times.

        Raises:
            Whatever the first of the calls that failed has raised.
        """
        guests = [_Guest(call) for call in calls]
        try:
            for guest in guests:
                guest.start()
            while waiting := [guest for guest in guests if guest.brought is not None]:
                self._train(waiting)
                for guest in waiting:
                    guest.go_on()
        finally:
            for guest in guests:
                guest.leave()
        return [guest.result() for guest in guests]

    def _train(self, waiting: Sequence[_Guest[Any]]) -> None:
        students = [guest.brought for guest in waiting if guest.brought is not None]
        self.passes.append(len(students))
        try:
            results = train_stacked(students)
        except Exception as error:  # noqa: BLE001  (whatever it is, each site says so as it would alone)
            for guest in waiting:
                guest.failure = error
            return
        for guest, result in zip(waiting, results, strict=True):
            guest.trained = result


class _Left(BaseException):
    """The meeting broke up: what waits there unwinds."""


class _Guest(Generic[T]):
    """One site's thread; whoever lets it run waits until it has come to train or is done."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.brought: Student | None = None
        self.trained: LocalResult | None = None
        self.failure: BaseException | None = None
        self._call = call
        self._returned: list[T] = []
        self._raised: BaseException | None = None
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="site", daemon=True)

    def start(self) -> None:
        """Run up to the first training, or to the end."""
        self._thread.start()
        self._theirs.acquire()

    def go_on(self) -> None:
        """Run up to the next training, or to the end."""
        self.brought = None
        self._mine.release()
        self._theirs.acquire()

    def leave(self) -> None:
        """Let the thread end, whatever it waits for."""
        while self._thread.is_alive():
            self.failure = _Left()
            self._mine.release()
            self._thread.join(0.01)

    def result(self) -> T:
        """Return what the call returned, or raise what it raised."""
        if self._raised is not None:
            raise self._raised
        return self._returned[0]

    def train(self, *arguments: Any, **named: Any) -> LocalResult:
        """Wait for the pass in which this is trained; called on the guest's own thread."""
        self.brought, self.trained = Student(Task(*arguments, **named)), None
        self._theirs.release()
        self._mine.acquire()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.trained is None:
            raise _Left
        return self.trained

    def _run(self) -> None:
        trained_by.set(self.train)
        try:
            self._returned.append(self._call())
        except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
            self._raised = error
        finally:
            self.brought = None
            self._theirs.release()
