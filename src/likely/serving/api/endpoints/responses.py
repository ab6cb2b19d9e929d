"""POST /v1/responses: OpenAI's newer form of a chat.  Each is one chat of this server; nothing is kept between them."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import Request as HttpRequest
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from likely.serving.api.confidence import DECISION_FIELDS
from likely.serving.api.endpoints.chats import ChatsEndpoint
from likely.serving.api.schemas import ChatRequest, RequestBody, parse
from likely.serving.api.streaming import Events
from likely.serving.limits import MAX_LOGPROBS, MAX_MESSAGES, MAX_TOOLS, ApiError

_NAMES = {"max_tokens": "max_output_tokens", "messages": "input", "response_format": "text.format"}
LOGPROBS = "message.output_text.logprobs"  # of `include`


class _TextSettings(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    format: dict[str, Any] | None = None
    verbosity: None = None


class ResponsesRequest(RequestBody):
    """A request for a response.  Fields that ask the server to remember (`store`, `previous_response_id`) are refused.

    input  a user's message, or messages, calls (`function_call`) and their results (`function_call_output`) in order
    """

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    )
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=2**20)
    temperature: float | None = None  # bounds and defaults are those of a chat
    top_p: float | None = None
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    include: list[Literal["message.output_text.logprobs"]] = Field([], max_length=8)
    text: _TextSettings = _TextSettings()
    tools: list[dict[str, Any]] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    store: bool = False
    background: Literal[False] = False
    previous_response_id: str | None = None
    truncation: Literal["disabled"] = "disabled"
    # beyond OpenAI's, as in chats
    seed: int | None = None
    drafter: str | None = None

    def as_chat(self) -> ChatRequest:
        """The same request as a chat, whose checks hold."""
        if self.previous_response_id is not None:
            raise ApiError(
                400, "previous_response_id: this server keeps no responses: send the conversation so far as input",
                param="previous_response_id",
            )  # fmt: skip
        asked: dict[str, Any] = {
            "model": self.model,
            "timeout": self.timeout,
            "priority": self.priority,
            "cache_salt": self.cache_salt,
            "messages": [
                *([] if self.instructions is None else [{"role": "system", "content": self.instructions}]),
                *_messages(self.input),
            ],
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": bool(self.top_logprobs) or LOGPROBS in self.include,
            "top_logprobs": self.top_logprobs,
            "response_format": _response_format(self.text.format),
            "tools": [_tool(i, tool) for i, tool in enumerate(self.tools)],
            "tool_choice": _tool_choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "stream": self.stream,
            "stream_options": {"include_usage": True} if self.stream else None,
            "seed": self.seed,
            "drafter": self.drafter,
            "stop_repetition": True,
        }
        chat = parse(ChatRequest, asked)
        chat.warnings.extend([*self.warnings, *(['"store" has no effect here: nothing is kept'] if self.store else [])])
        return chat


def _messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    found: list[dict[str, Any]] = []
    for i, item in enumerate(given):
        match item.get("type", "message"):
            case "message":
                found.append({"role": item.get("role"), "content": _content(i, item.get("content"))})
            case "function_call":
                name, arguments = item.get("name"), item.get("arguments")
                function = {"name": name, "arguments": arguments}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                if found and found[-1]["role"] == "assistant":
                    found[-1].setdefault("tool_calls", []).append(call)
                else:
                    found.append({"role": "assistant", "content": None, "tool_calls": [call]})
            case "function_call_output":
                content = item.get("output")
                found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(i, content)})
            case other:
                raise ApiError(
                    400, f'input[{i}].type: message, function_call or function_call_output, got "{str(other)[:40]}"',
                    param="input",
                )  # fmt: skip
    return found


def _content(i: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [None]
    for part in parts:
        if not (
            isinstance(part, dict)
            and part.get("type") in ("input_text", "output_text")
            and isinstance(part.get("text"), str)
        ):
            raise ApiError(
                400, f'input[{i}]: text, or parts {{"type": "input_text", "text": ...}}, is all that this model reads',
                param="input",
            )  # fmt: skip
    return "".join(part["text"] for part in parts)


def _response_format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given.get("type") != "json_schema":
        return given
    inside = {name: value for name, value in given.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inside}


def _tool(i: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise ApiError(
            400, f'tools[{i}].type: this server calls functions only, got "{str(tool.get("type"))[:40]}"', param="tools"
        )
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(given: str | dict[str, Any]) -> Any:
    if isinstance(given, str):
        return given
    if given.get("type") != "function" or set(given) != {"type", "name"}:
        raise ApiError(
            400, 'tool_choice: none, auto, required or {"type": "function", "name": ...}', param="tool_choice"
        )
    return {"type": "function", "function": {"name": given["name"]}}


class ResponsesEndpoint:
    """Responses of one server, made from its chats."""

    def __init__(self, chats: ChatsEndpoint):
        self._chats, self._with = chats, chats.common

    async def answer(self, http: HttpRequest, asked: ResponsesRequest, salt: str) -> Response:
        try:
            chat = self._chats.checked(asked.as_chat())
            asked = asked.model_copy(update={"temperature": chat.temperature, "top_p": chat.top_p})
            work = self._stream(http, asked, chat, salt) if asked.stream else self._whole(http, asked, chat, salt)
            return await self._with.within(http, chat, work)
        except ApiError as error:  # of a field that is called otherwise in a chat
            if (name := _NAMES.get(error.param or "")) is None:
                raise
            message = re.sub(rf"{error.param}(\[\d+\])?", name, str(error), count=1)  # numbers are the chat's own
            raise ApiError(error.status, message, param=name, code=error.code) from None

    async def _whole(self, http: HttpRequest, asked: ResponsesRequest, chat: ChatRequest, salt: str) -> Response:
        body, headers, numbers = await self._chats.body(http, chat, salt)
        [choice] = body["choices"]
        message, content = choice["message"], (choice["logprobs"] or {}).get("content")
        writing = _Writing(asked, body["model"], body["seed"])
        for _ in writing.text(message["content"] or "", content or ()):
            pass
        if message["refusal"] is not None:
            writing.refusal(message["refusal"])
        for call in message.get("tool_calls", ()):
            function = call["function"]
            for _ in writing.call(call["id"], function["name"], function["arguments"]):
                pass
        writing.note(choice)
        for _ in writing.close():
            pass
        reply = await self._with.reply(chat, writing.response(choice["finish_reason"], body["usage"]), numbers)
        reply.headers.update(headers)
        return reply

    async def _stream(self, http: HttpRequest, asked: ResponsesRequest, chat: ChatRequest, salt: str) -> Response:
        started = await self._chats.start(chat, "chat.completion.chunk", salt)
        events = self._events(asked, self._chats.events(http, chat, started), started.head, chat.warnings)
        return self._with.stream(chat, events, [started.ticket])

    async def _events(
        self, asked: ResponsesRequest, chunks: Events, head: Mapping[str, Any], warnings: list[str]
    ) -> Events:
        writing = _Writing(asked, head["model"], head["seed"])
        reason, spent = None, None
        for kind in ("response.created", "response.in_progress"):
            yield writing.event(kind, response=writing.response(None, None))
        async for chunk in chunks:
            spent = chunk.get("usage") or spent
            for choice in chunk["choices"]:
                delta, block = choice["delta"], (choice["logprobs"] or {}).get("content")
                if delta.get("content") or block:
                    for event in writing.text(delta.get("content") or "", block or ()):
                        yield event
                if delta.get("refusal"):
                    for event in writing.refusal(delta["refusal"]):
                        yield event
                for call in delta.get("tool_calls", ()):
                    function = call["function"]
                    for event in writing.call(call.get("id"), function.get("name"), function.get("arguments", "")):
                        yield event
                writing.note(choice)
                reason = choice["finish_reason"] or reason
        for event in writing.close():
            yield event
        whole = writing.response(reason, spent) | ({"warnings": warnings} if warnings else {})
        yield writing.event("response.completed" if whole["status"] == "completed" else "response.incomplete",
                            response=whole)  # fmt: skip


@dataclass
class _Writing:
    """A response as it grows: its items, and the events that tell of them."""

    asked: ResponsesRequest
    model: str
    seed: int
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    output: list[dict[str, Any]] = field(default_factory=list)
    decided: dict[str, Any] = field(default_factory=dict)  # what is known of its confidence
    number: int = 0
    open: dict[str, Any] | None = None  # the item that is being written

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1, **more}

    def text(self, piece: str, entries: Any) -> list[dict[str, Any]]:
        """A piece of the message, which begins with it or goes on."""
        found = []
        if self.open is None or self.open["type"] != "message":
            found += self.close()
            if not piece:  # the tokens of a call
                return found
            found += self._message({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        part = self.open["content"][0]  # type: ignore[index]
        part["text"] += piece
        part["logprobs"] += entries
        if piece:
            found.append(self._of_part("response.output_text.delta", delta=piece, logprobs=list(entries)))
        return found

    def refusal(self, why: str) -> list[dict[str, Any]]:
        """A message that says why no answer is given."""
        found = [*self.close(), *self._message({"type": "refusal", "refusal": ""})]
        self.open["content"][0]["refusal"] = why  # type: ignore[index]
        return [*found, self._of_part("response.refusal.delta", delta=why)]

    def note(self, choice: Mapping[str, Any]) -> None:
        """A chat's choice, which may hold what was decided about its confidence."""
        self.decided |= {name: choice[name] for name in DECISION_FIELDS if name in choice}

    def call(self, number: str | None, name: str | None, arguments: str) -> list[dict[str, Any]]:
        """A call begins (with its name), or its arguments go on."""
        found = []
        if name is not None:
            found += self.close()
            item = {"id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "status": "in_progress"}
            found.append(self._begin({**item, "call_id": number, "name": name, "arguments": ""}))
        assert self.open is not None
        self.open["arguments"] += arguments
        if arguments:
            found.append(self._of_item("response.function_call_arguments.delta", delta=arguments))
        return found

    def close(self) -> list[dict[str, Any]]:
        """The open item is whole."""
        item = self.open
        if item is None:
            return []
        item["status"] = "completed"
        if item["type"] == "message":
            [part] = item["content"]
            if part["type"] == "refusal":
                whole = self._of_part("response.refusal.done", refusal=part["refusal"])
            else:
                whole = self._of_part("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            found = [whole, self._of_part("response.content_part.done", part=part)]
        else:
            arguments = item["arguments"]
            found = [self._of_item("response.function_call_arguments.done", name=item["name"], arguments=arguments)]
        found.append(self.event("response.output_item.done", output_index=len(self.output) - 1, item=item))
        self.open = None
        return found

    def _message(self, part: dict[str, Any]) -> list[dict[str, Any]]:
        """A message of one part begins."""
        item: dict[str, Any] = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant"}
        item |= {"status": "in_progress", "content": []}
        found = [self._begin(item), self._of_part("response.content_part.added", part=dict(part))]
        item["content"] = [part]
        return found

    def _begin(self, item: dict[str, Any]) -> dict[str, Any]:
        self.output.append(item)
        self.open = item
        return self.event("response.output_item.added", output_index=len(self.output) - 1, item=dict(item))

    def _of_item(self, kind: str, **more: Any) -> dict[str, Any]:
        assert self.open is not None
        return self.event(kind, item_id=self.open["id"], output_index=len(self.output) - 1, **more)

    def _of_part(self, kind: str, **more: Any) -> dict[str, Any]:
        return self._of_item(kind, content_index=0, **more)

    def response(self, reason: str | None, spent: Mapping[str, Any] | None) -> dict[str, Any]:
        """The object itself; reason: a chat's finish_reason, None while it is being written."""
        asked = self.asked
        status = "in_progress" if reason is None else "incomplete" if reason == "length" else "completed"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self.model,
            "output": list(self.output),
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": asked.text.format or {"type": "text"}},
            "tool_choice": asked.tool_choice,
            "tools": asked.tools,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None if spent is None else _usage(spent),
            "metadata": {},
            "seed": self.seed,
            **self.decided,
        }


def _usage(spent: Mapping[str, Any]) -> dict[str, Any]:
    cached = (spent.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": spent["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": spent["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent["total_tokens"],
    }
