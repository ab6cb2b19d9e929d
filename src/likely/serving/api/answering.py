"""What the endpoints share: checks before the work, requests for the engine, heads of replies; scores and tokens."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi import Response

from likely.decoding.constraint import Constraint
from likely.decoding.request import Finished, Request, longest_text
from likely.decoding.sampling import Sampling
from likely.errors import ModelError
from likely.scoring.likelihood import scored_answer
from likely.serving.api.confidence import AUTO, ChatConfidence
from likely.serving.api.forms import form_of
from likely.serving.api.prompts import PromptEncoder
from likely.serving.api.replies import TokenNames, json_safe, usage
from likely.serving.api.schemas import (
    DetokenizeRequest,
    GenerationRequest,
    RequestBody,
    ScoreRequest,
    TokenizeRequest,
)
from likely.serving.api.streaming import Events, EventStream, merged, while_connected
from likely.serving.engine import AsyncEngine, Ticket
from likely.serving.limits import MAX_NUMBERS, MAX_SCORED_CHARS, ApiError, ServerLimits, json_response, too_late

T = TypeVar("T")
MANY_NUMBERS = 2**14  # log-probabilities; a reply of more is made in a thread


class Answering:
    """What replies of one engine are made with. `close` stops the threads that prepare prompts and forms."""

    def __init__(self, engine: AsyncEngine, name: str, limits: ServerLimits, confidence: ChatConfidence):
        self.engine, self.model, self.limits, self.confidence = engine, engine.model, limits, confidence
        self.name = name
        self.names = TokenNames(engine.model.tokenizer)
        self.context = longest_text(engine.model.runtime)
        self.prompts = PromptEncoder(engine.model, limits)
        self._fingerprint = engine.model.runtime.revision
        self._created = int(time.time())

    def close(self) -> None:
        self.prompts.close()
        self.confidence.close()

    @property
    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "likely",
            "context_length": self.context,
            "system_fingerprint": self._fingerprint,
        }

    @property
    def cards(self) -> list[dict[str, Any]]:
        """All that /v1/models lists."""
        return [self.card, *([{**self.card, "id": AUTO}] if self.confidence.routes else [])]

    # --- checks ---------------------------------------------------------------------------------------------------

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name, self.model.info.name):
            raise ApiError(
                404, f'this server has no model "{name[:100]}"; it serves "{self.name}"',
                param="model", code="model_not_found",
            )  # fmt: skip

    def check_before(self, asked: GenerationRequest, prompts: int) -> None:
        """What can be refused before a prompt is read."""
        self.check_model(asked.model)
        if prompts > self.limits.most_requests:
            raise ApiError(400, f"prompt: at most {self.limits.most_requests} at a time here, got {prompts}")
        if asked.max_tokens is not None and asked.max_tokens > self.context:
            raise ApiError(
                400, f"max_tokens must be at most {self.context} (the context), got {asked.max_tokens}",
                param="max_tokens",
            )  # fmt: skip
        if self.model.capabilities.canvas and getattr(asked, "logprobs", None) not in (None, False):
            raise ApiError(
                400, "logprobs: this is a diffusion model, whose tokens have no log-probability given those before "
                "them; /v1/score gives a lower bound of an answer's", param="logprobs",
            )  # fmt: skip
        if self.model.capabilities.canvas and (form := form_of(asked)[1]):
            raise ApiError(
                400, f"{form}: this is a diffusion model, whose tokens are committed in any order, so that no form can "
                f"be held; /v1/score says which of given answers is likeliest", param=form,
            )  # fmt: skip
        size = self.model.runtime.vocab_size
        worst = max(asked.logit_bias, default=0)
        if worst >= size:
            raise ApiError(400, f"logit_bias names token {worst}, the vocabulary has {size}", param="logit_bias")
        self.engine.check_room(prompts)

    def check_numbers(self, count: int) -> None:
        if count > MAX_NUMBERS:
            raise ApiError(
                400,
                f"up to {count} log-probabilities in one reply, at most {MAX_NUMBERS} are sent: "
                f"ask for fewer tokens, samples, prompts or alternatives",
            )

    # --- work -----------------------------------------------------------------------------------------------------

    def deadline(self, asked: RequestBody) -> float:
        """Seconds that the request may take."""
        return min(self.limits.deadline_s, asked.timeout or self.limits.deadline_s)

    async def within(self, http: HttpRequest, asked: RequestBody, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work, in time and while the client is there."""

        async def timed() -> T:
            try:
                async with asyncio.timeout(seconds := self.deadline(asked)):
                    return await work
            except TimeoutError:
                raise too_late(seconds, self.limits) from None

        return await while_connected(http, timed())

    def stream(self, asked: RequestBody, events: Events, tickets: Sequence[Ticket]) -> Response:
        return EventStream(events, tickets, self.limits, self.deadline(asked))

    def request(
        self,
        asked: GenerationRequest,
        tokens: Sequence[int],
        wanted: int,
        seed: int,
        top: int,
        constraint: Constraint | None,
        salt: str,
    ) -> Request:
        names = [f.name for f in fields(Sampling) if f.name != "seed" and f.name in type(asked).model_fields]
        sampling = Sampling(**{name: getattr(asked, name) for name in names}, seed=seed)
        if not tokens:
            raise ModelError("the prompt is empty, and this model has no token that begins a text")
        if asked.ignore_eos and constraint is not None:
            raise ApiError(400, "ignore_eos: a text with a form ends where the form does", param="ignore_eos")
        if asked.min_tokens > wanted:
            raise ApiError(400, f"min_tokens must be at most max_tokens ({wanted}), got {asked.min_tokens}")
        return Request(
            tuple(tokens),
            sampling,
            max_tokens=wanted,
            min_tokens=wanted if asked.ignore_eos else asked.min_tokens,
            stop=tuple(asked.stop),
            stop_repetition=asked.stop_repetition and not asked.ignore_eos,
            samples=asked.n,
            drafter=self.model.drafter(asked.drafter or self.model.drafters.default),
            draft_budget=self.model.drafters.budget_of(asked.draft_budget),
            top_logprobs=top,
            entropy=asked.token_details,
            constraint=constraint,
            priority=asked.priority,
            cache_salt=f"{salt}\0{asked.cache_salt}",
        )

    def submit(self, requests: Sequence[Request]) -> list[Ticket]:
        """All of them, or none."""
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self.engine.submit(request))
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return tickets

    async def finished(self, tickets: Sequence[Ticket]) -> dict[tuple[int, int], Finished]:
        """(number of the request, sample) -> the whole sample"""
        done = {}
        async for i, event in merged(tickets):
            if event.finish:
                done[i, event.sample] = event.finish
        return done

    def head(self, prefix: str, kind: str, seed: int | None) -> dict[str, Any]:
        head: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": self._fingerprint,
        }
        return head if seed is None else {**head, "seed": seed}

    async def made(self, numbers: int, make: Callable[[], T]) -> T:
        """What `make` returns; of many log-probabilities in a thread, while others are served."""
        return await asyncio.to_thread(make) if numbers > MANY_NUMBERS else make()

    async def reply(self, asked: RequestBody, body: dict[str, Any], numbers: int = 0) -> Response:
        whole = {**body, "warnings": asked.warnings} if asked.warnings else body
        return await self.made(numbers, lambda: json_response(whole, by_pieces=numbers > MANY_NUMBERS))

    # --- scores and tokens ----------------------------------------------------------------------------------------

    async def score(self, http: HttpRequest, asked: ScoreRequest) -> Response:
        self.check_model(asked.model)
        size = sum(len(asked.prompt) + len(answer) for answer in asked.answers)
        if size > MAX_SCORED_CHARS:
            raise ApiError(
                400, f"the answers, each with its prompt, have {size} characters, at most {MAX_SCORED_CHARS} are "
                f"scored at once: send fewer answers", param="answers",
            )  # fmt: skip
        self.engine.check_room()
        return await self.within(http, asked, self._score(asked))

    async def _score(self, asked: ScoreRequest) -> Response:
        tokenizer = self.model.tokenizer
        joint = await self.prompts.joint(asked.prompt, asked.answers)
        numbers = sum(len(item.tokens) - item.start for item, _ in joint) * (asked.top_logprobs + 1)
        self.check_numbers(numbers)
        items = [item for item, _ in joint]
        if self.model.capabilities.canvas:  # bounds, from calls of their own
            asking = partial(self.model.score, top_logprobs=asked.top_logprobs, entropy=asked.entropy)
            found = await asyncio.to_thread(asking, asked.prompt, asked.answers)
        else:
            scores = await self.engine.score(items, top=asked.top_logprobs, entropy=asked.entropy)
            found = [
                scored_answer(tokenizer, answer, item, straddles, score)
                for answer, (item, straddles), score in zip(asked.answers, joint, scores, strict=True)
            ]
        scored = await self.made(numbers, lambda: [json_safe(each.to_dict()) for each in found])
        head = self.head("score", "likely.score", None)
        spent = usage(sum(len(i.tokens) for i, _ in joint), ())
        return await self.reply(asked, {**head, "answers": scored, "usage": spent}, numbers)

    async def tokenize(self, http: HttpRequest, asked: TokenizeRequest) -> Response:
        self.check_model(asked.model)

        async def work() -> Response:
            if asked.messages is not None:
                tokens = (await self.prompts.conversation(asked.conversation)).tokens
            else:
                tokens = await self.prompts.tokens_of(asked.prompt or "", asked.add_special_tokens)
            return await self.reply(asked, {"tokens": tokens, "count": len(tokens), "max_model_len": self.context})

        return await self.within(http, asked, work())

    async def detokenize(self, http: HttpRequest, asked: DetokenizeRequest) -> Response:
        self.check_model(asked.model)

        async def work() -> Response:
            return await self.reply(asked, {"prompt": await self.prompts.text_of(asked.tokens)})

        return await self.within(http, asked, work())


def seed_of(asked: GenerationRequest) -> int:
    """The client's, or a fresh one that every JSON reader holds exactly."""
    return secrets.randbelow(2**53) if asked.seed is None else asked.seed
