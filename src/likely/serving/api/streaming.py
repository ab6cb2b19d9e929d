"""Work that ends when the client goes away, and server-sent events that notice it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from likely.decoding.request import Event
from likely.serving.engine import Ticket
from likely.serving.limits import ApiError, ServerLimits, json_text, refusal, too_late

T = TypeVar("T")
Events = AsyncGenerator[dict[str, Any]]
PING = b": ping\n\n"
log = logging.getLogger("likely.serving")


async def _gone(receive: Receive) -> None:
    """Returns when the client closed the connection; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away (then ApiError 499, read by nobody)."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client went away")
        return task.result()
    finally:
        await _ended(task, watcher)


class EventStream(Response):
    """Server-sent events from a generator of JSON objects, then [DONE].

    tickets  what the events are made of; cancelled when the client goes away, also before the first event
    deadline_s  of this stream
    An error, or the deadline, becomes an event with an "error", and ends the stream without [DONE].  Where no event
    comes for a while a comment is sent, which tells proxies and clients that the stream lives.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events,
        tickets: Sequence[Ticket],
        limits: ServerLimits,
        deadline_s: float,
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._tickets, self._limits, self._deadline_s = events, tickets, limits, deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.create_task(self._send_all(send))
        watcher = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({task, watcher}, timeout=self._deadline_s, return_when=asyncio.FIRST_COMPLETED)
            late = not task.done() and not watcher.done()
        finally:
            for ticket in self._tickets:
                ticket.cancel()
            await _ended(task, watcher)
        if late:
            with contextlib.suppress(TimeoutError):  # a client that does not read must not hold the place
                async with asyncio.timeout(1):
                    await self._send_last(send, too_late(self._deadline_s, self._limits).body)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last: dict[str, Any] | str = "[DONE]"
        clock = asyncio.get_running_loop().time
        self._sent = clock()
        pinging = asyncio.create_task(self._ping(send, clock))
        try:
            async with contextlib.aclosing(self._events) as events:
                async for event in events:
                    self._sent = clock()
                    await send({"type": "http.response.body", "body": _data(event), "more_body": True})
        except Exception as error:
            last = refusal(error, self._limits).body
        finally:
            await _ended(pinging)
        await self._send_last(send, last)

    async def _ping(self, send: Send, clock: Callable[[], float]) -> None:
        """A comment whenever nothing was sent for `ping_s`."""
        while True:
            if (wait := self._sent + self._limits.ping_s - clock()) > 0:
                await asyncio.sleep(wait)
            else:
                self._sent = clock()
                await send({"type": "http.response.body", "body": PING, "more_body": True})

    async def _send_last(self, send: Send, last: dict[str, Any] | str) -> None:
        await send({"type": "http.response.body", "body": _data(last), "more_body": False})


def _data(event: dict[str, Any] | str) -> bytes:
    text = event if isinstance(event, str) else json_text(event)
    kind = event.get("type") if isinstance(event, dict) else None  # events of a response carry their kind
    name = f"event: {kind}\n".encode() if isinstance(kind, str) else b""
    return name + b"data: " + text.encode("utf-8", "replace") + b"\n\n"


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what is not done and wait for it, so that nothing outlives the reply."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception) and not isinstance(outcome, (ApiError, asyncio.CancelledError)):
            log.debug("ended with %r", outcome)


async def merged(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Event]]:
    """(number of the ticket, event) of all of them as they come; closing it early cancels what is left."""
    queue: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue()

    async def pump(i: int, ticket: Ticket) -> None:
        try:
            async for event in ticket:
                queue.put_nowait((i, event))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(i, ticket)) for i, ticket in enumerate(tickets)]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for ticket in tickets:
            ticket.cancel()
        await _ended(*tasks)
