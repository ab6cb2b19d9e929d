"""POST /v1/chat/completions: the next message of a conversation, with calls of tools and with its confidence."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response

from likely.decoding.constraint import Constraint
from likely.decoding.drafting.lookup import PredictedText
from likely.decoding.request import Event, Finished
from likely.lm.confidence import BoundPolicy
from likely.lm.options import CHAT_DEFAULTS
from likely.lm.results import Answer
from likely.serving.api.answering import Answering, seed_of
from likely.serving.api.confidence import AUTO, RouterBinding, decision_fields, route_headers, route_of, withholds
from likely.serving.api.forms import form_of
from likely.serving.api.gate import log_of
from likely.serving.api.replies import Pieces, cached_of, chat_content, ended_by, usage
from likely.serving.api.schemas import ChatRequest
from likely.serving.api.streaming import Events
from likely.serving.engine import Ticket
from likely.serving.form_worker import FormDescription
from likely.serving.tools.transcript import CallParser, ToolCallDelta


@dataclass(frozen=True)
class StartedChat:
    """A chat that the engine is working on."""

    prompt_tokens: int
    head: dict[str, Any]
    ticket: Ticket
    bound: BoundPolicy | RouterBinding | None
    described: FormDescription | None
    held: Constraint | None
    began: float  # when it was given to the engine (`time.perf_counter`)


class ChatsEndpoint:
    """Chats of one server."""

    def __init__(self, answering: Answering):
        self.common = self._with = answering

    async def answer(self, http: HttpRequest, asked: ChatRequest, salt: str) -> Response:
        asked = self.checked(asked)
        work = self._stream(http, asked, salt) if asked.stream else self._whole(http, asked, salt)
        return await self._with.within(http, asked, work)

    def checked(self, asked: ChatRequest) -> ChatRequest:
        """The request, if it may begin now; the model "auto" is this server's own, with its fallback behind it."""
        auto = asked.model == AUTO and self._with.confidence.routes
        self._with.check_before(asked.model_copy(update={"model": None}) if auto else asked, 1)
        return asked.model_copy(update=self._unsaid(asked))

    def _unsaid(self, asked: ChatRequest) -> dict[str, Any]:
        """What `Model.chat` has where the request names nothing; with a temperature the model's own settings alone."""
        chat = {name: CHAT_DEFAULTS[name] for name in ("temperature", "top_p")}
        given = {"constraint": form_of(asked)[0]}
        settings = self._with.model.settings({} if "temperature" in asked.model_fields_set else chat, given)
        return {name: settings[name] for name in settings.keys() - given.keys() - asked.model_fields_set}

    async def _whole(self, http: HttpRequest, asked: ChatRequest, salt: str) -> Response:
        body, headers, numbers = await self.body(http, asked, salt)
        reply = await self._with.reply(asked, body, numbers)
        reply.headers.update(headers)
        return reply

    async def body(
        self, http: HttpRequest, asked: ChatRequest, salt: str
    ) -> tuple[dict[str, Any], dict[str, str], int]:
        """(a whole reply, its headers about who answered, how many log-probabilities it holds)"""
        started = await self.start(asked, "chat.completion", salt)
        done = await self._with.finished([started.ticket])
        answers = [await self._decided(asked, started, done[0, sample]) for sample in range(asked.n)]
        numbers = sum(len(each.tokens) for each in done.values()) * (asked.top_logprobs + 1) if asked.logprobs else 0
        fields = [await self._fields(asked, started, done[0, i], answer) for i, answer in enumerate(answers)]

        def choices() -> list[dict[str, Any]]:
            return [self._choice(asked, started, i, done[0, i], answer) | fields[i] for i, answer in enumerate(answers)]

        spent = usage(started.prompt_tokens, done.values(), cached_of(done))
        log_of(http)["usage"] = spent
        headers = route_headers(started.bound, answers)
        made = await self._with.made(numbers, choices)
        return {**started.head, "choices": made, "usage": spent}, headers, numbers

    def _choice(
        self, asked: ChatRequest, started: StartedChat, sample: int, finished: Finished, answer: Answer | None
    ) -> dict[str, Any]:
        text, reason = (finished.text, finished.reason) if answer is None else (answer.text, answer.finish_reason)
        complete = finished.complete if answer is None else answer.complete
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if answer is not None and answer.abstained:
            message |= {"content": None, "refusal": answer.why}
        elif asked.calls_tools:
            parser = CallParser()
            parser.push(text, last=True)
            if calls := [_call(name, arguments) for name, arguments in parser.calls]:
                self._note_calls(parser, complete)
                message |= {"content": parser.content or None, "tool_calls": calls}
                reason = _of_calls(reason, complete)
        content = None
        if asked.logprobs and (answer is None or not answer.why):  # of a text that is not given there are none
            content = self._logprobs(asked, finished)
        return {
            "index": sample,
            "message": message,
            "logprobs": content,
            **ended_by(reason, complete=complete),
            **decision_fields(started.bound, answer),
        }

    async def _stream(self, http: HttpRequest, asked: ChatRequest, salt: str) -> Response:
        started = await self.start(asked, "chat.completion.chunk", salt)
        return self._with.stream(asked, self.events(http, asked, started), [started.ticket])

    async def events(self, http: HttpRequest, asked: ChatRequest, started: StartedChat) -> Events:
        """With a threshold nothing of a text is sent before it is known that it reaches it."""
        pieces = Pieces(asked, started.head, started.prompt_tokens)
        withheld = withholds(started.bound)
        parsers = [CallParser() if asked.calls_tools else None for _ in range(asked.n)]
        numbers: dict[tuple[int, int], str] = {}

        def chunk(index: int, delta: dict[str, Any], block: Any = None, **ending: Any) -> dict[str, Any]:
            return pieces.piece({"index": index, "delta": delta, "logprobs": block, **(ending or ended_by(None))})

        def called(sample: int, news: ToolCallDelta) -> dict[str, Any]:
            if news.name is None:
                return {"index": news.index, "function": {"arguments": news.arguments}}
            number = numbers[sample, news.index] = _call_id()
            function = {"name": news.name, "arguments": ""}
            return {"index": news.index, "id": number, "type": "function", "function": function}

        for sample in range(asked.n):
            yield chunk(sample, {"role": "assistant", "content": ""})
        async for event in started.ticket:
            pieces.note(0, event)
            sample, finish = event.sample, event.finish
            block, text, news = None, event.text, list[ToolCallDelta]()
            if asked.logprobs and event.tokens:
                block = self._logprobs(asked, event)
            if (parser := parsers[sample]) is not None:
                text, news = parser.push(event.text, last=finish is not None)
            if not withheld:
                if text or (block and not news):
                    yield chunk(sample, {"content": text}, block)
                    block = None
                for each in news:
                    yield chunk(sample, {"tool_calls": [called(sample, each)]}, block)
                    block = None
            if finish:
                answer = await self._decided(asked, started, finish)
                reason = finish.reason if answer is None else answer.finish_reason
                complete = finish.complete if answer is None else answer.complete
                if answer is not None and withheld and answer.abstained:
                    yield chunk(sample, {"refusal": answer.why})
                elif answer is not None and withheld:
                    text, news = answer.text, []
                    if asked.calls_tools:
                        parser = CallParser()
                        text, news = parser.push(answer.text, last=True)
                    if text or not news:
                        yield chunk(sample, {"content": text})
                    for each in news:
                        yield chunk(sample, {"tool_calls": [called(sample, each)]})
                if parser is not None:
                    self._note_calls(parser, complete)
                if parser is not None and parser.calls:
                    reason = _of_calls(reason, complete)
                fields = {
                    **decision_fields(started.bound, answer),
                    **await self._fields(asked, started, finish, answer),
                }
                yield chunk(sample, {}, **ended_by(reason, complete=complete), **fields)
        log_of(http)["usage"] = pieces.usage()
        for last in pieces.last():
            yield last

    async def _decided(self, asked: ChatRequest, started: StartedChat, finished: Finished) -> Answer | None:
        """With its confidence, where somebody wants to know that."""
        if started.bound is None:
            return None
        common, seed = self._with, started.head["seed"]
        answer = await common.confidence.decide(
            started.bound, asked, finished, seed, common.prompts.away, prompt_tokens=started.prompt_tokens,
            seconds=time.perf_counter() - started.began,
        )  # fmt: skip
        if (route := route_of(started.bound, answer)) is not None and (metrics := common.engine.metrics) is not None:
            metrics.routes.labels(route).inc()
        return answer

    def _note_calls(self, parser: CallParser, complete: bool | None) -> None:
        if parser.calls and (metrics := self._with.engine.metrics) is not None:
            metrics.observe_tool_calls(len(parser.calls), complete=complete is not False)

    async def _fields(
        self, asked: ChatRequest, started: StartedChat, finished: Finished, answer: Answer | None
    ) -> dict[str, Any]:
        """The values of a text that was held to a schema and is given as it was written, where details are wanted."""
        if not asked.token_details or (answer is not None and answer.why):
            return {}
        return await self._with.prompts.fields(started.described, started.held, finished)

    def _logprobs(self, asked: ChatRequest, of: Event | Finished) -> dict[str, Any]:
        content = chat_content(self._with.names, of, asked.top_logprobs, details=asked.token_details)
        return {"content": content, "refusal": None}

    async def start(self, asked: ChatRequest, kind: str, salt: str) -> StartedChat:
        common = self._with
        described, field = form_of(asked)
        # first: what it refuses is never compiled here
        held = await common.prompts.constraint(described, field, asked.warnings)
        bound = await common.prompts.away(lambda: common.confidence.bind(asked, described))
        rendered = await common.prompts.conversation(asked.conversation, asked.begun)
        wanted = asked.max_tokens or common.context - len(rendered.tokens)
        common.check_numbers(wanted * asked.n * (asked.top_logprobs + 1 if asked.logprobs else 0))
        seed = seed_of(asked)
        predicted = await common.prompts.predicted(asked.predicted_text)
        request = common.request(asked, rendered.tokens, wanted, seed, asked.top_logprobs, held, salt)
        if predicted and asked.drafter is None:
            request = replace(request, drafter=PredictedText(predicted))
        (ticket,) = common.submit([request])
        head, began = common.head("chatcmpl", kind, seed), time.perf_counter()
        return StartedChat(len(rendered.tokens), head, ticket, bound, described, held, began)


def _of_calls(reason: str, complete: bool | None) -> str:
    """Why a text with calls ended; one that was cut, by a stop string too, ended for that reason."""
    return "tool_calls" if complete or (complete is None and reason == "stop") else reason


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": _call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
