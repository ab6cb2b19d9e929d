"""From a checked request to its reply: prompts become tokens, the engine works, results take OpenAI's shapes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi import Response

from likely.decoding.constraint import Constraint
from likely.decoding.request import Finished, Request, longest_text
from likely.decoding.sampling import Sampling
from likely.errors import ModelError
from likely.lm.confidence import BoundPolicy
from likely.scoring.likelihood import Item, TokenScores, scored_answer
from likely.serving.api.confidence import ChatConfidence, decision_fields
from likely.serving.api.forms import form_of
from likely.serving.api.prompts import EncodedPrompt, PromptEncoder
from likely.serving.api.replies import (
    CompletionLogprobs,
    TokenNames,
    chat_content,
    ended_by,
    joined,
    json_safe,
    usage,
)
from likely.serving.api.schemas import ChatRequest, CompletionRequest, GenerationRequest, ScoreRequest
from likely.serving.api.streaming import EventStream, merged, while_connected
from likely.serving.engine import AsyncEngine, Ticket
from likely.serving.limits import MAX_NUMBERS, MAX_SCORED_CHARS, ApiError, ServerLimits, json_response

T = TypeVar("T")


class Answering:
    """Replies of one engine. `close` stops the thread that prepares prompts."""

    def __init__(self, engine: AsyncEngine, name: str, limits: ServerLimits, chats: ChatConfidence):
        self._engine, self._model, self._name, self._limits = engine, engine.model, name, limits
        self._names = TokenNames(engine.model.tokenizer)
        self._context = longest_text(engine.model.runtime)
        self._fingerprint = engine.model.runtime.revision
        self._created = int(time.time())
        self._prompts = PromptEncoder(engine.model)
        self._chats = chats

    def close(self) -> None:
        self._prompts.close()
        self._chats.close()

    @property
    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "likely",
            "context_length": self._context,
            "system_fingerprint": self._fingerprint,
        }

    def check_model(self, name: str | None) -> None:
        if name not in (None, self._name, self._model.info.name):
            raise ApiError(
                404, f'this server has no model "{name[:100]}"; it serves "{self._name}"',
                param="model", code="model_not_found",
            )  # fmt: skip

    # --- the three verbs ------------------------------------------------------------------------------------------

    async def completion(self, http: HttpRequest, asked: CompletionRequest) -> Response:
        self._check_before(asked, len(asked.prompts))
        if asked.stream:
            return await self._within(http, self._completion_stream(asked))
        return await self._within(http, self._completion(asked))

    async def chat(self, http: HttpRequest, asked: ChatRequest) -> Response:
        self._check_before(asked, 1)
        if asked.stream:
            return await self._within(http, self._chat_stream(asked))
        return await self._within(http, self._chat(asked))

    async def score(self, http: HttpRequest, asked: ScoreRequest) -> Response:
        self.check_model(asked.model)
        size = sum(len(asked.prompt) + len(answer) for answer in asked.answers)
        if size > MAX_SCORED_CHARS:
            raise ApiError(
                400, f"the answers, each with its prompt, have {size} characters, at most {MAX_SCORED_CHARS} are "
                f"scored at once: send fewer answers", param="answers",
            )  # fmt: skip
        self._engine.check_room()
        return await self._within(http, self._score(asked))

    async def _within(self, http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
        async def timed() -> T:
            async with asyncio.timeout(self._limits.deadline_s):
                return await work

        return await while_connected(http, timed())

    # --- completions ----------------------------------------------------------------------------------------------

    async def _completion(self, asked: CompletionRequest) -> Response:
        prompts, echoes, head, tickets = await self._start_completion(asked)
        done = await self._finished(tickets)
        choices = []
        for i, (prompt, echo) in enumerate(zip(prompts, echoes, strict=True)):
            for sample in range(asked.n):
                block, text, reason = echo, prompt.text if asked.echo else "", "length"
                if tickets:
                    finished = done[i, sample]
                    text, reason = text + finished.text, finished.reason
                    if asked.logprobs is not None:
                        block = joined(echo, self._block(asked, prompt, finished))
                index = i * asked.n + sample
                choices.append({"index": index, "text": text, "logprobs": block, **ended_by(reason)})
        written = sum(len(finished.tokens) for finished in done.values())
        spent = usage(sum(len(p.tokens) for p in prompts), written)
        return json_response({**head, "choices": choices, "usage": spent})

    async def _completion_stream(self, asked: CompletionRequest) -> Response:
        prompts, echoes, head, tickets = await self._start_completion(asked)
        return EventStream(self._completion_events(asked, prompts, echoes, head, tickets), tickets, self._limits)

    async def _completion_events(
        self,
        asked: CompletionRequest,
        prompts: Sequence[EncodedPrompt],
        echoes: Sequence[dict[str, Any] | None],
        head: dict[str, Any],
        tickets: Sequence[Ticket],
    ) -> AsyncGenerator[dict[str, Any]]:
        def chunk(index: int, text: str, block: Any, reason: str | None) -> dict[str, Any]:
            choice = {"index": index, "text": text, "logprobs": block, **ended_by(reason)}
            return _piece(asked, head, choice)

        if asked.echo:
            for i, (prompt, echo) in enumerate(zip(prompts, echoes, strict=True)):
                for index in range(i * asked.n, (i + 1) * asked.n):
                    yield chunk(index, prompt.text, echo, None if tickets else "length")
        blocks = {
            (i, sample): self._blocks(asked, prompt) for i, prompt in enumerate(prompts) for sample in range(asked.n)
        }
        written = 0
        async for i, event in merged(tickets):
            written += len(event.tokens)
            block = None
            if asked.logprobs is not None and event.tokens:
                block = blocks[i, event.sample].block(event.tokens, event.logprobs, event.tops)
            reason = event.finish.reason if event.finish else None
            if event.text or block or reason:
                yield chunk(i * asked.n + event.sample, event.text, block, reason)
        if asked.stream_options.include_usage:
            yield {**head, "choices": [], "usage": usage(sum(len(p.tokens) for p in prompts), written)}

    async def _start_completion(
        self, asked: CompletionRequest
    ) -> tuple[list[EncodedPrompt], list[dict[str, Any] | None], dict[str, Any], list[Ticket]]:
        """(prompts, their echoed log-probabilities, head of the reply, requests on their way)"""
        wanted = asked.max_tokens
        form = form_of(asked)
        prompts = await self._prompts.texts(asked.prompts, echo=asked.echo, wanted=wanted)
        alternatives = 0 if asked.logprobs is None else asked.logprobs + 1
        given = sum(len(p.tokens) for p in prompts) if asked.echo else 0
        self._check_numbers((given + wanted * len(prompts)) * asked.n * alternatives)
        echoes: list[dict[str, Any] | None] = [None] * len(prompts)
        if asked.echo and asked.logprobs is not None:
            items = [Item(tuple(p.tokens), 1) for p in prompts]
            scores = await self._engine.score(items, top=asked.logprobs)
            echoes = [self._echo(asked, p, s) for p, s in zip(prompts, scores, strict=True)]
        seed = _seed(asked)
        tickets: list[Ticket] = []
        if wanted:
            k = asked.logprobs or 0
            held = await self._prompts.constraint(form)
            tickets = self._submit([self._request(asked, p.tokens, wanted, seed, k, held) for p in prompts])
        return prompts, echoes, self._head("cmpl", "text_completion", seed), tickets

    def _echo(self, asked: CompletionRequest, prompt: EncodedPrompt, scores: TokenScores) -> dict[str, Any]:
        assert asked.logprobs is not None
        values: list[float | None] = [None, *scores.logprobs]
        tops = [None, *scores.tops] if scores.tops is not None else [None] * len(values)
        shown = slice(prompt.hidden, None)
        maker = CompletionLogprobs(self._names, asked.logprobs)
        return maker.block(prompt.tokens[shown], values[shown], tops[shown], skip=prompt.skip, written=True)

    def _blocks(self, asked: CompletionRequest, prompt: EncodedPrompt) -> CompletionLogprobs:
        return CompletionLogprobs(self._names, asked.logprobs or 0, offset=len(prompt.text) if asked.echo else 0)

    def _block(self, asked: CompletionRequest, prompt: EncodedPrompt, finished: Finished) -> dict[str, Any]:
        return self._blocks(asked, prompt).block(finished.tokens, finished.logprobs, finished.tops)

    # --- chats ----------------------------------------------------------------------------------------------------

    async def _chat(self, asked: ChatRequest) -> Response:
        prompt_tokens, head, ticket, bound = await self._start_chat(asked, "chat.completion")
        done = await self._finished([ticket])
        choices = []
        for sample in range(asked.n):
            finished = done[0, sample]
            answer = None if bound is None else await self._chats.decide(bound, asked, finished, head["seed"])
            text, refused, reason = finished.text, None, finished.reason
            if answer is not None:
                text, refused, reason = answer.text, answer.why if answer.abstained else None, answer.finish_reason
            content = None
            if asked.logprobs and (answer is None or not answer.why):  # of a text that is not given there are none
                content = chat_content(
                    self._names, finished.tokens, finished.logprobs, finished.tops, asked.top_logprobs
                )
            message = {"role": "assistant", "content": None if refused else text, "refusal": refused}
            choices.append(
                {
                    "index": sample,
                    "message": message,
                    "logprobs": None if content is None else {"content": content, "refusal": None},
                    **ended_by(reason),
                    **decision_fields(bound, answer),
                }
            )
        spent = usage(prompt_tokens, sum(len(finished.tokens) for finished in done.values()))
        return json_response({**head, "choices": choices, "usage": spent})

    async def _chat_stream(self, asked: ChatRequest) -> Response:
        prompt_tokens, head, ticket, bound = await self._start_chat(asked, "chat.completion.chunk")
        events = self._chat_events(asked, prompt_tokens, head, ticket, bound)
        return EventStream(events, [ticket], self._limits)

    async def _chat_events(
        self,
        asked: ChatRequest,
        prompt_tokens: int,
        head: dict[str, Any],
        ticket: Ticket,
        bound: BoundPolicy | None,
    ) -> AsyncGenerator[dict[str, Any]]:
        """With a threshold nothing of a text is sent before it is known that it reaches it."""

        def chunk(index: int, delta: dict[str, Any], block: Any, reason: str | None, **more: Any) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": block, **ended_by(reason), **more}
            return _piece(asked, head, choice)

        for sample in range(asked.n):
            yield chunk(sample, {"role": "assistant", "content": ""}, None, None)
        withheld = bound is not None and bound.rule is not None
        written = 0
        async for event in ticket:
            written += len(event.tokens)
            block = None
            if asked.logprobs and event.tokens:
                content = chat_content(self._names, event.tokens, event.logprobs, event.tops, asked.top_logprobs)
                block = {"content": content, "refusal": None}
            if (event.text or block) and not withheld:
                yield chunk(event.sample, {"content": event.text}, block, None)
            if event.finish:
                reason, answer = event.finish.reason, None
                if bound is not None:
                    answer = await self._chats.decide(bound, asked, event.finish, head["seed"])
                    reason = answer.finish_reason
                if answer is not None and withheld:
                    delta = {"refusal": answer.why} if answer.abstained else {"content": answer.text}
                    yield chunk(event.sample, delta, None, None)
                yield chunk(event.sample, {}, None, reason, **decision_fields(bound, answer))
        if asked.stream_options.include_usage:
            yield {**head, "choices": [], "usage": usage(prompt_tokens, written)}

    async def _start_chat(
        self, asked: ChatRequest, kind: str
    ) -> tuple[int, dict[str, Any], Ticket, BoundPolicy | None]:
        form = form_of(asked)
        bound = await self._prompts.away(lambda: self._chats.bind(asked))
        rendered = await self._prompts.conversation(asked.conversation)
        held = await self._prompts.constraint(form)
        wanted = asked.max_tokens or self._context - len(rendered.tokens)
        self._check_numbers(wanted * asked.n * (asked.top_logprobs + 1 if asked.logprobs else 0))
        seed = _seed(asked)
        request = self._request(asked, rendered.tokens, wanted, seed, asked.top_logprobs, held)
        (ticket,) = self._submit([request])
        return len(rendered.tokens), self._head("chatcmpl", kind, seed), ticket, bound

    # --- scores ---------------------------------------------------------------------------------------------------

    async def _score(self, asked: ScoreRequest) -> Response:
        tokenizer = self._model.tokenizer
        joint = await self._prompts.joint(asked.prompt, asked.answers)
        self._check_numbers(sum(len(item.tokens) - item.start for item, _ in joint) * (asked.top_logprobs + 1))
        scores = await self._engine.score([item for item, _ in joint], top=asked.top_logprobs, entropy=asked.entropy)
        scored = [
            json_safe(scored_answer(tokenizer, answer, item, straddles, score).to_dict())
            for answer, (item, straddles), score in zip(asked.answers, joint, scores, strict=True)
        ]
        head = self._head("score", "likely.score", None)
        return json_response({**head, "answers": scored, "usage": usage(sum(len(i.tokens) for i, _ in joint), 0)})

    # --- what they share ------------------------------------------------------------------------------------------

    def _check_before(self, asked: GenerationRequest, prompts: int) -> None:
        """What can be refused before a prompt is read."""
        self.check_model(asked.model)
        if prompts > self._limits.max_queue:
            raise ApiError(400, f"prompt: at most {self._limits.max_queue} at a time here, got {prompts}")
        if asked.max_tokens is not None and asked.max_tokens > self._context:
            raise ApiError(
                400, f"max_tokens must be at most {self._context} (the context), got {asked.max_tokens}",
                param="max_tokens",
            )  # fmt: skip
        size = self._model.runtime.vocab_size
        worst = max(asked.logit_bias, default=0)
        if worst >= size:
            raise ApiError(400, f"logit_bias names token {worst}, the vocabulary has {size}", param="logit_bias")
        self._engine.check_room(prompts)

    def _check_numbers(self, count: int) -> None:
        if count > MAX_NUMBERS:
            raise ApiError(
                400,
                f"up to {count} log-probabilities in one reply, at most {MAX_NUMBERS} are sent: "
                f"ask for fewer tokens, samples, prompts or alternatives",
            )

    def _request(
        self,
        asked: GenerationRequest,
        tokens: Sequence[int],
        wanted: int,
        seed: int,
        top: int,
        constraint: Constraint | None,
    ) -> Request:
        names = [f.name for f in fields(Sampling) if f.name != "seed" and f.name in type(asked).model_fields]
        sampling = Sampling(**{name: getattr(asked, name) for name in names}, seed=seed)
        if not tokens:
            raise ModelError("the prompt is empty, and this model has no token that begins a text")
        return Request(
            tuple(tokens),
            sampling,
            max_tokens=wanted,
            stop=tuple(asked.stop),
            stop_repetition=asked.stop_repetition,
            samples=asked.n,
            drafter=self._model.drafter(asked.drafter or self._model.drafters.default),
            draft_budget=asked.draft_budget,
            top_logprobs=top,
            constraint=constraint,
        )

    def _submit(self, requests: Sequence[Request]) -> list[Ticket]:
        """All of them, or none."""
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self._engine.submit(request))
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return tickets

    async def _finished(self, tickets: Sequence[Ticket]) -> dict[tuple[int, int], Finished]:
        """(number of the request, sample) -> the whole sample"""
        done = {}
        async for i, event in merged(tickets):
            if event.finish:
                done[i, event.sample] = event.finish
        return done

    def _head(self, prefix: str, kind: str, seed: int | None) -> dict[str, Any]:
        head: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self._name,
            "system_fingerprint": self._fingerprint,
        }
        return head if seed is None else {**head, "seed": seed}


def _piece(asked: GenerationRequest, head: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """One event of a stream; where usage will come at the end, every other event says that it holds none."""
    return {**head, "choices": [choice], **({"usage": None} if asked.stream_options.include_usage else {})}


def _seed(asked: GenerationRequest) -> int:
    """The client's, or a fresh one that every JSON reader holds exactly."""
    return secrets.randbelow(2**53) if asked.seed is None else asked.seed
