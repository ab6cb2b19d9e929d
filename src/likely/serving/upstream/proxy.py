"""Requests for models of other servers, passed on as they are, whole or streamed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from fastapi import Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from likely.lm.remote.http import base_url, find_key
from likely.serving.limits import ApiError, ServerLimits, json_text, too_late
from likely.serving.upstream.balancer import Balancer, Hedging, Upstream

PREFIX_CHARS = 1024  # of a prompt: texts that begin alike that far go to the same server
CHARS_PER_TOKEN = 4  # a guess, to compare loads
DEFAULT_TOKENS = 256  # of an answer whose length nobody bounded
CONNECT_S = 5.0
MODELS_S = 5.0  # for a list of models to come
REFRESH_S = 30.0  # a model that nobody had is asked for again after that
WORTH_ANOTHER = frozenset({429, 500, 502, 503, 504})  # replies after which another server may do better
KEPT_HEADERS = ("content-type", "retry-after")


@dataclass(frozen=True)
class _Begun:
    """A reply whose first bytes are here."""

    upstream: Upstream
    reply: httpx.Response
    first: bytes
    rest: AsyncIterator[bytes]


@dataclass(frozen=True)
class _Deadline:
    """Of one request, on the event loop's clock, and what a client is told whose reply is not there then.

    own  the client's, shorter than the server's: a server that does not meet it is not at fault
    """

    until: float
    refusal: ApiError
    own: bool

    @property
    def was_missed(self) -> bool:
        return not self.own and asyncio.get_running_loop().time() >= self.until


class UpstreamProxy:
    """Passes requests on.

    urls     addresses of servers;  api_key: sent to all of them
    hedging  when a second server is asked the same while the first is silent; None: never
    A request that fails before its first byte came is sent to another server that has the model, once each; after the
    first byte it is not sent again, and a stream that breaks ends with an error event.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        api_key: str | None = None,
        limits: ServerLimits | None = None,
        hedging: Hedging | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        addresses = [base_url(url) for url in urls]
        self.balancer = Balancer([Upstream(str(address)) for address in addresses])
        self._keys = {str(address): find_key(address, api_key) for address in addresses}
        self._limits, self._hedging = limits or ServerLimits(), hedging
        timeout = httpx.Timeout(self._limits.deadline_s, connect=CONNECT_S)
        self._client = httpx.AsyncClient(timeout=timeout, transport=transport, follow_redirects=False)
        self._looked = -math.inf
        self._looking = asyncio.Lock()

    async def close(self) -> None:
        await self._client.aclose()

    # --- models -----------------------------------------------------------------------------------------------------

    async def serves(self, model: object) -> bool:
        """Whether some server has this model; they are asked again where none had it a while ago."""
        if not isinstance(model, str):
            return False
        if model not in self.balancer.models:
            await self.refresh()
        return model in self.balancer.models

    async def refresh(self) -> None:
        """Ask all servers for their models, at most every `REFRESH_S` seconds; one that is silent keeps what it had."""
        async with self._looking:
            if self.balancer.clock() - self._looked < REFRESH_S:
                return
            await asyncio.gather(*(self._look(each) for each in self.balancer.upstreams))
            self._looked = self.balancer.clock()

    async def _look(self, upstream: Upstream) -> None:
        with contextlib.suppress(httpx.HTTPError, ValueError, TypeError, KeyError, TimeoutError):
            async with asyncio.timeout(MODELS_S):
                reply = await self._client.get(f"{upstream.url}/models", headers=self._headers(upstream))
                reply.raise_for_status()
                upstream.models = frozenset(str(model["id"]) for model in reply.json()["data"])

    def cards(self) -> list[dict[str, Any]]:
        """Their models, as /v1/models lists them."""
        return [
            {"id": model, "object": "model", "created": 0, "owned_by": "upstream"} for model in self.balancer.models
        ]

    # --- requests ---------------------------------------------------------------------------------------------------

    async def forward(self, path: str, body: dict[str, Any], request_id: str | None = None) -> Response:
        """The reply of a server that has `body["model"]`; ApiError 502 or 503 where none gives one.

        path        behind the server's address, such as "/chat/completions"
        request_id  told to the server as X-Request-ID
        The whole, its last byte too, is there within the server's deadline, or the request's own `timeout`.
        """
        own, seconds = body.get("timeout"), self._limits.deadline_s
        if isinstance(own, int | float) and not isinstance(own, bool) and own > 0:
            seconds = min(own, seconds)
        late = too_late(seconds, self._limits)
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(until):
                return await self._reply(
                    path, body, request_id, _Deadline(until, late, seconds < self._limits.deadline_s)
                )
        except TimeoutError:
            raise late from None

    async def _reply(self, path: str, body: dict[str, Any], request_id: str | None, deadline: _Deadline) -> Response:
        model, text = str(body["model"]), text_of(body)
        prefix, tokens = text[:PREFIX_CHARS].encode("utf-8", "replace"), tokens_of(body, text)
        tried: list[Upstream] = []
        last: Response | None = None
        while (upstream := self.balancer.choose(model, prefix, tokens, tried)) is not None:
            tried.append(upstream)

            async def ask(other: Upstream) -> _Begun:
                self.balancer.begin(other, tokens)
                try:
                    return await self._send(other, path, body, request_id)
                except BaseException as error:  # what is no fault of the server: the client went, another was sooner
                    failed = isinstance(error, (httpx.HTTPError, TimeoutError)) or deadline.was_missed
                    self.balancer.end(other, tokens, worked=False if failed else None)
                    raise

            def another() -> Upstream | None:
                if (other := self.balancer.choose(model, prefix, tokens, tried)) is not None:
                    tried.append(other)
                return other

            try:
                begun = await self._first(upstream, ask, another, lambda other: self._end(other, tokens, None))
            except (httpx.HTTPError, TimeoutError) as error:
                last = ApiError(
                    502, f"the server behind this one does not answer: {_said(error)}", code="upstream"
                ).response()
                continue
            upstream = begun.upstream
            if begun.reply.status_code in WORTH_ANOTHER:
                try:
                    last = await self._whole(begun)
                finally:
                    self.balancer.end(upstream, tokens, worked=begun.reply.status_code == 429)
                continue
            return _Passed(begun, self._kept(begun), partial(self._end, upstream, tokens), deadline)
        if last is not None:
            return last
        wait = math.ceil(self.balancer.opens_in(model)) or 1
        raise ApiError(
            503,
            f'no server that has "{model[:100]}" is in order now',
            code="upstream",
            headers={"Retry-After": str(wait)},
        )

    def _end(self, upstream: Upstream, tokens: int, worked: bool | None) -> None:
        self.balancer.end(upstream, tokens, worked=worked)

    async def _first(
        self,
        upstream: Upstream,
        ask: Callable[[Upstream], Coroutine[Any, Any, _Begun]],
        another: Callable[[], Upstream | None],
        drop: Callable[[Upstream], None],
    ) -> _Begun:
        """The reply that begins first, of this server or of another one that is asked while it is silent."""
        if self._hedging is None:
            return await ask(upstream)
        started, winner = self.balancer.clock(), None
        asked = [asyncio.create_task(ask(upstream))]
        try:
            done, _ = await asyncio.wait(asked, timeout=self._hedging.after_s())
            if not done and (other := another()) is not None:
                self._hedging.hedged += 1
                asked.append(asyncio.create_task(ask(other)))
            while _begun_of(asked) is None and (silent := [task for task in asked if not task.done()]):
                await asyncio.wait(silent, return_when=asyncio.FIRST_COMPLETED)
            winner = _begun_of(asked) or _begun_of(asked, refused=True)
        finally:
            letting_go = asyncio.ensure_future(self._let_go(asked, winner, drop))
            try:
                await asyncio.shield(letting_go)
            except asyncio.CancelledError:  # the client has left
                if winner is not None:
                    await winner.reply.aclose()
                    drop(winner.upstream)
                raise
        if winner is None:
            raise asked[0].exception() or AssertionError
        self._hedging.seconds.append(self.balancer.clock() - started)
        return winner

    async def _let_go(
        self, asked: Sequence[asyncio.Task[_Begun]], winner: _Begun | None, drop: Callable[[Upstream], None]
    ) -> None:
        for task in asked:
            task.cancel()
        for late in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(late, _Begun) and late is not winner:
                await late.reply.aclose()
                drop(late.upstream)

    async def _send(self, upstream: Upstream, path: str, body: dict[str, Any], request_id: str | None = None) -> _Begun:
        """Send it and wait for the first bytes of the reply."""
        headers = {**self._headers(upstream), **({"X-Request-ID": request_id} if request_id else {})}
        asked = self._client.build_request(
            "POST", f"{upstream.url}{path}", content=json_text(body).encode(), headers=headers
        )
        reply = await self._client.send(asked, stream=True)
        try:
            rest = reply.aiter_bytes()
            return _Begun(upstream, reply, await anext(rest, b""), rest)
        except BaseException:
            await reply.aclose()
            raise

    async def _whole(self, begun: _Begun) -> Response:
        """A reply that may be the last one."""
        content = begun.first
        try:
            async for piece in begun.rest:
                content += piece
                if len(content) > self._limits.max_body_bytes:
                    break
        except httpx.HTTPError:
            content = b""
        finally:
            await begun.reply.aclose()
        if not _is_json(content):
            status = begun.reply.status_code
            return ApiError(502, f"the server behind this one answered {status}", code="upstream").response()
        return Response(content, begun.reply.status_code, self._kept(begun), "application/json")

    def _kept(self, begun: _Begun) -> dict[str, str]:
        kept = {name: begun.reply.headers[name] for name in KEPT_HEADERS if name in begun.reply.headers}
        number = self.balancer.upstreams.index(begun.upstream)
        return {**kept, "x-likely-upstream": str(number)}

    def _headers(self, upstream: Upstream) -> dict[str, str]:
        key = self._keys[upstream.url]
        return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


class _Passed(StreamingResponse):
    """A reply as it comes.  over: told once, at the end, whether the server did its part."""

    def __init__(
        self, begun: _Begun, headers: dict[str, str], over: Callable[[bool | None], None], deadline: _Deadline
    ):
        self._begun, self._over, self._deadline = begun, over, deadline
        self._streams = begun.reply.headers.get("content-type", "").startswith("text/event-stream")
        self._worked: bool | None = None
        super().__init__(self._pieces(), begun.reply.status_code, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._deadline.until):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            if not self._streams:
                raise httpx.ReadTimeout(str(self._deadline.refusal)) from None  # as below: it ends before its end
            with contextlib.suppress(TimeoutError):  # a client that does not read must not hold the place
                async with asyncio.timeout(1):
                    last = _error_event(self._deadline.refusal)
                    await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            self._over(self._worked)
            await asyncio.shield(self._begun.reply.aclose())

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            yield self._begun.first
            async for piece in self._begun.rest:
                yield piece
            self._worked = True
        except httpx.HTTPError as error:
            self._worked = False
            if not self._streams:
                raise  # the reply ends before its end, which the client sees
            message = f"the server behind this one broke off: {_said(error)}"
            yield _error_event(ApiError(502, message, code="upstream"))


def _error_event(error: ApiError) -> bytes:
    return b"data: " + json_text(error.body).encode() + b"\n\n"


def _begun_of(asked: Sequence[asyncio.Task[_Begun]], *, refused: bool = False) -> _Begun | None:
    """The first reply among those that have begun; refused: among those that another server could mend."""
    done = (task.result() for task in asked if task.done() and not task.cancelled() and task.exception() is None)
    return next((begun for begun in done if (begun.reply.status_code in WORTH_ANOTHER) is refused), None)


def text_of(body: dict[str, Any]) -> str:
    """What a request is about: a prompt, or messages as JSON."""
    about = body.get("messages", body.get("prompt", body.get("input", "")))
    return about if isinstance(about, str) else json.dumps(about, sort_keys=True)


def tokens_of(body: dict[str, Any], text: str) -> int:
    """About how many tokens a request about this text is, its answer included."""
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    wanted = next((body[name] for name in names if isinstance(body.get(name), int) and body[name] >= 0), DEFAULT_TOKENS)
    return len(text) // CHARS_PER_TOKEN + min(wanted, 2**20) + 1


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
