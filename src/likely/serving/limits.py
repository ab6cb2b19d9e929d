"""What a request may ask for, refusals in OpenAI's shape, and a body that is bounded before it is read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pydantic_core
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from likely.errors import KvFull, LikelyError, RemoteError
from likely.serving.engine import EngineFailed, Overloaded, ShuttingDown

log = logging.getLogger("likely.serving")

MAX_N = 32  # samples of one prompt
MAX_PROMPTS = 64  # prompts of one request
MAX_ANSWERS = 1024
MAX_MESSAGES = 1024
MAX_TOOLS = 128
MAX_LOGPROBS = 20  # alternatives per token
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
MAX_NUMBERS = 2**21  # log-probabilities in one reply, alternatives included
MAX_SCORED_CHARS = 4 * 2**20  # of all answers of one request, each with its prompt
BODIES_AT_ONCE = 64  # largest bodies' worth of bytes that may be on their way
RETRY_AFTER_S = 1
ENDPOINTS = (
    "GET /, /health, /metrics, /v1/models, /v1/reviews, "
    "POST /v1/completions, /v1/chat/completions, /v1/responses, /v1/score, /tokenize, /detokenize, /v1/reviews/next, "
    "/v1/reviews/vote"
)


@dataclass(frozen=True)
class ServerLimits:
    """Of one server.

    max_running, max_queue  texts that are written at a time, and requests that wait behind them; more get 429
    max_connections   open at a time;  header_timeout_s  for the head of a request to arrive
    max_body_bytes    of one request;  body_timeout_s  for it to arrive
    deadline_s        from the whole body to the whole reply;  ping_s  after which a silent stream sends a comment
    form_s, form_mib, form_bytes  what compiling a form may take of the processor and of memory, and its size as JSON
    cached_tokens     kept for prompts that begin like earlier texts; None: half of what the model's runtime holds
    """

    max_running: int = 64
    max_queue: int = 256
    max_connections: int = 1024
    header_timeout_s: float = 10.0
    max_body_bytes: int = 2**20
    body_timeout_s: float = 30.0
    deadline_s: float = 600.0
    ping_s: float = 15.0
    form_s: float = 1.0
    form_mib: int = 256
    form_bytes: int = 2**17
    cached_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("cached_tokens", "max_queue") and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
            if name in ("cached_tokens", "max_queue") and value is not None and value < 0:
                raise ValueError(f"{name} must be >= 0, got {value}")

    @property
    def most_requests(self) -> int:
        """That run or wait."""
        return self.max_running + self.max_queue


class ApiError(Exception):
    """A refusal: HTTP status, one line, and the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = " ".join(str(self).split())
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body, status=self.status, headers=self.headers)


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_text(body: Any) -> str:
    return _JSON.encode(body)


def json_response(
    body: Any, *, status: int = 200, headers: dict[str, str] | None = None, by_pieces: bool = False
) -> Response:
    """by_pieces: slower, and other threads get their turn meanwhile."""
    # A broken text may hold half of a surrogate pair; it must not turn an answer into an exception.
    text = "".join(_JSON.iterencode(body)) if by_pieces else json_text(body)
    return Response(text.encode("utf-8", "replace"), status, headers, "application/json")


def refusal(error: Exception, limits: ServerLimits) -> ApiError:
    """What an error means to a client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        message = f"{error.detail} (there are: {ENDPOINTS})"
        return ApiError(error.status_code, message, headers=dict(error.headers or {}))
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(error, ShuttingDown):
        return ApiError(503, str(error), code="shutting_down", headers={"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(error, TimeoutError):
        return too_late(limits.deadline_s, limits)
    if isinstance(error, EngineFailed):
        return ApiError(500, str(error), code="engine_failed")
    if isinstance(error, KvFull):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, RemoteError):
        return ApiError(502, str(error), code="fallback_unavailable")
    if isinstance(error, (LikelyError, ValueError)):
        return ApiError(400, str(error))
    log.error("this should not have happened", exc_info=error)
    return ApiError(500, f"this should not have happened: {type(error).__name__}")


def too_late(seconds: float, limits: ServerLimits) -> ApiError:
    """What a request is told that had so many seconds."""
    longer = "raise --deadline" if seconds >= limits.deadline_s else "give it a longer timeout"
    message = f"not done within {seconds:g} seconds: ask for less, or {longer}"
    return ApiError(408, message, code="deadline", headers={"X-Should-Retry": "false"})


class Admission:
    """Counts requests that are prepared or answered at once, and bytes of bodies that are on their way.

    A stream is counted by the engine.
    """

    def __init__(self, limits: ServerLimits):
        self._limit, self._count = limits.most_requests, 0
        self._most_bytes, self._bytes = BODIES_AT_ONCE * limits.max_body_bytes, 0

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        if self._count >= self._limit:
            raise Overloaded(self._limit)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[int], None]]:
        """For one body: a function to be told of each piece; Overloaded where all that is on its way is too much."""
        mine = 0

        def took(size: int) -> None:
            nonlocal mine
            mine += size
            self._bytes += size
            if self._bytes > self._most_bytes:
                raise Overloaded(self._limit)

        try:
            yield took
        finally:
            self._bytes -= mine


async def discard_body(request: Request, limits: ServerLimits) -> None:
    """Read what a refused client is still sending, within bounds, and keep none of it.

    A connection that is closed while data arrive is reset, and the client would never see why it was refused.
    """
    if "expect" in request.headers:  # it waits for a word before it sends
        return
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: the body was read
        async with asyncio.timeout(1):
            async for chunk in request.stream():
                size += len(chunk)
                if size > 16 * limits.max_body_bytes:
                    return


async def read_json(request: Request, limits: ServerLimits, took: Callable[[int], None]) -> dict[str, Any]:
    """The body as a JSON object; ApiError on anything else, before more than the limit was kept.

    took  told of the bytes of each piece that is kept
    """
    if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise ApiError(415, f'Content-Encoding "{encoding[:60]}" is not taken: send the body as it is')
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f'Content-Type must be application/json, got "{kind[:60]}"')
    too_large = ApiError(
        413, f"the body must be at most {limits.max_body_bytes} bytes", headers={"Connection": "close"}
    )
    declared = request.headers.get("content-length")
    if declared is not None and (not declared.isdecimal() or int(declared[:19]) > limits.max_body_bytes):
        await discard_body(request, limits)
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limits.max_body_bytes:
                    took(len(chunk))
                    body += chunk
                elif size > 16 * limits.max_body_bytes:
                    break
    except TimeoutError:
        if size > limits.max_body_bytes:
            raise too_large from None
        raise ApiError(408, f"the body did not arrive within {limits.body_timeout_s:g} seconds") from None
    except ClientDisconnect:
        raise ApiError(499, "the client went away") from None
    if size > limits.max_body_bytes:
        raise too_large
    if not body:
        raise ApiError(400, "the body is empty: send a JSON object")
    try:
        found = pydantic_core.from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}"[:300]) from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(found).__name__}")
    return found
