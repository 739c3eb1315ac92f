"""Flower's Control API as the centre's commands use it: over the admin address, with the admin token."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from common.config import RunConfig
from common.errors import CredentialError, DeploymentError, UnreachableError
from server.centre.folder import CentreFolder

Result = TypeVar("Result")


class _Token:
    """Sets the admin token on every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header and pass the request on."""
        context.request.headers["authorization"] = f"Bearer {self._token}"
        return call_next(context)


@dataclass(frozen=True)
class FlowerRun:
    """A run as Flower sees it."""

    number: int
    status: str
    """pending, starting, running or finished."""
    outcome: str
    """Once finished: completed, failed or stopped."""
    details: str

    @property
    def over(self) -> bool:
        """Whether its ServerApp will do no more."""
        return self.status == "finished"


class Control:
    """Start, stop and look at runs of a centre that is running."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def start_run(self, fab: bytes, config: RunConfig) -> int:
        """Submit a run with every one of its settings; returns Flower's number.

        Raises:
            DeploymentError: if Flower does not take it, or the centre cannot be reached.
        """
        bundle = Fab(hashlib.sha256(fab).hexdigest(), fab, {})
        request = StartRunRequest(
            fab=fab_to_proto(bundle), override_config=user_config_to_proto(dict(config.to_flat()))
        )
        response = _plainly(lambda: self._client.StartRun(request))
        if not response.HasField("run_id"):
            raise DeploymentError("Flower did not take the run", fix="see logs/superlink.log")
        return int(response.run_id)

    def stop_run(self, number: int) -> None:
        """End a run; one that is over stays as it is.

        Raises:
            DeploymentError: if the centre cannot be reached.
        """
        if not self.run(number).over:
            _plainly(lambda: self._client.StopRun(StopRunRequest(run_id=number)))

    def run(self, number: int) -> FlowerRun:
        """Return how a run stands; one that Flower no longer knows is over.

        Raises:
            DeploymentError: if the centre cannot be reached.
        """
        try:
            runs = _plainly(lambda: self._client.ListRuns(ListRunsRequest(run_id=number))).run_dict
        except _UnknownError:
            runs = {}
        if number not in runs:
            return FlowerRun(number, "finished", "failed", "Flower does not know this run")
        status = runs[number].status
        return FlowerRun(number, str(status.status), str(status.sub_status), str(status.details))

    def check(self) -> None:
        """Ask for something small.

        Raises:
            UnreachableError: if the centre does not run.
            CredentialError: if it does not know the admin token.
        """
        _plainly(lambda: self._client.ListRuns(ListRunsRequest(limit=1)))


@contextmanager
def reach_control(centre: CentreFolder) -> Iterator[Control]:
    """Connect to a running centre.

    Raises:
        CredentialError: if the admin token or the CA's certificate cannot be read.
    """
    try:
        token = centre.key("admin.token").read_text(encoding="ascii").strip()
        authority = centre.key("ca.crt").read_bytes()
    except (OSError, ValueError):
        raise CredentialError(
            "the admin token or the CA's certificate cannot be read",
            found=str(centre.key("admin.token").parent),
            fix="run this as the user the centre belongs to",
        ) from None
    client = ControlHttpClient.from_server_address(
        server_address=centre.config().admin,
        insecure=False,
        root_certificates=authority,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="fedcxr-server"), _Token(token)],
    )
    with client:
        yield Control(client)


class _UnknownError(DeploymentError):
    """Flower does not know what was asked for."""


def _plainly(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise CredentialError(
                "the running centre does not take this admin token",
                found=f"status {status}",
                fix="restart it after keys/admin.token was changed, or name the right --centre",
            ) from None
        if status == 404:
            raise _UnknownError("Flower does not know this run", found=_detail(error)) from None
        if status == 503:
            raise DeploymentError(
                "the centre takes nothing new now", found=_detail(error), fix="see to room on its disk"
            ) from None
        raise DeploymentError(
            "the SuperLink refused", found=_detail(error), fix="see logs/superlink.log"
        ) from None
    except (httpx.TransportError, OSError) as error:
        raise UnreachableError(
            "the centre does not answer on its admin address",
            found=type(error).__name__,
            fix="start it: fedcxr-server start",
        ) from None


def _detail(error: httpx.HTTPStatusError) -> str:
    return f"status {error.response.status_code} {error.response.text[:200]}".strip()
