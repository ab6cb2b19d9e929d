"""Many requests from a file, in the lines of OpenAI's batch API: a model of this machine, or any server of that API.

in:   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
out:  {"id": ..., "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}}, "error": null}

Requests run in the order of their texts, so that those that begin alike follow each other and find what they share in
the prefix cache. The output is written as replies come; a run that was stopped goes on where it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx

from likely.errors import DataError, RemoteError, nearest
from likely.io.jsonl import Line, open_alone, parse_line, read_checked
from likely.io.whole_file import write_whole_file
from likely.lm.model import Model
from likely.serving.limits import MAX_PROMPTS, ServerLimits

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/score")
FIELDS = ("custom_id", "method", "url", "body")
AGAIN = frozenset({408, 429, 500, 502, 503, 504})  # a later run asks again
TRIES = 5  # of a request in one run, where a server is busy or cannot be reached
LONGEST_WAIT_S = 30.0


@dataclass(frozen=True)
class BatchRequest:
    """One line of the input."""

    custom_id: str
    url: str
    body: Mapping[str, Any]
    digest: str

    @property
    def text(self) -> str:
        """What requests are sorted by: those that begin alike stand together."""
        asked = [self.body.get(name) for name in ("instructions", "messages", "prompt", "input")]
        return json.dumps([self.url, asked], ensure_ascii=False)


@dataclass(frozen=True)
class BatchCounts:
    """How a run ended: requests with status 200, others, and how many had been there before."""

    good: int
    failed: int
    before: int


def read_batch(path: str | Path, *, limit: int | None = None) -> list[BatchRequest]:
    """All requests of a file ("-": standard input); DataError names the line of the first that is none."""
    found: dict[str, BatchRequest] = {}
    where = "stdin" if str(path) == "-" else str(path)

    def check(line: Line) -> None:
        request = _request(line, f"{where}:{line.number}")
        if request.custom_id in found:
            raise DataError(f'{where}:{line.number}: custom_id "{request.custom_id[:60]}" was there before')
        found[request.custom_id] = request

    read_checked(path, check, limit=limit)
    if not found:
        raise DataError(f'{where} holds no requests: expected lines like {{"custom_id", "method", "url", "body"}}')
    return list(found.values())


def _request(line: Line, where: str) -> BatchRequest:
    record = line.record
    for name in record:
        if name not in FIELDS:
            known = ", ".join(FIELDS)
            raise DataError(f'{where}: unknown field "{name[:60]}"{nearest(name[:60], FIELDS)} (known: {known})')
    custom_id, url, body = record.get("custom_id"), record.get("url"), record.get("body")
    if not (isinstance(custom_id, str) and custom_id):
        raise DataError(f'{where}: field "custom_id" must be a text that names the request')
    if record.get("method", "POST") != "POST":
        raise DataError(f"{where}: method must be POST, got {str(record['method'])[:20]!r}")
    if url not in URLS:
        raise DataError(f"{where}: url must be one of {', '.join(URLS)}, got {str(url)[:60]!r}")
    if not isinstance(body, dict):
        raise DataError(f'{where}: field "body" must be an object')
    if body.get("stream"):
        raise DataError(f"{where}: a batch has no streams: drop stream from the body")
    return BatchRequest(custom_id, url, body, line.digest)


class BatchOutput:
    """The output file: lines of earlier runs are kept, but for those whose request is to be asked again."""

    def __init__(self, path: Path, requests: Sequence[BatchRequest], *, overwrite: bool = False):
        self.path = path
        self.done: set[str] = set()
        digests = {request.custom_id: request.digest for request in requests}
        self._file: IO[bytes] = open_alone(path)
        try:
            kept = b"" if overwrite else self._kept(digests)
            if kept is not None:
                write_whole_file(path, kept)
                self._file.close()
                self._file = open_alone(path)
        except BaseException:
            self._file.close()
            raise
        self._file.seek(0, os.SEEK_END)

    def _kept(self, digests: Mapping[str, str]) -> bytes | None:
        """What stays of an earlier run; None: all of it."""
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        kept: list[bytes] = []
        for number, raw in enumerate(lines, 1):
            if number == len(lines) and not raw.endswith(b"\n"):  # cut by a kill
                break
            record = parse_line(raw, f"{self.path}:{number}")
            custom_id, reply = record.get("custom_id"), record.get("response", "")
            if not ("error" in record and isinstance(custom_id, str) and isinstance(reply, dict | None)):
                raise DataError(
                    f"{self.path}:{number} is no line of a batch's output: choose another file or --overwrite"
                )
            if reply is None or reply.get("status_code") in (None, *AGAIN):
                continue
            if custom_id in digests and record.get("input") != digests[custom_id]:
                raise DataError(
                    f'"{custom_id}" has changed since {self.path} was begun: choose another file or --overwrite'
                )
            kept.append(raw)
            self.done.add(custom_id)
        return b"".join(kept) if len(kept) < len(lines) else None

    def write(self, request: BatchRequest, status: int, number: str, body: Any) -> None:
        """Append a reply and hand it to the operating system."""
        answered = {"status_code": status, "request_id": number, "body": body}
        record = {
            "id": f"batch_req_{secrets.token_hex(12)}",
            "custom_id": request.custom_id,
            "response": answered if status else None,
            "error": None if status else {"code": "unreachable", "message": str(body)},
            "input": request.digest,
        }
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@asynccontextmanager
async def client_of_model(model: Model, *, concurrency: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the model's own API, in this process."""
    from likely.serving.api.app import create_app

    limits = ServerLimits(max_running=concurrency, max_queue=concurrency * MAX_PROMPTS, deadline_s=7 * 86400.0)
    app = create_app(model, limits=limits)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            yield client


@asynccontextmanager
async def client_of_server(url: str, api_key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of OpenAI's API; url with or without /v1 at its end."""
    from likely.lm.remote.http import base_url, find_key

    parsed = base_url(url)
    key = find_key(parsed, api_key)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    root = str(parsed.copy_with(path=parsed.path.removesuffix("/v1") or "/"))
    async with httpx.AsyncClient(base_url=root, headers=headers, timeout=httpx.Timeout(600.0, connect=10.0)) as client:
        yield client


async def run_batch(
    requests: Sequence[BatchRequest],
    client: httpx.AsyncClient,
    output: BatchOutput,
    *,
    concurrency: int = 16,
    advance: Callable[[int], None] = lambda count: None,
) -> BatchCounts:
    """Send all requests that have no reply yet, `concurrency` at a time; advance is told of each that came."""
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    todo = sorted((r for r in requests if r.custom_id not in output.done), key=lambda request: request.text)
    counts = {True: 0, False: 0}
    upcoming = iter(todo)

    async def work() -> None:
        for request in upcoming:
            status, number, body = await _answer(client, request)
            output.write(request, status, number, body)
            counts[status == 200] += 1
            advance(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(todo))):
            group.create_task(work())
    return BatchCounts(counts[True], counts[False], len(requests) - len(todo))


async def _answer(client: httpx.AsyncClient, request: BatchRequest) -> tuple[int, str, Any]:
    """(status, id of the request, body); status 0 with the reason where the server was never reached."""
    status, number, body = 0, "", "not sent"  # type: int, str, Any
    for attempt in range(TRIES):
        wait = min(0.5 * 2**attempt, LONGEST_WAIT_S)
        try:
            reply = await client.post(request.url, json=dict(request.body))
        except httpx.HTTPError as error:
            status, body = 0, f"{type(error).__name__}: {error}"
        else:
            status, number = reply.status_code, reply.headers.get("x-request-id", "")
            try:
                body = reply.json()
            except ValueError:
                body = {"error": {"message": reply.text[:1000]}}
            if status not in (429, 503):
                break
            given = reply.headers.get("retry-after", "")
            wait = min(float(given), LONGEST_WAIT_S) if given.isdecimal() else wait
        if attempt < TRIES - 1:
            await asyncio.sleep(wait)
    return status, number, body


def check_counts(counts: BatchCounts, output: Path) -> None:
    """RemoteError where some requests failed, after everything was written."""
    if counts.failed:
        total = counts.good + counts.failed + counts.before
        raise RemoteError(f"{counts.failed} of {total} requests failed: their lines in {output} say why")
