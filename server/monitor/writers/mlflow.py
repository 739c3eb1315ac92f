"""MLflow: one MLflow run per run, in a local folder or on a tracking server."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from common.errors import ConfigError, UnreachableError
from server.facts.records import PlanFacts, RunSummary
from server.monitor.alerts.settings import is_loopback

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

EXPERIMENT = "fedcxr"
RUN, PLAN = "fedcxr.run", "fedcxr.plan_digest"
REPLACED = "fedcxr.replaced_by"
"""Tag of a run that was rolled back: the MLflow run that holds it as it then went on."""
_AT_ONCE = 1000
"""Metrics of one request; MLflow takes no more."""
_PARAMS_AT_ONCE = 100
_LONGEST = 6000
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set before MLflow is imported: it then calls nobody but the tracking server."""

Result = TypeVar("Result")


class MlflowWriter:
    """Writes params, metrics by round, and digests as tags.

    A run is found again by its name and its plan's digest, so it is never there twice. MLflow cannot
    take a metric back: of a run that was rolled back a second MLflow run is made, with the values that
    hold, and the first is tagged with the one that replaces it.
    """

    def __init__(self, uri: str) -> None:
        """Open a store: a folder (its ``mlflow.db`` is made), ``sqlite:///FILE``, or a server's address.

        Raises:
            ConfigError: if MLflow is not installed, or the address is not one.
            UnreachableError: if the store cannot be opened.
        """
        self._uri = tracking_uri(uri)
        self._client = _client(self._uri)
        self._plan: PlanFacts | None = None
        self._summary: RunSummary | None = None
        self._experiment = self._run = ""
        self._buffer: list[Metric] = []

    def begin(self, plan: PlanFacts, summary: RunSummary) -> None:
        """Find the run, or make it."""
        self._plan, self._summary = plan, summary
        self._experiment = self._experiment_id()
        found = self._find(plan, summary)
        if found is None:
            self._run = self._create()
        else:
            self._run = found.info.run_id
            if found.info.status != "RUNNING":
                _call(self._client.update_run, self._run, status="RUNNING")
        self._describe()

    def held(self) -> Mapping[str, Mapping[int, float]]:
        """Return every metric of the run."""
        names = list(_call(self._client.get_run, self._run).data.metrics)
        histories = {name: _call(self._client.get_metric_history, self._run, name) for name in names}
        return {
            name: {metric.step: float(metric.value) for metric in history}
            for name, history in histories.items()
        }

    def kept(self, value: float) -> float:
        """Return the value: MLflow keeps all 64 bits."""
        return value

    def scalar(self, name: str, round: int, value: float, time: float) -> None:
        """Write one metric at the step ``round``."""
        from mlflow.entities import Metric

        self._buffer.append(Metric(name, value, int(time * 1000), round))
        if len(self._buffer) >= _AT_ONCE:
            self.flush()

    def begin_anew(self) -> None:
        """Begin a second MLflow run in place of this one."""
        self._buffer.clear()
        earlier = self._run
        self._run = self._create()
        self._describe()
        _call(self._client.set_tag, earlier, REPLACED, self._run)
        _call(self._client.set_terminated, earlier, "KILLED")

    def flush(self) -> None:
        """Send what was written."""
        if self._buffer:
            _call(self._client.log_batch, self._run, metrics=self._buffer)
            self._buffer = []

    def end(self, summary: RunSummary) -> None:
        """Note how the run ended."""
        self.flush()
        moment = int((summary.changed or 0.0) * 1000) or None
        _call(self._client.set_terminated, self._run, _STATUS[summary.standing.state], moment)

    def close(self) -> None:
        """Forget what was not flushed; MLflow keeps no connection open."""
        self._buffer.clear()

    # ------------------------------------------------------------------ the MLflow run

    def _experiment_id(self) -> str:
        found = _call(self._client.get_experiment_by_name, EXPERIMENT)
        return found.experiment_id if found else _call(self._client.create_experiment, EXPERIMENT)

    def _find(self, plan: PlanFacts, summary: RunSummary) -> Run | None:
        digest = plan.digests.get("plan", "")
        query = f"tags.`{RUN}` = '{summary.key}' and tags.`{PLAN}` = '{digest}'"
        found = _call(self._client.search_runs, [self._experiment], query, order_by=["attributes.start_time"])
        current = [run for run in found if REPLACED not in run.data.tags]
        return current[0] if current else None

    def _create(self) -> str:
        assert self._plan is not None and self._summary is not None  # noqa: S101  (for the type checker)
        tags = {RUN: self._summary.key, PLAN: self._plan.digests.get("plan", "")}
        began = int((self._summary.started or 0.0) * 1000) or None
        run = _call(self._client.create_run, self._experiment, began, tags=tags, run_name=self._summary.key)
        return str(run.info.run_id)

    def _describe(self) -> None:
        """Write params and tags; again and again is the same as once."""
        from mlflow.entities import Param, RunTag

        assert self._plan is not None and self._summary is not None  # noqa: S101  (for the type checker)
        plan, summary = self._plan, self._summary
        params = [Param(key, str(value)[:_LONGEST]) for key, value in plan.settings.items() if value != ""]
        tags = {f"fedcxr.{name}_digest": digest for name, digest in plan.digests.items()}
        tags |= {f"fedcxr.version.{name}": version for name, version in plan.versions.items()}
        tags |= {"fedcxr.method": summary.method, "fedcxr.backbone": summary.backbone}
        _call(self._client.log_batch, self._run, tags=[RunTag(key, value) for key, value in tags.items()])
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            _call(self._client.log_batch, self._run, params=params[first : first + _PARAMS_AT_ONCE])


def tracking_uri(given: str) -> str:
    """Return what MLflow calls a store: a folder becomes a SQLite file in it.

    Raises:
        ConfigError: if it is an address of another kind, or a server away from this machine without TLS.
    """
    if "://" not in given:
        folder = Path(given).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'mlflow.db'}"
    parts = urlsplit(given)
    if parts.scheme not in ("sqlite", "http", "https"):
        raise ConfigError(
            f"--mlflow takes a folder, sqlite:///FILE or a server's https address, not {parts.scheme}:",
            fix="for example --mlflow mlruns",
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(
            "a tracking server away from this machine is called by https only", found=parts.hostname or ""
        )
    return given


def _client(uri: str) -> MlflowClient:
    os.environ.update(_QUIET)
    try:
        with _their_warnings():
            from mlflow.tracking import MlflowClient
    except ImportError:
        raise ConfigError("MLflow is not installed here", fix="pip install 'fedcxr[mlflow]'") from None
    return _call(MlflowClient, tracking_uri=uri)


def _call(do: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """Call MLflow; what it warns of in its own parts is not ours to mend.

    Raises:
        UnreachableError: if the store does not do it.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _their_warnings():
            return do(*arguments, **named)
    except (MlflowException, SQLAlchemyError) as error:
        raise UnreachableError(
            "MLflow's store does not take it",
            found=" ".join(str(error).split())[:200],
            fix="see to the store, then export again: it goes on where it was",
        ) from None


@contextmanager
def _their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
