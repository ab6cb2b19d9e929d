"""What every request passes first: is its Host one of ours, who asks, what is it called, how did it end."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from likely.serving.limits import ENDPOINTS, RETRY_AFTER_S, ApiError
from likely.serving.metrics import ServerMetrics

access_log = logging.getLogger("likely.access")
_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_PATHS = frozenset(word.strip(",") for word in ENDPOINTS.split() if word.startswith("/"))


class Gate:
    """The outermost layer of the application.

    hosts     names that a Host header may have beside addresses and localhost; None: any.  A page of a stranger whose
              name leads to this machine (DNS rebinding) cannot ask without one of them
    draining  whether the server is ending, when it takes nothing new

    Each reply has an X-Request-ID, the client's own where it sent a plain one. The logger "likely.access" gets a line
    of JSON per request, `log_of(request)` being what endpoints add to it.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Collection[str] | None, metrics: ServerMetrics, draining: Callable[[], bool]
    ):
        self._app, self._metrics, self._draining = app, metrics, draining
        self._hosts = None if hosts is None else {host.lower() for host in hosts} | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        number = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        about: dict[str, Any] = {}
        scope.setdefault("state", {}).update(log=about, request_id=number)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", number.encode())]}
            await send(message)

        try:
            if (refused := self._refused(request)) is not None:
                await refused.response()(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        finally:
            path = request.url.path if request.url.path in _PATHS else "other"
            self._metrics.responses.labels(path, str(status or 499)).inc()
            if access_log.isEnabledFor(logging.INFO):
                access_log.info(_line(request, number, status or 499, time.perf_counter() - started, about))

    def _refused(self, request: Request) -> ApiError | None:
        host = request.headers.get("host", "")
        if self._hosts is not None and not _is_ours(host, self._hosts):
            return ApiError(
                421, f'Host "{host[:100]}" is not a name of this server: start it with --allowed-host', code="host"
            )
        if self._draining() and request.url.path not in ("/health", "/metrics"):
            headers = {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"}
            return ApiError(503, "the server is shutting down", code="shutting_down", headers=headers)
        return None


def log_of(request: Request) -> dict[str, Any]:
    """What the access log will say of this request beyond what the gate knows."""
    return request.scope["state"]["log"]


def check_key(request: Request, keys: Mapping[str, str] | None) -> str:
    """The name of the key that the request carries; ApiError 401 without one of them.  "" where none is asked for."""
    if not keys:
        return ""
    given = request.headers.get("authorization", "").encode()
    found = [name for name, key in keys.items() if hmac.compare_digest(given, b"Bearer " + key.encode())]
    if not found:
        raise ApiError(401, "the API key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key")
    log_of(request)["key"] = found[0]
    return found[0]


def _is_ours(host: str, names: Collection[str]) -> bool:
    name = re.sub(r":\d*$", "", host.strip().lower())
    if name in names or "*" in names:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _line(request: Request, number: str, status: int, seconds: float, about: Mapping[str, Any]) -> str:
    found = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": number,
        "client": request.client.host if request.client else None,
        "method": request.method,
        "path": request.url.path[:200],
        "status": status,
        "seconds": round(seconds, 4),
        **about,
    }
    return json.dumps(found, ensure_ascii=True)
