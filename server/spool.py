"""Spool: a round's admitted updates, the first of them in memory and the others in one file on disk.

The file has no name, so it is gone with the round, also where the process is killed, and nobody else
can open it. It is not flushed either: a round that a crash cuts short is asked for again.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.adapter import AdapterSchema
from common.errors import RunError, SiteError
from server.update import Sender, SiteUpdate, l2_norm

logger = logging.getLogger(__name__)

HELD = 64 << 20
"""Bytes of updates that stay in memory."""


class Spool:
    """A round's updates by site name; ``folder`` takes the file, None: all stay in memory.

    ``held`` is how many bytes of updates stay in memory. Where one lies changes no bit of it.
    """

    def __init__(self, schema: AdapterSchema, folder: Path | None = None, held: int = HELD) -> None:
        self._schema, self._folder, self._room = schema, folder, held
        self._senders: dict[str, Sender] = {}
        self._order: tuple[Sender, ...] = ()
        self._values: dict[str, Tensor | int] = {}
        self._file: _Slots | None = None
        self._buffer = torch.empty(0)
        ends = np.cumsum([0, *(math.prod(shape) for _, shape in schema.shapes)]).tolist()
        self._places = {
            name: (start, shape) for (name, shape), start in zip(schema.shapes, ends, strict=False)
        }

    @classmethod
    def of(cls, updates: Iterable[SiteUpdate], schema: AdapterSchema) -> Self:
        """Hold some updates in memory."""
        spool = cls(schema)
        for update in updates:
            spool.add(update)
        return spool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget every value."""
        self._values.clear()
        if self._file is not None:
            self._file.close()

    @property
    def schema(self) -> AdapterSchema:
        """The tensors the round trained."""
        return self._schema

    @property
    def senders(self) -> tuple[Sender, ...]:
        """The sites, by name."""
        return self._order

    def add(self, update: SiteUpdate) -> Sender:
        """Take an update in; returns what is kept of it beside its values.

        Raises:
            SchemaError: if its tensors are not those of the schema.
            SiteError: if the site's update is here already.
        """
        if update.site in self._senders:
            raise SiteError("an update of this site is here already")
        values = self._schema.pack(update.delta)
        sender = Sender(update.site, update.num_examples, update.labelled, l2_norm(values))
        slot = None if self._folder is None or values.nbytes <= self._room else self._write(values)
        if slot is None:
            self._room -= values.nbytes
        self._values[update.site] = torch.from_numpy(values) if slot is None else slot
        self._senders[update.site] = sender
        self._order = tuple(self._senders[site] for site in sorted(self._senders))
        return sender

    def read(self, place: int, start: int, stop: int) -> Tensor:
        """Return values ``[stop - start]`` of the sender at ``place``; the next call may overwrite them.

        Raises:
            RunError: if the disk does not give back what was written to it.
        """
        values = self._values[self._order[place].site]
        if isinstance(values, Tensor):
            return values[start:stop]
        if self._buffer.numel() < stop - start:
            self._buffer = torch.empty(stop - start)
        part = self._buffer[: stop - start]
        if self._file is not None:
            self._file.read(values, start, part.numpy())
        return part

    def tensors(self, place: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return those of the named tensors that the round trained, of the sender at ``place``."""
        found = {}
        for name in names:
            if name in self._places:
                start, shape = self._places[name]
                found[name] = self.read(place, start, start + math.prod(shape)).reshape(shape).clone()
        return found

    def _write(self, values: NDArray[np.float32]) -> int | None:
        """Write an update to the file; None where the disk does not take it: it must not be lost."""
        try:
            if self._file is None and self._folder is not None:
                self._file = _Slots(self._folder, values.nbytes)
            return None if self._file is None else self._file.write(values)
        except OSError as error:
            logger.warning("an update stays in memory, the disk does not take it: %s", error.strerror)
            return None


class _Slots:
    """A nameless file of places of the same size."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (closed with the round)
        self._size, self._taken = size, 0

    def close(self) -> None:
        self._file.close()

    def write(self, values: NDArray[np.float32]) -> int:
        """Write into the next place; what fails half way leaves it free."""
        left, where = values.view(np.uint8).data, self._taken * self._size
        while left:
            count = os.pwrite(self._file.fileno(), left, where)
            left, where = left[count:], where + count
        self._taken += 1
        return self._taken - 1

    def read(self, slot: int, start: int, room: NDArray[Any]) -> None:
        """Fill ``room`` with values of a place."""
        left, where = room.view(np.uint8).data, slot * self._size + start * room.itemsize
        try:
            while left:
                count = os.preadv(self._file.fileno(), [left], where)
                if not count:
                    raise OSError("the file ends early")
                left, where = left[count:], where + count
        except OSError as error:
            raise RunError(
                "the disk does not give back an update of this round",
                found=str(error),
                fix="look after the disk, then resume the run; every committed round is kept",
            ) from None
