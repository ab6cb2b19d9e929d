"""JSON over HTTP to one server: bounded, retried where that helps, errors in one line, the key kept to itself."""

from __future__ import annotations

import codecs
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from likely.errors import ModelError, RemoteError, shortened

MAX_REPLY_BYTES = 64 * 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024  # one line of a stream
MAX_ERROR_BYTES = 64 * 1024
RETRY_AFTER_CAP_S = 30.0
MAX_REDIRECTS = 3
T = TypeVar("T")


def base_url(url: str) -> httpx.URL:
    """The address that "/models" or "/completions" is put behind: with /v1 (or another version), without a slash."""
    try:
        parsed = httpx.URL(url.strip())
    except (httpx.InvalidURL, TypeError) as error:
        raise ModelError(f"this is no address of a server: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or re.search(r"[^\w.:-]", parsed.host):
        raise ModelError(f"the address of a server is like http://localhost:8000/v1, got {_shown(parsed)}")
    if parsed.query or parsed.fragment:
        raise ModelError(f"the address of a server has no ? and no #, got {_shown(parsed)}")
    path = re.sub(r"/(chat/completions|completions|models)?/*$", "", parsed.path)
    if not re.search(r"/v\d+\w*$", path):
        path += "/v1"
    return parsed.copy_with(path=path)


def find_key(url: httpx.URL, api_key: str | None) -> str | None:
    """The key to send: the one given, LIKELY_API_KEY, or, to OpenAI's own servers only, OPENAI_API_KEY."""
    key = api_key or os.environ.get("LIKELY_API_KEY")
    if not key and url.scheme == "https" and (url.host == "openai.com" or url.host.endswith(".openai.com")):
        key = os.environ.get("OPENAI_API_KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise ModelError("the API key holds characters that no header can carry: check api_key= or LIKELY_API_KEY")
    return key or None


def _shown(url: httpx.URL) -> str:
    """The address without a password in it."""
    return str(url.copy_with(userinfo=b"")) if url.userinfo else str(url)


class _Transient(Exception):
    """Worth another try, after `after_s` if the server said so."""

    def __init__(self, error: RemoteError, after_s: float | None = None):
        super().__init__(str(error))
        self.error, self.after_s = error, after_s


class Endpoint:
    """One server; see `lm.options.ConnectionOptions`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        retries: int = 3,
        backoff_s: float = 0.5,
    ):
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0, got {timeout_s}")
        self._base = base_url(url)
        self._key = find_key(self._base, api_key)
        self._timeout_s, self._retries, self._backoff_s = timeout_s, retries, backoff_s
        # Compressed replies could be small on the wire and huge in memory.
        headers = {"Accept-Encoding": "identity", "User-Agent": "likely"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            transport=transport,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=32),
        )
        self.shown = _shown(self._base)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        return self._retrying(lambda: self._json("GET", path, None))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._retrying(lambda: self._json("POST", path, body))

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a server-sent stream up to [DONE]; retried only until it begins."""
        response = self._retrying(lambda: self._open("POST", path, body))
        with closing(response):
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise self.fail(f"answered without a stream: {self._quote(self._read(response, MAX_ERROR_BYTES))}")
            for data in sse_data(self._chunks(response)):
                if data == "[DONE]":
                    return
                event = self._parsed(data.encode())
                if event.get("error"):
                    raise self.fail(f"broke the stream off: {self._quote(data.encode())}", retryable=True)
                yield event
        raise self.fail("ended the stream before it was done", retryable=True)

    # --- one request ---------------------------------------------------------------------------------------------

    def _retrying(self, action: Callable[[], T]) -> T:
        for attempt in range(self._retries + 1):
            try:
                return action()
            except _Transient as transient:
                if attempt == self._retries:
                    raise transient.error from None
                wait = self._backoff_s * 2**attempt if transient.after_s is None else transient.after_s
                time.sleep(min(max(wait, 0.0), RETRY_AFTER_CAP_S))
        raise AssertionError("unreachable")

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        with closing(self._open(method, path, body)) as response:
            data = self._read(response, MAX_REPLY_BYTES)
        value = self._parsed(data)
        if value.get("error"):  # some servers say so with status 200
            raise self.fail(f"answered: {self._quote(data)}")
        return value

    def _open(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        url = self._base.copy_with(path=self._base.path + path)
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request(method, url, json=body)
            try:
                response = self._client.send(request, stream=True)
            except httpx.HTTPError as error:
                raise self._transport_error(error) from None
            if response.status_code < 300:
                return response
            with closing(response):
                if not response.has_redirect_location:
                    raise self._status_error(response)
                target = url.join(response.headers["location"])
                if _origin(target) != _origin(url) or response.status_code not in (307, 308):
                    raise self.fail(
                        f"redirects to {_shown(target)[:200]}: if you trust it, give that address", response.status_code
                    )
                url = target
        raise self.fail(f"redirects more than {MAX_REDIRECTS} times")

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise self.fail("compressed its reply although asked not to")
        try:
            yield from response.iter_raw()
        except httpx.HTTPError as error:
            raise self._transport_error(error) from None

    def _read(self, response: httpx.Response, limit: int) -> bytes:
        deadline, held = time.monotonic() + self._timeout_s, bytearray()
        for chunk in self._chunks(response):
            held += chunk
            if len(held) > limit:
                if response.status_code >= 300 or limit == MAX_ERROR_BYTES:
                    break
                raise self.fail(f"sent more than {limit} bytes")
            if time.monotonic() > deadline:
                raise self._timed_out()
        return bytes(held)

    def _parsed(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise self.fail(
                f"did not answer with JSON: {self._quote(data)}; is this an OpenAI-compatible server?"
            ) from None
        if not isinstance(value, dict):
            raise self.fail(f"did not answer with a JSON object: {self._quote(data)}")
        return value

    # --- errors --------------------------------------------------------------------------------------------------

    def fail(self, what: str, status: int | None = None, *, retryable: bool = False) -> RemoteError:
        return RemoteError(self._redacted(f"{self.shown} {what}"), status=status, retryable=retryable)

    def _timed_out(self) -> RemoteError:
        return self.fail(f"did not answer within {self._timeout_s:g} s: try again, or set timeout_s=", retryable=True)

    def _transport_error(self, error: httpx.HTTPError) -> Exception:
        # A server that is only slow would get the same work once more: no retry.
        if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
            return self._timed_out()
        words = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol):
            return _Transient(self.fail(f"cannot be reached: {words}", retryable=True))
        return self.fail(f"cannot be used: {words}")

    def _status_error(self, response: httpx.Response) -> Exception:
        status = response.status_code
        quote = self._quote(self._read(response, MAX_ERROR_BYTES))
        advice = ": set api_key= or LIKELY_API_KEY" if status in (401, 403) else ""
        # Some servers answer 500 to what they never can do.
        retryable = status == 429 or (status >= 500 and status != 501 and "not supported" not in quote)
        error = self.fail(f"answered {status}: {quote}{advice}", status, retryable=retryable)
        return _Transient(error, _retry_after_s(response.headers.get("retry-after"))) if retryable else error

    def _quote(self, body: bytes) -> str:
        """The server's own words, in quotation marks, at most 300 characters in one line."""
        text: object = body.decode("utf-8", "replace")
        try:
            held = json.loads(str(text))
            for name in ("error", "detail", "message"):
                if isinstance(held, dict) and held.get(name):
                    held = held[name]
            text = held if isinstance(held, str) else json.dumps(held, ensure_ascii=False)
        except (ValueError, RecursionError):
            text = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", str(text), flags=re.DOTALL | re.IGNORECASE)
        line = self._redacted(" ".join(str(text).split()))
        line = "".join(c if c.isprintable() else "?" for c in line)
        return f'"{shortened(line, 300)}"' if line else "(an empty reply)"

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _retry_after_s(value: str | None) -> float | None:
    """Seconds in a Retry-After header, which is a number or a date; None without a readable one."""
    if not value:
        return None
    try:
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        when = parsedate_to_datetime(value)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None


def sse_data(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event of a text/event-stream, in whatever pieces its bytes come."""
    held: list[str] = []
    for line in _lines(chunks):
        if not line:
            if held:
                yield "\n".join(held)
            held = []
        elif line.startswith("data:"):
            held.append(line[6:] if line[5:6] == " " else line[5:])
    if held:  # a last event without its blank line
        yield "\n".join(held)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines ended by \\n, \\r\\n or \\r, and by nothing else: other Unicode line ends are data."""
    decoder, rest, total = codecs.getincrementaldecoder("utf-8")("replace"), "", 0
    for chunk in chunks:
        total += len(chunk)
        text = rest + decoder.decode(chunk)
        held_back = text.endswith("\r")  # perhaps half of \r\n
        parts = re.split(r"\r\n|\r|\n", text[:-1] if held_back else text)
        yield from parts[:-1]
        rest = parts[-1] + ("\r" if held_back else "")
        if len(rest) > MAX_EVENT_BYTES or total > MAX_REPLY_BYTES:
            raise RemoteError(f"the server's stream is too long (line {len(rest)}, in all {total} bytes)")
    rest += decoder.decode(b"", True)
    if rest:
        yield from re.split(r"\r\n|\r|\n", rest)
