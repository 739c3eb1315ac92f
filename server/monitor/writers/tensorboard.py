"""TensorBoard: one folder of event files per run, written without TensorFlow and without torch."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import ConfigError
from common.files import write_atomic
from server.facts.records import PlanFacts, RunSummary

if TYPE_CHECKING:
    from tensorboard.summary.writer.record_writer import RecordWriter

_IDENTITY = "fedcxr.json"
_REPLACED = "replaced_by"
_LOCK = ".lock"
_PLAN = "plan"
_SESSION_START = "_hparams_/session_start_info"
_SESSION_END = "_hparams_/session_end_info"


class TensorBoardWriter:
    """Writes ``FOLDER/RUN/events.out.tfevents.*``.

    What was written before is read back from the files themselves, so a process that was killed
    leaves nothing out and nothing double: the next one begins a new file beside it. TensorBoard does
    not take a value back, so a run that was rolled back goes on in ``FOLDER/RUN.rollback-1``, which
    holds all of it, and the first says so.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Remember where to write.

        Raises:
            ConfigError: if TensorBoard is not installed.
        """
        _import()
        self._folder, self._clock = folder, clock
        self._run = folder
        self._identity: dict[str, str] = {}
        self._plan: PlanFacts | None = None
        self._summary: RunSummary | None = None
        self._held: dict[str, dict[int, float]] = {}
        self._tags: set[str] = set()
        """What else was written."""
        self._ended = ""
        self._file: RecordWriter | None = None
        self._lock: int | None = None

    def begin(self, plan: PlanFacts, summary: RunSummary) -> None:
        """Open the run's folder.

        Raises:
            ConfigError: if another run's events lie there, or somebody else is writing them.
        """
        self._plan, self._summary = plan, summary
        self._identity = {"run": summary.key, "plan": plan.digests.get("plan", "")}
        name = summary.key
        while name:
            self._run = self._folder / name
            name = self._open()

    def held(self) -> Mapping[str, Mapping[int, float]]:
        """Return what the event files hold."""
        return self._held

    def kept(self, value: float) -> float:
        """Return a value as event files keep it: in 32 bits.

        >>> TensorBoardWriter.kept(None, 0.1)
        0.10000000149011612
        """
        with np.errstate(over="ignore"):
            return float(np.float32(value))

    def scalar(self, name: str, round: int, value: float, time: float) -> None:
        """Write one value at the step ``round``."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(time, round, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))
        self._held.setdefault(name, {})[round] = self.kept(value)

    def begin_anew(self) -> None:
        """Go on in a folder of its own, and say so in this one."""
        number = 1
        while (self._folder / f"{self._identity['run']}.rollback-{number}").exists():
            number += 1
        name = f"{self._identity['run']}.rollback-{number}"
        self._write(self._clock(), 0, summary=_text("replaced", f"Rolled back; this run goes on as {name}."))
        self._mark({_REPLACED: name})
        self.close()
        self._run = self._folder / name
        self._open()

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        if self._file is not None:
            self._file.flush()

    def end(self, summary: RunSummary) -> None:
        """Note how the run ended, for the table of hyperparameters."""
        from tensorboard.plugins.hparams.api_pb2 import Status
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        finished = summary.standing.state == "finished"
        status = Status.STATUS_SUCCESS if finished else Status.STATUS_FAILURE
        if _SESSION_END in self._tags and self._ended == str(status):
            return
        self._ended = str(status)
        moment = summary.changed or self._clock()
        info = SessionEndInfo(status=status, end_time_secs=moment)
        step = summary.standing.committed
        self._write(moment, step, summary=_of_hparams(_SESSION_END, HParamsPluginData(session_end_info=info)))
        self._tags.add(_SESSION_END)

    def close(self) -> None:
        """Close the newest file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------------ the files

    def _open(self) -> str:
        """Open a folder and read what is there; returns the name of the one that replaces it, or ''."""
        self._held, self._tags, self._ended = {}, set(), ""
        self._run.mkdir(parents=True, exist_ok=True)
        self._lock = _hold(self._run)
        try:
            replaced = self._identify()
            for file in () if replaced else _files(self._run):
                for event in _events(file):
                    self._take(event)
        except BaseException:
            self.close()
            raise
        if replaced:
            self.close()
        return replaced

    def _identify(self) -> str:
        """See that the folder is this run's; returns the name of the one that replaces it, or ''."""
        path = self._run / _IDENTITY
        if not path.exists():
            if next(_files(self._run), None) is not None:
                raise ConfigError(
                    f"{self._run} holds event files of something else", fix="name another folder"
                )
            self._mark({})
            return ""
        try:
            found = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            found = {}
        replaced = str(found.pop(_REPLACED, ""))
        if found != self._identity:
            raise ConfigError(
                f"{self._run} holds the events of another run, or of another plan",
                fix="name another folder, or remove that one",
            )
        return replaced

    def _mark(self, more: Mapping[str, str]) -> None:
        write_atomic(self._run / _IDENTITY, json.dumps({**self._identity, **more}).encode())

    def _take(self, event: Any) -> None:
        """Take in an event as readers of the files do."""
        for value in event.summary.value:
            if value.HasField("simple_value"):
                self._held.setdefault(value.tag, {})[event.step] = value.simple_value
            else:
                self._tags.add(value.tag)
                if value.tag == _SESSION_END:
                    self._ended = _status_in(value)

    def _write(self, moment: float, step: int, **what: Any) -> None:
        if self._file is None:
            self._file = self._new_file()
        self._describe()
        self._put(moment, step, **what)

    def _put(self, moment: float, step: int, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        assert self._file is not None  # noqa: S101  (for the type checker)
        self._file.write(Event(wall_time=moment, step=step, **what).SerializeToString())

    def _new_file(self) -> RecordWriter:
        """Begin a file that readers take after every earlier one: they go by the names."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        moment = int(self._clock())
        for file in _files(self._run):
            moment = max(moment, _number_of(file) + 1)
        path = self._run / f"events.out.tfevents.{moment:010d}.fedcxr"
        writer = RecordWriter(path.open("xb"))
        writer.write(Event(wall_time=self._clock(), file_version="brain.Event:2").SerializeToString())
        return writer

    def _describe(self) -> None:
        """Write the plan, once: as text, and as hyperparameters by which runs are compared."""
        if self._plan is None or self._summary is None or _SESSION_START in self._tags:
            return
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        moment = self._summary.started or self._clock()
        self._tags |= {_PLAN, _SESSION_START}
        self._put(moment, 0, summary=_text(_PLAN, _as_text(self._plan, self._summary)))
        settings = dict(self._plan.settings)
        self._put(
            moment,
            0,
            summary=hparams_pb(settings, trial_id=self._summary.key, start_time_secs=moment),
        )


def _as_text(plan: PlanFacts, summary: RunSummary) -> str:
    """Lay the plan out as a table of Markdown; what is not the default stands first."""
    rows = [("run", summary.key), ("method", summary.method), ("backbone", summary.backbone)]
    rows += [(f"{name} digest", digest) for name, digest in plan.digests.items()]
    rows += [(f"version of {name}", version) for name, version in plan.versions.items()]
    ordered = [*plan.changed, *(key for key in plan.settings if key not in plan.changed)]
    rows += [(key, str(plan.settings[key])) for key in ordered if key in plan.settings]
    lines = ["| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | `{_cell(value)}` |" for name, value in rows)])


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "/").replace("`", "'")


def _text(tag: str, text: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    metadata = create_summary_metadata(tag, "")
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto([text]))])


def _of_hparams(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

    value = Summary.Value(tag=tag, metadata=create_summary_metadata(data), tensor=NULL_TENSOR)
    return Summary(value=[value])


def _status_in(value: Any) -> str:
    from tensorboard.plugins.hparams.metadata import parse_session_end_info_plugin_data

    return str(parse_session_end_info_plugin_data(value.metadata.plugin_data.content).status)


def _files(folder: Path) -> Iterator[Path]:
    """Yield event files in the order readers take them."""
    yield from sorted(folder.glob("events.out.tfevents.*"))


def _number_of(file: Path) -> int:
    number = file.name.split(".")[3]
    return int(number) if number.isascii() and number.isdigit() else 0


def _events(file: Path) -> Iterator[Any]:
    """Yield a file's events up to its end, or to where whoever wrote it was killed."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for data in RawEventFileLoader(str(file)).Load():
        yield Event.FromString(data)


def _hold(folder: Path) -> int:
    descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"another export writes into {folder}", fix="end it, or name another folder"
        ) from None
    return descriptor


def _import() -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise ConfigError(
            "TensorBoard is not installed here", fix="pip install 'fedcxr[tensorboard]'"
        ) from None
