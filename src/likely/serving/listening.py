"""The server's sockets: connections that are bounded in time and number, and an end that lets texts be finished."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from likely.serving.engine import AsyncEngine, ShuttingDown
from likely.serving.limits import ServerLimits

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    b'{"error":{"message":"too many connections: try again later","type":"server_error","param":null,"code":null}}'
)
LAST_S = 3  # for replies to be sent after the engine has stopped


def bounded_protocol(limits: ServerLimits) -> type[asyncio.Protocol]:
    """HTTP/1.1 that closes a connection whose request does not begin in time, and refuses one too many."""

    class BoundedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= limits.max_connections:
                transport.write(_FULL)
                transport.close()
                self.refused = True
                return
            super().connection_made(transport)
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_arrived()
            if not getattr(self, "refused", False):
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if getattr(self, "refused", False):
                return
            if self._is_idle() and self._timer is None:
                self._wait_for_head()
            super().data_received(data)
            if not self._is_idle():
                self._head_arrived()

        def eof_received(self) -> None:
            if self._is_idle() and self.transport is not None:
                self.transport.close()

        def _is_idle(self) -> bool:
            """Whether no request is being answered."""
            return self.cycle is None or self.cycle.response_complete

        def _wait_for_head(self) -> None:
            self._timer = self.loop.call_later(limits.header_timeout_s, self._too_late)

        def _head_arrived(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_late(self) -> None:
            self._timer = None
            if self._is_idle():
                self.transport.abort()

    return BoundedProtocol


class DrainingServer(uvicorn.Server):
    """At the first SIGTERM or Ctrl-C nothing new is taken and what runs may end; at the second, or after `drain_s`,
    streams end with an event that says why."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, *, drain_s: float):
        super().__init__(config)
        self._app, self._drain_s = app, drain_s

    async def shutdown(self, sockets: Any = None) -> None:
        self._app.state.draining = True
        engine: AsyncEngine = self._app.state.engine
        until = time.monotonic() + self._drain_s
        # replies that are prepared, asked of a fallback or passed on from another server are nothing to the engine
        while (engine.waiting or self.server_state.tasks) and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.02)
        await asyncio.get_running_loop().run_in_executor(None, engine.close, ShuttingDown())
        self.force_exit = False  # what was broken off is told so
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of clients that do not read even that
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it serves, signals are for it; a server that ended because of one has ended well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def server(
    app: FastAPI,
    limits: ServerLimits,
    *,
    drain_s: float = 30.0,
    certificate: str | None = None,
    key: str | None = None,
) -> DrainingServer:
    """A server of the application; certificate, key: PEM files, for TLS."""
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits),
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=LAST_S,
        server_header=False,
        backlog=1024,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    return DrainingServer(config, app, drain_s=drain_s)
