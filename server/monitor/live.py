"""``/live`` and ``/runs/{run}/live``: server-sent events that say when there is something new.

An event carries a run and its revision and nothing else; the page then asks for what it shows.
WHATWG HTML, 9.2, is the format.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from server.monitor.watch import Subscription

if TYPE_CHECKING:
    from server.monitor.state import Monitor

router = APIRouter()

MOST_STREAMS = 500
"""Open at once; the next is asked to come again later."""
HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that nothing on the way gives the stream up."""
STALLED = 30.0
"""Seconds a watcher may take to receive an event."""
COME_BACK = 3000
"""Milliseconds after which a browser asks again for a stream that broke off."""


@router.get("/live", include_in_schema=False)
async def live(request: Request) -> Response:
    """Stream the news of all runs."""
    return _stream(request, "", 0)


@router.get("/runs/{run}/live", include_in_schema=False)
async def live_run(request: Request, run: str) -> Response:
    """Stream the news of one run."""
    monitor: Monitor = request.app.state.monitor
    found = await asyncio.to_thread(monitor.runs.find, run)
    return _stream(request, found.key, await asyncio.to_thread(found.view().revision))


def _stream(request: Request, run: str, revision: int) -> Response:
    monitor: Monitor = request.app.state.monitor
    if monitor.watch.watchers() >= MOST_STREAMS:
        return PlainTextResponse("too many watchers", 503, {"Retry-After": "30"})
    still = getattr(request.state, "still", lambda: True)
    return EventStream(monitor, run, revision, still)


class EventStream(Response):
    """An answer that goes on until the watcher leaves, is logged out, or the monitor stops."""

    media_type = "text/event-stream"

    def __init__(
        self, monitor: Monitor, run: str, revision: int, still: Callable[[], bool] = lambda: True
    ) -> None:
        """Take the run, empty for all, its revision, and whether the watcher may still look."""
        self.monitor, self.run, self.revision, self.still = monitor, run, revision, still
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until somebody ends it."""
        subscription = self.monitor.watch.subscribe(self.run)
        gone = asyncio.create_task(_wait_until_gone(receive, subscription))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._events(subscription, send)
            await _send(send, b"", more=False)
        except (TimeoutError, OSError):
            pass  # the watcher takes nothing any more
        finally:
            self.monitor.watch.leave(subscription)
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone

    async def _events(self, subscription: Subscription, send: Send) -> None:
        # What changed between the page's own request and this one is asked for again.
        await _send(send, f"retry: {COME_BACK}\n\n".encode() + _event({self.run: self.revision}))
        rest, turn = self.monitor.watch.rest, -1
        while not subscription.over:
            try:
                await asyncio.wait_for(subscription.changed.wait(), HEARTBEAT)
            except TimeoutError:
                if not self.still():
                    return
                await _send(send, b": still here\n\n")
                continue
            while not subscription.over and (left := rest.left(turn)) > 0:
                with contextlib.suppress(TimeoutError):  # news that come meanwhile are kept
                    await asyncio.wait_for(subscription.ended.wait(), left)
            news = subscription.take()
            if subscription.over or not self.still():
                return
            if news:
                await _send(send, _event(news))
                turn = rest.turn


async def _wait_until_gone(receive: Receive, subscription: Subscription) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    subscription.end()


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    message = {"type": "http.response.body", "body": body, "more_body": more}
    await asyncio.wait_for(send(message), STALLED)


def _event(news: dict[str, int]) -> bytes:
    r"""Write one event of the newest of some changes.

    >>> _event({"first": 7})
    b'event: revision\ndata: {"run": "first", "revision": 7}\n\n'
    """
    run, revision = list(news.items())[-1]
    return f"event: revision\ndata: {json.dumps({'run': run, 'revision': revision})}\n\n".encode()
