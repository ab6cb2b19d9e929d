"""The two sides of asynchronous scaling: a model of this machine or behind a server, that writes and scores text.

Draft and target may have different tokenizers: everything between them is text, and each model tokenises for itself.
The boundary between prompt and scored text lies at a character, see `scoring.likelihood.joint_item`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from likely.errors import CapabilityError, DataError
from likely.lm.base import LanguageModel
from likely.lm.model import PLAIN_QUESTION, Model
from likely.scoring.likelihood import joint_item, scored_answer
from likely.scoring.scored import Scored, sums
from likely.serving.engine import AsyncEngine

if TYPE_CHECKING:
    from likely.lm.remote.model import RemoteModel

R = TypeVar("R")
PLAIN_STOP = ("\nQuestion:",)  # where a model without a chat template begins the next question


@dataclass(frozen=True)
class WrittenText:
    """A continuation.

    tokens   how many the model wrote, by its own tokenizer;  ended: it ended by itself (end token or stop string)
    logprob  their sum of log-probabilities, nats; None where a server gives none
    """

    text: str
    tokens: int
    ended: bool
    logprob: float | None = None


class TextClient(Protocol):
    """What ATTS needs of a model.  Cancelling a call frees what it holds."""

    def prompt(self, question: str) -> str:
        """The text that an answer to the question continues."""

    async def sample(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> WrittenText: ...
    async def score(self, prompt: str, text: str) -> Scored: ...
    async def close(self) -> None: ...


def client_of(
    model: LanguageModel,
    *,
    template: str | None = None,
    stop: tuple[str, ...] | None = None,
    concurrency: int = 16,
    scores: bool = False,
) -> LocalClient | ServerClient:
    """A client of an opened model.

    template     the prompt, with {question} in it; None: the chat template of a local model that has one, else
                 "Question: ... Answer:", which is also what a server's /completions is asked
    stop         strings that end a text; None: "\\nQuestion:" after that plain prompt, nothing after others
    concurrency  calls at a time; others wait
    scores       it is to be a target: CapabilityError for a server without log-probabilities of given text
    """
    if template is not None and "{question}" not in template:
        raise DataError(f"the template has no {{question}} in it: {template[:60]!r}")
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    plain = template is None and getattr(model, "template", None) is None
    if stop is None:
        stop = PLAIN_STOP if plain else ()
    write = _prompt_writer(model, PLAIN_QUESTION if plain else template)
    if isinstance(model, Model):
        return LocalClient(model, write, stop, concurrency=concurrency)
    server = cast("RemoteModel", model)
    if scores and not (able := server.capabilities).score:
        raise CapabilityError(f"{able.why_not} The target has to score drafts.")
    return ServerClient(server, write, stop, concurrency=concurrency)


def _prompt_writer(model: Any, template: str | None) -> Callable[[str], str]:
    if template is None:
        return lambda question: model.render([{"role": "user", "content": question}]).text
    before, _, after = template.partition("{question}")
    return lambda question: f"{before}{question}{after}"


class LocalClient:
    """A model of this machine, behind an engine: calls that overlap are computed together.

    What a chain has in common with others, and with itself a round ago, is computed once (the engine's prefix cache).
    Until `close` nothing else may use the model; the model itself stays open.
    """

    def __init__(self, model: Model, prompt: Callable[[str], str], stop: tuple[str, ...], *, concurrency: int = 16):
        self.model, self.prompt, self._stop = model, prompt, stop
        self.engine = AsyncEngine(model, max_running=concurrency, max_queue=1 << 16)

    async def sample(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> WrittenText:
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": self._stop}
        ticket = self.engine.submit(self.model.request(self.model.encode_prompt(prompt), options, raw=True))
        finish = None
        try:
            async for event in ticket:
                finish = event.finish or finish
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        assert finish is not None
        ended = finish.reason in ("stop", "context")  # a text that fills the context has no next turn
        return WrittenText(finish.text, len(finish.tokens), ended, sums(finish.logprobs)[0])

    async def score(self, prompt: str, text: str) -> Scored:
        tokenizer = self.model.tokenizer
        item, straddles = joint_item(tokenizer, prompt, text)
        [scores] = await self.engine.score([item], reuse=True)
        return scored_answer(tokenizer, text, item, straddles, scores)

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close)


class ServerClient:
    """A model behind an OpenAI-compatible server, asked through /completions.

    Cancelling a call closes its connection at the next piece of text, which tells the server to stop.
    """

    def __init__(
        self, model: RemoteModel, prompt: Callable[[str], str], stop: tuple[str, ...], *, concurrency: int = 16
    ):
        self.model, self.prompt, self._stop = model, prompt, stop
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="likely-scaling")

    async def sample(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> WrittenText:
        stopped = threading.Event()

        def read() -> WrittenText:
            stream = self.model.stream(
                prompt, max_tokens=max_tokens, temperature=temperature, seed=seed % 2**31, stop=self._stop
            )
            for _ in stream:
                if stopped.is_set():
                    stream.close()
                    break
            made = stream.result
            known = made.token_logprobs
            count = len(made.tokens) if made.tokens is not None else len(made.text.split())
            logprob = sum(known) if known else None
            return WrittenText(made.text, count, made.finish_reason == "stop", logprob)

        return await self._in_thread(read, stopped)

    async def score(self, prompt: str, text: str) -> Scored:
        return await self._in_thread(lambda: self.model.score(prompt, [text])[0], threading.Event())

    async def _in_thread(self, call: Callable[[], R], stopped: threading.Event) -> R:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except asyncio.CancelledError:
            stopped.set()
            raise

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
