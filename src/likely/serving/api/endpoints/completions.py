"""POST /v1/completions: texts or tokens go on, with the log-probabilities of what was given and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response

from likely.decoding.constraint import Constraint
from likely.decoding.request import Event, Finished
from likely.scoring.likelihood import Item, TokenScores
from likely.serving.api.answering import Answering, seed_of
from likely.serving.api.forms import form_of
from likely.serving.api.gate import log_of
from likely.serving.api.prompts import EncodedPrompt
from likely.serving.api.replies import CompletionLogprobs, Pieces, cached_of, ended_by, joined, usage
from likely.serving.api.schemas import CompletionRequest
from likely.serving.api.streaming import Events, merged
from likely.serving.engine import Ticket
from likely.serving.form_worker import FormDescription

Block = dict[str, Any]


@dataclass(frozen=True)
class _Started:
    """A request on its way: prompts, the log-probabilities of those that are echoed, the head of the reply."""

    prompts: list[EncodedPrompt]
    echoes: list[Block | None]
    head: dict[str, Any]
    tickets: list[Ticket]
    described: FormDescription | None = None
    held: Constraint | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.tokens) for prompt in self.prompts)


class CompletionsEndpoint:
    """Completions of one server."""

    def __init__(self, answering: Answering):
        self._with = answering

    async def answer(self, http: HttpRequest, asked: CompletionRequest, salt: str) -> Response:
        self._with.check_before(asked, len(asked.prompts))
        work = self._stream(http, asked, salt) if asked.stream else self._whole(http, asked, salt)
        return await self._with.within(http, asked, work)

    async def _whole(self, http: HttpRequest, asked: CompletionRequest, salt: str) -> Response:
        started = await self._start(asked, salt)
        done = await self._with.finished(started.tickets)
        spent = usage(started.prompt_tokens, done.values(), cached_of(done))
        log_of(http)["usage"] = spent
        fields = {key: await self._fields(asked, started, finished) for key, finished in done.items()}
        numbers = _echoed(asked, started.prompts)
        numbers += sum(len(each.tokens) for each in done.values()) * _alternatives(asked)

        def choices() -> list[dict[str, Any]]:
            found = []
            for i, (prompt, echo) in enumerate(zip(started.prompts, started.echoes, strict=True)):
                for sample in range(asked.n):
                    block, text, ending = echo, prompt.text if asked.echo else "", ended_by("length")
                    if started.tickets:
                        finished = done[i, sample]
                        text, ending = text + finished.text, ended_by(finished.reason, complete=finished.complete)
                        if asked.logprobs is not None:
                            block = joined(echo, self._block(asked, prompt, finished))
                        ending |= fields[i, sample]
                    found.append({"index": i * asked.n + sample, "text": text, "logprobs": block, **ending})
            return found

        body = {**started.head, "choices": await self._with.made(numbers, choices), "usage": spent}
        return await self._with.reply(asked, body, numbers)

    async def _stream(self, http: HttpRequest, asked: CompletionRequest, salt: str) -> Response:
        started = await self._start(asked, salt)
        return self._with.stream(asked, self._events(http, asked, started), started.tickets)

    async def _events(self, http: HttpRequest, asked: CompletionRequest, started: _Started) -> Events:
        pieces = Pieces(asked, started.head, started.prompt_tokens)

        def chunk(index: int, text: str, block: Any, ending: dict[str, Any]) -> dict[str, Any]:
            return pieces.piece({"index": index, "text": text, "logprobs": block, **ending})

        prompts, tickets = started.prompts, started.tickets
        if asked.echo:
            for i, (prompt, echo) in enumerate(zip(prompts, started.echoes, strict=True)):
                for index in range(i * asked.n, (i + 1) * asked.n):
                    yield chunk(index, prompt.text, echo, ended_by(None if tickets else "length"))
        blocks = {
            (i, sample): self._blocks(asked, prompt) for i, prompt in enumerate(prompts) for sample in range(asked.n)
        }
        async for i, event in merged(tickets):
            pieces.note(i, event)
            block = None
            if asked.logprobs is not None and event.tokens:
                block = blocks[i, event.sample].block(
                    event.tokens, event.logprobs, event.tops, **_details(asked, event)
                )
            if event.text or block or event.finish:
                done = event.finish
                ending: dict[str, Any] = {**ended_by(None)}
                if done is not None:
                    ending = {**ended_by(done.reason, complete=done.complete)}
                    ending |= await self._fields(asked, started, done)
                yield chunk(i * asked.n + event.sample, event.text, block, ending)
        log_of(http)["usage"] = pieces.usage()
        for last in pieces.last():
            yield last

    async def _start(self, asked: CompletionRequest, salt: str) -> _Started:
        common, wanted = self._with, asked.max_tokens
        described, field = form_of(asked)
        prompts = await common.prompts.prompts(asked.prompts, echo=asked.echo, wanted=wanted)
        echoed = _echoed(asked, prompts)
        common.check_numbers(echoed + wanted * len(prompts) * asked.n * _alternatives(asked))
        echoes: list[Block | None] = [None] * len(prompts)
        if asked.echo and asked.logprobs is not None:
            items = [Item(tuple(p.tokens), 1) for p in prompts]
            scores = await common.engine.score(items, top=asked.logprobs, entropy=asked.token_details)
            made = zip(prompts, scores, strict=True)
            echoes = await common.made(echoed, lambda: [self._echo(asked, p, s) for p, s in made])
        seed = seed_of(asked)
        tickets: list[Ticket] = []
        held: Constraint | None = None
        if wanted:
            k = asked.logprobs or 0
            held = await common.prompts.constraint(described, field, asked.warnings)
            tickets = common.submit([common.request(asked, p.tokens, wanted, seed, k, held, salt) for p in prompts])
        return _Started(prompts, echoes, common.head("cmpl", "text_completion", seed), tickets, described, held)

    async def _fields(self, asked: CompletionRequest, started: _Started, finished: Finished) -> dict[str, Any]:
        """The values of a text that was held to a schema, where details are wanted."""
        return await self._with.prompts.fields(started.described, started.held, finished) if asked.token_details else {}

    def _echo(self, asked: CompletionRequest, prompt: EncodedPrompt, scores: TokenScores) -> Block:
        assert asked.logprobs is not None
        values: list[float | None] = [None, *scores.logprobs]
        tops = [None, *scores.tops] if scores.tops is not None else [None] * len(values)
        shown = slice(prompt.hidden, None)
        details: dict[str, Any] = {}
        if scores.entropies is not None:
            entropies = [None, *scores.entropies][shown]
            details = {"entropies": entropies, "drafted": [False] * len(entropies)}
        maker = CompletionLogprobs(self._with.names, asked.logprobs)
        return maker.block(prompt.tokens[shown], values[shown], tops[shown], skip=prompt.skip, written=True, **details)

    def _blocks(self, asked: CompletionRequest, prompt: EncodedPrompt) -> CompletionLogprobs:
        offset = len(prompt.text) if asked.echo else 0
        return CompletionLogprobs(self._with.names, asked.logprobs or 0, offset=offset)

    def _block(self, asked: CompletionRequest, prompt: EncodedPrompt, finished: Finished) -> Block:
        details = _details(asked, finished)
        return self._blocks(asked, prompt).block(finished.tokens, finished.logprobs, finished.tops, **details)


def _alternatives(asked: CompletionRequest) -> int:
    """Log-probabilities of one token."""
    return 0 if asked.logprobs is None else asked.logprobs + 1


def _echoed(asked: CompletionRequest, prompts: list[EncodedPrompt]) -> int:
    """Log-probabilities of the prompts in a reply."""
    return sum(len(each.tokens) for each in prompts) * asked.n * _alternatives(asked) if asked.echo else 0


def _details(asked: CompletionRequest, of: Event | Finished) -> dict[str, Any]:
    return {"entropies": of.entropies, "drafted": of.drafted} if asked.token_details else {}
