"""A toy model to serve, and ways to reach them: in the process, and over a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
import string
import threading
from contextlib import asynccontextmanager, contextmanager

import httpx

from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer, ToyRuntime
from likely.serving import ServerLimits, create_app
from likely.serving.listening import server as listening_server

ALPHABET = string.ascii_lowercase + " .é🙂"


def toy_model(*, add_bos: bool = False, seed: int = 1, **limits: int) -> Model:
    tokenizer = CharTokenizer(ALPHABET, add_bos=add_bos)
    runtime = ToyRuntime.random(tokenizer.vocab_size, seed=seed, **limits)
    info = ModelInfo("toy", "toy", "toy", "float64", "0", tokenizer.fingerprint, template=False)
    return Model(runtime, tokenizer, info)


class Client:
    """Asks an application in this process; `post` gives (status, body)."""

    def __init__(self, app):
        self.app = app
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    @property
    def engine(self):
        return self.app.state.engine

    async def post(self, path: str, body, **headers: str):
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        sent = {"Content-Type": "application/json", **headers}
        reply = await self.http.post(path, content=data, headers=sent)
        return reply.status_code, reply.json()

    async def ok(self, path: str, **body):
        status, reply = await self.post(path, body)
        assert status == 200, reply
        return reply

    async def events(self, path: str, **body):
        reply = await self.http.post(path, json={**body, "stream": True})
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        blocks = reply.text.split("\n\n")
        assert blocks[-1] == "" and blocks[-2] == "data: [DONE]", blocks[-2:]
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


@asynccontextmanager
async def client_of(model, **options):
    app = create_app(model, **options)
    async with app.router.lifespan_context(app):
        client = Client(app)
        async with client.http:
            yield client


def ask(model, question, **options):
    """Run `await question(client)` against a served model."""

    async def run():
        async with client_of(model, **options) as client:
            return await question(client)

    return asyncio.run(run())


@contextmanager
def serving(model, **options):
    """A real server on a free port; yields its address."""
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # without it asyncio sets no TCP_NODELAY: 40 ms per reply
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    limits = options.get("limits") or ServerLimits()
    server = listening_server(create_app(model, **options), limits, drain_s=2)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
