"""Servers under load: tokens per second, time to the first token, time between tokens, at 1 to 64 streams.

Each server serves the same GGUF file with the same number of threads, in a process of its own; they are asked one after
the other, in another order in every round, by one closed loop of streams.  A request asks for a fixed number of tokens
at temperature 0.

  chat      a short question each
  shared-prefix  the same system message of about a thousand tokens, and a short question
  schema    a text about a person, answered by a JSON Schema

likely runs with its defaults, and with the codes of the file in place of int8 (--dtype file).  Peers: `python -m
llama_cpp.server`, which works on one request at a time, and, with --llama-server FILE, llama.cpp's own server with 16
places.  Also measured, on likely alone: the longest gap in the streams of others while a prompt of
some thousand tokens, and a form that is expensive to compile, arrive; in ordinary gaps, and beside what the longest gap
is when nothing arrives (--only stalls: this alone).

With --cells FILE every round is kept as it is measured, and a run goes on where it was cut.  `--only shared-prefix
--streams 16 --cells FILE` measures one cell; the last run with the same FILE and without --only writes the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import protocol

from likely.bench.timing import Ratio
from likely.metrics.bootstrap import median_interval
from likely.models.catalog import find_model
from likely.runtimes.machine import cores

STREAMS = (1, 4, 16, 64)
KINDS = ("chat", "shared-prefix", "schema")
TARGETS = {("chat", 1): 1.5, ("chat", 16): 6.0, ("shared-prefix", 16): 10.0}
SAME_CODES = "likely --dtype file"  # which reads as many bytes as llama.cpp
ONE_AT_A_TIME = 16  # the most streams at which llama-cpp-python's server is asked
MOST_STALL = 3.0  # ordinary gaps between tokens
TOPICS = (
    "rivers",
    "bread",
    "the moon",
    "trains",
    "bees",
    "glass",
    "maps",
    "winter",
    "salt",
    "violins",
    "tea",
    "bridges",
)
RULES = " ".join(f"Rule {i}: answer questions about {t} plainly and shortly." for i, t in enumerate(TOPICS * 6))
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 24}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip


@dataclass
class Load:
    """What one run of streams gave: seconds of all, tokens, and per request the gaps between tokens."""

    seconds: float
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)  # pieces of text, each of one token or of kept guesses

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def body_of(kind: str, number: int, tokens: int, server: str = "likely") -> dict[str, Any]:
    topic = TOPICS[number % len(TOPICS)]
    messages = [{"role": "user", "content": f"Question {number}: tell me something about {topic}."}]
    body: dict[str, Any] = {"temperature": 0, "frequency_penalty": 0, "max_tokens": tokens, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if kind == "shared-prefix":
        messages.insert(0, {"role": "system", "content": RULES})
    if kind == "schema":
        messages = [
            {"role": "user", "content": f"Person {number} is Anna Berg, {20 + number % 60} years old. As JSON:"}
        ]
        form = {"name": "person", "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
        if server == "llama-cpp-python":  # its own way to say it
            body["response_format"] = {"type": "json_object", "schema": SCHEMA}
    return {**body, "messages": messages}


async def stream(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Reply:
    """One request.  Its events are read when all streams have ended: till then the processors are the servers'."""
    reply = Reply(time.perf_counter())
    async with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{url} answered {answer.status_code}: {(await answer.aread())[:300]!r}")
        async for piece in answer.aiter_raw():
            reply.pieces.append((time.perf_counter(), piece))
    return reply


@dataclass
class Reply:
    """When a request was sent, and what came back: (time, bytes)."""

    started: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    def read(self) -> tuple[list[float], int]:
        """(times at which pieces of its text came, tokens)."""
        times: list[float] = []
        written, rest = 0, b""
        for at, piece in self.pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                choices = event.get("choices") or [{}]
                if choices[0].get("delta", {}).get("content"):
                    times.append(at)
                written = (event.get("usage") or {}).get("completion_tokens") or written
        return times, written or len(times)

    def add_to(self, load: Load) -> None:
        times, tokens = self.read()
        load.tokens += tokens
        if times:
            load.first.append(times[0] - self.started)
            load.between += np.diff(times).tolist()


def run(name: str, url: str, kind: str, streams: int, requests: int, tokens: int) -> Load:
    """`requests` requests to the server of that name, `streams` at a time."""

    async def loop() -> Load:
        load, places = Load(0.0), asyncio.Semaphore(streams)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # llama-server ends its connections
        async with httpx.AsyncClient(timeout=1200, limits=limits) as client:

            async def one(number: int) -> Reply:
                async with places:
                    return await stream(client, url, body_of(kind, number, tokens, name))

            started = time.perf_counter()
            replies = await asyncio.gather(*(one(i) for i in range(requests)))
            load.seconds = time.perf_counter() - started
        for reply in replies:
            reply.add_to(load)
        return load

    return asyncio.run(loop())


def stall(url: str, tokens: int, disturbance: Callable[[httpx.AsyncClient], Any]) -> float:
    """The longest gap of four streams after the disturbance arrives, over their median gap before.

    Without drafts, so that a gap is a token of each: a step of long drafts takes several times as long and is no stall.
    """

    async def loop() -> float:
        async with httpx.AsyncClient(timeout=600) as client:
            bodies = [body_of("chat", i, tokens) | {"ignore_eos": True, "draft_budget": "off"} for i in range(4)]
            running = [asyncio.create_task(stream(client, url, body)) for body in bodies]
            await asyncio.sleep(0.5)  # all of them write
            at = time.perf_counter()
            await disturbance(client)
            replies = await asyncio.gather(*running)
        gaps = [(a, b - a) for reply in replies for a, b in itertools.pairwise(reply.read()[0])]
        ordinary = np.median([gap for begun, gap in gaps if begun < at - 0.05])
        return float(max(gap for begun, gap in gaps if begun > at - 0.05) / ordinary)

    return asyncio.run(loop())


def nothing(url: str, number: int) -> Callable[[httpx.AsyncClient], Any]:
    """The control: how long gaps get by themselves."""
    return lambda client: asyncio.sleep(0)


def long_prompt(url: str, number: int) -> Callable[[httpx.AsyncClient], Any]:
    message = {"role": "user", "content": f"{number} " + RULES + RULES}
    body = {"messages": [message], "max_tokens": 1}
    return lambda client: client.post(f"{url}/chat/completions", json=body)


def hostile_form(url: str, number: int) -> Callable[[httpx.AsyncClient], Any]:
    pattern = f"x{number}|" + "|".join(f"{'ab' * (i % 7)}{i}" for i in range(4000))
    body = {"prompt": "a", "max_tokens": 4, "guided_json": {"type": "string", "pattern": pattern}}
    return lambda client: client.post(f"{url}/completions", json=body)


DISTURBANCES = {"nothing": nothing, "long prompt": long_prompt, "hostile form": hostile_form}


@contextlib.contextmanager
def served(command: list[str], port: int) -> Iterator[str]:
    """A server in a process of its own, once it answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command[:4])} ended with {process.returncode}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/models", timeout=5).status_code == 200:
                    break
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def commands(model: str, llama_server: str | None) -> dict[str, tuple[list[str], int]]:
    path, threads = str(find_model(model)), str(cores())
    found = {}
    port = free_port()
    own = [sys.executable, "-m", "likely", "serve", "-m", model, "--threads", threads, "--port"]
    found["likely"] = ([*own, str(port)], port)
    port = free_port()
    found[SAME_CODES] = ([*own, str(port), "--dtype", "file"], port)
    port = free_port()
    theirs = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        path,
        "--port",
        str(port),
        "--n_ctx",
        "4096",
        "--interrupt_requests",
        "false",
    ]
    found["llama-cpp-python"] = ([*theirs, "--n_threads", threads, "--n_threads_batch", threads], port)
    if llama_server:
        port = free_port()
        theirs = [llama_server, "-m", path, "--port", str(port), "-np", "16", "-t", threads, "-tb", threads]
        found["llama-server"] = ([*theirs, "-c", "32768"], port)
    return found


def quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95)} if values else {}


def cell(kind: str, streams: int, rounds: dict[str, list[Load]]) -> dict[str, Any]:
    """One row: each server's speed and times, and likely's speed over the others'."""
    row: dict[str, Any] = {"task": kind, "streams": streams}
    row["servers"] = {
        name: {
            "tokens_per_s": float(np.median([load.speed for load in loads])),
            "first_token_s": quantiles([t for load in loads for t in load.first]),
            "between_tokens_s": quantiles([t for load in loads for t in load.between]),
        }
        for name, loads in rounds.items()
    }
    for name, loads in rounds.items():
        if not name.startswith("likely"):
            ratios = [a.speed / b.speed for a, b in zip(rounds["likely"], loads, strict=True)]
            row[f"over_{name}"] = asdict(Ratio(float(np.median(ratios)), *median_interval(ratios), len(ratios)))
    if (target := TARGETS.get((kind, streams))) is not None:
        row["target"] = target
    return row


@dataclass
class Rounds:
    """Measured rounds in a file, a line each; a run that was cut goes on behind the last one.

    A line is {"task", "streams", "round", "servers": {name: load}}, or {"stall", "round", "gaps"}.
    """

    path: Path | None
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            self.lines = [json.loads(line) for line in self.path.read_text().splitlines()]

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.path is not None:
            with self.path.open("a") as out:
                out.write(json.dumps(line) + "\n")

    def of(self, **key: Any) -> list[dict[str, Any]]:
        return [line for line in self.lines if all(line.get(name) == value for name, value in key.items())]


def measure_cell(urls: dict[str, str], kind: str, streams: int, tokens: int, rounds: int, kept: Rounds) -> None:
    """All rounds of one cell that are not there yet."""
    requests = max(2 * streams, 4) if streams < 64 else streams
    if streams > ONE_AT_A_TIME:  # its speed at more is that at fewer
        urls = {name: url for name, url in urls.items() if name != "llama-cpp-python"}
    todo = range(len(kept.of(task=kind, streams=streams)), rounds)
    for name, url in urls.items() if todo else ():  # what is known of the prompts after this is known in every round
        run(name, url, kind, min(streams, 4), min(requests, 4), 4)
    for number in todo:
        order = [*urls][number % len(urls) :] + [*urls][: number % len(urls)]
        found = {name: run(name, urls[name], kind, streams, requests, tokens) for name in order}
        loads = {name: asdict(found[name]) for name in urls}
        kept.add({"task": kind, "streams": streams, "round": number, "servers": loads})


def cell_of(kind: str, streams: int, kept: Rounds) -> dict[str, Any]:
    lines = kept.of(task=kind, streams=streams)
    names = [name for name in lines[0]["servers"] if all(name in line["servers"] for line in lines)]
    return cell(kind, streams, {name: [Load(**line["servers"][name]) for line in lines] for name in names})


def measure_stalls(url: str, tokens: int, rounds: int, kept: Rounds) -> None:
    for number in range(rounds):
        for name, make in DISTURBANCES.items():
            if not kept.of(stall=name, round=number):
                kept.add({"stall": name, "round": number, "gaps": stall(url, 8 * tokens, make(url, number))})


def stalls_of(kept: Rounds) -> dict[str, Any]:
    """Longest gaps in ordinary ones, and in the longest ones of a round in which nothing arrived."""
    found: dict[str, Any] = {}
    control = {line["round"]: line["gaps"] for line in kept.of(stall="nothing")}
    for name in DISTURBANCES:
        lines = kept.of(stall=name)
        gaps = [line["gaps"] for line in lines]
        if gaps:
            over = [line["gaps"] / control[line["round"]] for line in lines if line["round"] in control]
            found[name] = {
                "median": float(np.median(gaps)), "most": max(gaps), "target": MOST_STALL,
                "over_nothing": asdict(Ratio(float(np.median(over)), *median_interval(over), len(over))),
            }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--llama-server", metavar="FILE", help="llama.cpp's own server")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", default=",".join(map(str, STREAMS)), help="how many at a time, with commas")
    parser.add_argument("--only", choices=(*KINDS, "stalls"), help="one task, or the longest gaps on likely alone")
    parser.add_argument("--cells", type=Path, metavar="FILE", help="measured rounds, a line each; a cut run goes on")
    own, rest = parser.parse_known_args()
    options = protocol.arguments(__doc__ or "", rest)
    tokens, rounds = (8, 1) if options.quick else (32, options.rounds)
    kept = Rounds(own.cells)
    many = STREAMS[:2] if options.quick else [int(n) for n in own.streams.split(",")]
    cells = [(kind, streams) for kind in KINDS for streams in many if own.only in (None, kind)]
    open_cells = [(kind, n) for kind, n in cells if len(kept.of(task=kind, streams=n)) < rounds]
    stalls = own.only in (None, "stalls")
    with contextlib.ExitStack() as stack:
        servers = commands(own.model, own.llama_server)
        if not open_cells:
            servers = {"likely": servers["likely"]} if stalls else {}
        urls = {name: stack.enter_context(served(*how)) for name, how in servers.items()}
        for kind, streams in open_cells:
            measure_cell(urls, kind, streams, tokens, rounds, kept)
            print(json.dumps(cell_of(kind, streams, kept)), file=sys.stderr)
        if stalls:
            measure_stalls(urls["likely"], tokens, rounds, kept)
    measured = dict.fromkeys((line["task"], line["streams"]) for line in kept.lines if "task" in line)
    record = {
        "model": own.model,
        "threads": cores(),
        "tokens": tokens,
        "rows": [cell_of(*each, kept) for each in measured if own.only in (None, each[0])],
        "stalls": stalls_of(kept) if stalls else {},
    }
    if own.only in KINDS:  # a part, which must not take the place of the whole
        print(json.dumps(record, indent=1))
        return
    protocol.write("serving_stalls" if own.only == "stalls" else "serving", record, quick=options.quick)


if __name__ == "__main__":
    main()
