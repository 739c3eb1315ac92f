"""The line of a deployment: sites by their registered names, signed instructions, interruptions survived."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
from flwr.supercore.run import RunNotRunningException
from flwr.superlink.grid import HttpGrid

from common.errors import RunError
from common.protocol import Instruction
from common.signing import sign
from server.centre.arrivals import Arrivals
from server.centre.registry import Registry
from server.ledger import Ledger
from server.line import Line

logger = logging.getLogger(__name__)

RETRY_FOR = 5.0
"""Seconds Flower's own client tries again within one call; the rest is ours, and has an end."""
_ENDED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
"""What Flower answers a ServerApp whose task is over."""
_BUSY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
SHORTEST, LONGEST = 0.05, 0.25
"""Seconds between two looks for answers, at least and at most."""
SHARE = 0.02
"""Share of the time since the last message went or came that an answer may wait for us."""
_REGISTRY_AGE = 1.0
_SEQUENCE = "sequence"
_TRANSIENT = (httpx.HTTPError, ObjectPullError, ObjectPushError)

Result = TypeVar("Result")


class CentreLine(Line):
    """Sites behind the gateway.

    Every instruction is made out to one site under a number that no other has had, and signed.
    While the SuperLink does not answer, nothing is sent and nothing arrives; ``silent`` says for
    how long, and no call waits without an end.
    """

    steady = False

    def __init__(
        self, grid: Grid, ledger: Ledger, registry: Registry, key: Ed25519PrivateKey, run_id: int
    ) -> None:
        super().__init__(grid)
        self._ledger, self._registry, self._key, self._run = ledger, registry, key, str(run_id)
        self._names: dict[int, str] = {}
        self._read_at = -_REGISTRY_AGE
        self._dead_since: float | None = None
        self._moved = time.monotonic()
        self._arrivals: Arrivals | None = None
        if isinstance(grid, HttpGrid):
            self._arrivals = Arrivals(grid)
            _bound_retries(grid)

    def present(self) -> list[int]:
        """Return the connected nodes of admitted sites, by site name."""
        nodes = self._through(lambda: [*self.grid.get_node_ids()])
        return [node for node in self.admitted() if node in nodes]

    def admitted(self) -> Mapping[int, str]:
        """Return node -> site from the registry, by site name; a second old at most."""
        if time.monotonic() - self._read_at >= _REGISTRY_AGE:
            by_name = sorted(self._registry.names().items(), key=lambda pair: pair[1])
            self._names, self._read_at = dict(by_name), time.monotonic()
        return self._names

    def seal(self, instruction: Instruction, node: int) -> Instruction:
        """Name run and site, number and sign."""
        own = dataclasses.replace(
            instruction,
            run=self._run,
            site=self.admitted().get(node, ""),
            sequence=self._ledger.reserve(_SEQUENCE, 1),
        )
        return dataclasses.replace(own, signature=sign(self._key, own.signed_bytes()))

    def push(self, message: Message) -> str | None:
        """Send a message; None where the SuperLink did not take it: send the same one again."""
        ids = self._through(lambda: [*self.grid.push_messages([message])])
        self._moved, self.poll = time.monotonic(), SHORTEST
        return ids[0] if ids and ids[0] else None

    def pull(self, ids: Sequence[str]) -> list[Message]:
        """Return the answers that have come; none while the SuperLink does not answer."""
        pull = self.grid.pull_messages if self._arrivals is None else self._arrivals.pull
        found = self._through(lambda: [*pull(ids)])
        now = time.monotonic()
        if found or (self._arrivals is not None and self._arrivals.under_way):
            self._moved = now
        self.poll = min(max(SHORTEST, SHARE * (now - self._moved)), LONGEST)
        return found

    def silent(self) -> float:
        """Return for how many seconds the SuperLink has not answered; 0: it does."""
        return 0.0 if self._dead_since is None else time.monotonic() - self._dead_since

    def _through(self, call: Callable[[], list[Result]]) -> list[Result]:
        try:
            result = call()
        except RunNotRunningException:
            raise ended_by_flower() from None
        except _TRANSIENT as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _ENDED:
                raise ended_by_flower() from None
            if self._dead_since is None:
                logger.warning("the SuperLink does not answer (%s); trying on", _reason(error))
                self._dead_since = time.monotonic()
            return []
        if self._dead_since is not None:
            logger.warning("the SuperLink answers again after %.0f s", self.silent())
            self._dead_since = None
        return result


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return f"status {status}" + (", it is busy or its disk is full" if status in _BUSY else "")
    return type(error).__name__


def ended_by_flower() -> RunError:
    """Return the error of a run that Flower no longer knows as running."""
    return RunError(
        "Flower has ended this run: it was stopped, or the SuperLink was away for more than a minute",
        fix="fedcxr-server resume",
    )


def _bound_retries(grid: HttpGrid) -> None:
    """Give the retries of Flower's client an end, so that our deadlines are kept.

    Told that its task is over, that client would also interrupt the whole process; we say why
    the run ends, and end it.
    """
    grid._retry_invoker.max_time = RETRY_FOR
    grid._retry_invoker.should_giveup = _is_final


def _is_final(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in _BUSY
