"""Fifty open browser tabs in one process: what ``monitor.js`` asks of a monitor, without the drawing.

    python -m simulations.benchmarks.watchers http://127.0.0.1:9480 RUN --count 50

Each watcher opens the run's page, holds its stream of events, and a quarter of a second after an
event asks for what has changed, never twice at once; beside a centre it asks every ten seconds
anyway. Some look at another finding, metric or site than the rest. Ends when standard input does, and
prints what it saw and the processor time it took, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field

import httpx

BURST = 0.25
"""Seconds for which many events are one question."""
ANYWAY = 10.0
"""Seconds after which a page whose sites have a heartbeat asks without an event."""
KEPT = 300.0
"""Seconds for which a browser keeps a connection it has used."""
_HEARTBEAT = "data-late="
_AGAIN = 0.5
"""Seconds before somebody who was turned away tries again."""


@dataclass
class Seen:
    """What all watchers together were sent."""

    events: int = 0
    answers: int = 0
    unchanged: int = 0
    """Answers 304, that nothing is new."""
    errors: int = 0
    bytes: int = 0
    slowest: float = 0.0
    """Seconds the slowest answer took."""
    processor: float = 0.0
    """Processor seconds of this process."""
    watching: int = 0
    """Watchers whose stream was open at the end."""


@dataclass
class Watcher:
    """One tab."""

    client: httpx.AsyncClient
    run: str
    query: dict[str, str]
    seen: Seen
    etag: str = ""
    had: int = -1
    """The revision asked for last."""
    told: int | None = None
    """A later one that an event told of, until it is asked for."""
    anyway: float | None = None
    wanted: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Open the page as soon as there is one, then listen and ask until cancelled."""
        while not await self._open():
            await asyncio.sleep(_AGAIN)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._listen())
            both.create_task(self._ask())

    async def _open(self) -> bool:
        try:
            page = await self.client.get(f"/runs/{self.run}", params=self.query)
        except httpx.HTTPError:
            return False
        self.anyway = ANYWAY if _HEARTBEAT in page.text else None
        return page.is_success

    async def _listen(self) -> None:
        while True:
            try:
                async with self.client.stream("GET", f"/runs/{self.run}/live", timeout=60) as stream:
                    if stream.is_success:
                        self.seen.watching += 1
                        await self._read(stream)
            except httpx.HTTPError:
                self.seen.errors += 1
            await asyncio.sleep(_AGAIN)

    async def _read(self, stream: httpx.Response) -> None:
        try:
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    self.seen.events += 1
                    revision = json.loads(line.removeprefix("data:"))["revision"]
                    self.told = revision if revision > self.had else None
                    self.wanted.set()
        finally:
            self.seen.watching -= 1

    async def _ask(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wanted.wait(), self.anyway)
            await asyncio.sleep(BURST)
            self.wanted.clear()
            query = self.query
            if self.told is not None:
                query, self.had, self.told = query | {"told": str(self.told)}, self.told, None
            began = time.perf_counter()
            try:
                headers = {"If-None-Match": self.etag} if self.etag else {}
                answer = await self.client.get(f"/runs/{self.run}/update", params=query, headers=headers)
            except httpx.HTTPError:
                self.seen.errors += 1
                continue
            self._count(answer, time.perf_counter() - began)

    def _count(self, answer: httpx.Response, took: float) -> None:
        self.seen.slowest = max(self.seen.slowest, took)
        self.seen.bytes += answer.num_bytes_downloaded
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            self.seen.unchanged += 1
        elif answer.is_success:
            self.seen.answers += 1
            self.etag = answer.headers.get("ETag", "")
        else:
            self.seen.errors += 1


async def watch(address: str, run: str, queries: list[dict[str, str]]) -> Seen:
    """Watch with one watcher for each query until standard input ends."""
    seen = Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=30) as client:
        tasks = [asyncio.create_task(Watcher(client, run, query, seen).watch()) for query in queries]
        await asyncio.to_thread(sys.stdin.read)
        seen = Seen(**asdict(seen))  # as it stood before the streams were closed
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    seen.processor = round(time.process_time(), 3)
    return seen


def main() -> None:
    """Watch, behind everything else on the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("run")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument(
        "--query", type=json.loads, default=[], help="JSON list of parameters, dealt in turns"
    )
    options = parser.parse_args()
    os.nice(19)
    queries = [options.query[k % len(options.query)] if options.query else {} for k in range(options.count)]
    seen = asyncio.run(watch(options.address, options.run, queries))
    sys.stdout.write(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
