"""An OpenAI-compatible server on 127.0.0.1 around a toy model: honest, unless it is given a lie to tell."""

from __future__ import annotations

import json
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import CharTokenizer, ToyRuntime

ALPHABET = string.ascii_letters + " .,:?\nüé"
Reply = dict[str, Any]


@dataclass
class Raw:
    """Bytes to send as they are. hang: nothing more comes until the server closes."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False


@dataclass
class ToyServer:
    """What the server knows and what it was asked.

    script  replies to the next requests, before the honest ones
    lie     changes an honest reply to a completion: (request body, reply) -> reply or Raw
    """

    runtime: ToyRuntime
    tokenizer: CharTokenizer
    url: str = ""
    script: list[Raw] = field(default_factory=list)
    lie: Callable[[Reply, Reply], Reply | Raw] | None = None
    ignores_n: bool = False
    shows_bos: bool = False
    requests: list[tuple[str, Reply, dict[str, str]]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    def law(self, tokens: list[int]) -> np.ndarray:
        return log_softmax(self.runtime._logits_of((self.tokenizer.bos_id, *tokens)))

    def token(self, tokens: list[int], settings: Reply, sample: int) -> int:
        law = self.law(tokens)
        temperature = settings.get("temperature", 1.0)
        if temperature == 0:
            return int(law.argmax())
        rng = np.random.default_rng([settings.get("seed") or 0, sample, len(tokens)])
        return int((law / temperature + rng.gumbel(size=len(law))).argmax())

    def row(self, tokens: list[int], token: int, k: int) -> tuple[float, dict[str, float]]:
        law, name = self.law(tokens), self.tokenizer.token_text
        top = {name(int(i)): float(law[i]) for i in np.argsort(-law)[:k]}
        return float(law[token]), {**top, name(token): float(law[token])}

    def choice(self, prompt: str, body: Reply, sample: int) -> Reply:
        tokens = self.tokenizer.encode(prompt)
        n, reason, text, end = len(tokens), "length", "", len(prompt)
        for _ in range(body.get("max_tokens", 16)):
            token = self.token(tokens, body, sample)
            if token == self.tokenizer.eos_id:
                reason = "stop"
                break
            tokens.append(token)
            text += self.tokenizer.token_bytes(token).decode()
            found = [text.index(stop) for stop in body.get("stop") or () if stop in text]
            if found:
                text, reason = text[: min(found)], "stop"
                break
        first = 0 if body.get("echo") else n
        names = [self.tokenizer.token_text(t) for t in tokens[first:]]
        logprobs = None
        if body.get("logprobs") is not None:
            rows = [self.row(tokens[:i], tokens[i], body["logprobs"]) for i in range(first, len(tokens))]
            values: list[Any] = [value for value, _ in rows]
            tops: list[Any] = [top for _, top in rows]
            if body.get("echo"):
                if self.shows_bos:
                    names, values, tops = ["<bos>", *names], [None, *values], [None, *tops]
                elif values:
                    values[0] = tops[0] = None
            offsets = [end - n + first + sum(map(len, names[:i])) for i in range(len(names))]
            logprobs = {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
        text = (prompt if body.get("echo") else "") + text
        return {"index": sample, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def completion(self, body: Reply) -> Reply:
        n = 1 if self.ignores_n else body.get("n", 1)
        choices = [self.choice(body["prompt"], body, i) for i in range(n)]
        return {"choices": choices, "usage": {"prompt_tokens": len(body["prompt"]) + 1}}

    def chat(self, body: Reply) -> Reply:
        prompt = "".join(f"{m['role']}: {m['content']}\n" for m in body["messages"])
        k = body.get("top_logprobs", 0) if body.get("logprobs") else None
        choice = self.choice(prompt, {**body, "logprobs": k}, 0)
        held = choice["logprobs"]
        content = held and [
            {"token": t, "logprob": lp, "top_logprobs": [{"token": u, "logprob": v} for u, v in top.items()]}
            for t, lp, top in zip(held["tokens"], held["token_logprobs"], held["top_logprobs"], strict=True)
        ]
        message = {"role": "assistant", "content": choice["text"]}
        finish = choice["finish_reason"]
        choice = {"index": 0, "message": message, "logprobs": held and {"content": content}, "finish_reason": finish}
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt) + 1}}

    def events(self, reply: Reply) -> bytes:
        """The reply as a stream, a token in each event; odd but legal line ends."""
        (choice,) = reply["choices"]
        chat, held = "message" in choice, choice["logprobs"]
        text = choice["message"]["content"] if chat else choice["text"]
        events: list[Reply] = [{"delta": {"role": "assistant"}}] if chat else []
        for i, c in enumerate(text):
            logprobs = None
            if held:
                logprobs = {k: v[i : i + 1] for k, v in held.items()}
            events.append(
                {"delta": {"content": c}, "logprobs": logprobs} if chat else {"text": c, "logprobs": logprobs}
            )
        events.append({"delta": {}} if chat else {"text": ""})
        events[-1]["finish_reason"] = choice["finish_reason"]
        blocks = [json.dumps({"choices": [{"index": 0, **event}]}, ensure_ascii=False) for event in events]
        blocks += [json.dumps({"choices": [], "usage": reply["usage"]}), "[DONE]"]
        return b": hello\r\n\r\n" + b"".join(f"event: x\ndata: {block}\r\n\r\n".encode() for block in blocks)

    def answer(self, path: str, body: Reply) -> Reply | Raw:
        if path == "/v1/models":
            return {"data": [{"id": "toy"}]}
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return Raw(404, b'{"error": {"message": "no such path"}}')
        try:
            reply: Reply | Raw = self.completion(body) if path == "/v1/completions" else self.chat(body)
        except ValueError as error:
            return Raw(400, json.dumps({"error": {"message": str(error)}}).encode())
        if self.lie is not None:
            reply = self.lie(body, reply)  # type: ignore[arg-type]
        if body.get("stream") and not isinstance(reply, Raw):
            return Raw(200, self.events(reply), {"Content-Type": "text/event-stream; charset=utf-8"})
        return reply


@contextmanager
def toy_server(**settings: Any) -> Iterator[ToyServer]:
    """A running server on a free port; closed, hanging requests included, at the end."""
    tokenizer = CharTokenizer(ALPHABET)
    rows = ToyRuntime.random(tokenizer.vocab_size, seed=1)._logits_of

    def logits_of(prefix: tuple[int, ...]) -> np.ndarray:
        row = rows(prefix)
        row[tokenizer.bos_id] = -np.inf  # no text has it inside
        return row

    toy = ToyServer(ToyRuntime(logits_of, vocab_size=tokenizer.vocab_size), tokenizer, **settings)
    closing, lock = threading.Event(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.serve({})

        def do_POST(self) -> None:
            self.serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def serve(self, body: Reply) -> None:
            with lock:
                toy.requests.append((self.path, body, dict(self.headers)))
                toy.running += 1
                toy.most_running = max(toy.most_running, toy.running)
                scripted = toy.script.pop(0) if toy.script else None
            reply = scripted or toy.answer(self.path, body)
            with lock:
                toy.running -= 1
            raw = reply if isinstance(reply, Raw) else Raw(200, json.dumps(reply).encode())
            self.send_response(raw.status)
            headers = {
                "Content-Type": "application/json",
                "Content-Length": str(len(raw.body) + raw.hang),
                **raw.headers,
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(raw.body)
                if raw.hang:
                    self.wfile.flush()
                    closing.wait()
            except OSError:
                pass  # the client gave up
            self.close_connection |= raw.hang

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    toy.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield toy
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
