"""Tools and their calls as plain text: in the conversation that a template renders, and read from what was written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likely.errors import DataError
from likely.serving.tools.grammar import BEGIN, END, TAIL, head_of

_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


def with_tools(messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation for any chat template: the tools in the system message, calls and results as text.

    Calls of the assistant become <tool_call> blocks behind its content, results of tools a user message with a
    <tool_response> block for each.  DataError for a result whose tool_call_id no call before it has.
    """
    found: list[dict[str, Any]] = []
    open_calls: set[str] = set()
    for i, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, str | None):
            raise DataError(f'messages[{i}]: "content" must be a string, got {str(content)[:40]}')
        if message.get("role") == "tool":
            number = message.get("tool_call_id")
            if not isinstance(number, str):
                raise DataError(f'messages[{i}]: "tool_call_id" must be a string, got {str(number)[:40]}')
            if number not in open_calls:
                raise DataError(f'messages[{i}]: no call before it has the tool_call_id "{number[:60]}"')
            block = f"<tool_response>\n{content or ''}\n</tool_response>"
            if found and found[-1].get("role") == "user" and found[-1].pop("results", False):
                found[-1] = {"role": "user", "content": f"{found[-1]['content']}\n{block}", "results": True}
            else:
                found.append({"role": "user", "content": block, "results": True})
            continue
        plain = {name: value for name, value in message.items() if name not in ("tool_calls", "tool_call_id")}
        calls = message.get("tool_calls")
        if not isinstance(calls, list | None):
            raise DataError(f"messages[{i}]: tool_calls must be a list of calls, got {str(calls)[:40]}")
        if calls:
            if message.get("role") != "assistant":
                raise DataError(f"messages[{i}]: tool_calls belong to the assistant")
            written = [_call_text(i, call) for call in calls]
            open_calls |= {str(call.get("id")) for call in calls}
            plain["content"] = "\n".join([content, *written] if content else written)
        found.append(plain)
    for each in found:
        each.pop("results", None)
    if functions:
        about = _about(functions)
        if found and found[0].get("role") == "system":
            found[0] = {**found[0], "content": f"{found[0].get('content', '')}\n\n{about}"}
        else:
            found.insert(0, {"role": "system", "content": about})
    return found


def _call_text(i: int, call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not isinstance(arguments, str) or not isinstance(call.get("id"), str):
        raise DataError(
            f'messages[{i}].tool_calls: a call is like {{"id": "call_1", "type": "function", "function": '
            f'{{"name": "f", "arguments": "{{}}"}}}}'
        )
    return f"{BEGIN}{head_of(name)}{arguments}{TAIL}"


def _about(functions: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps({"type": "function", "function": dict(f)}, ensure_ascii=False) for f in functions)
    return (
        f"These functions can be called:\n<tools>\n{listed}\n</tools>\n\n"
        f"To call one, write its name and its arguments as JSON in this way, once per call:\n"
        f'{BEGIN}\n{{"name": "the function", "arguments": {{"an argument": "its value"}}}}\n{END}'
    )


@dataclass(frozen=True)
class ToolCallDelta:
    """News of the call number `index`: its name, once, then pieces of its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


class CallParser:
    """Splits a text that follows `tool_form`, as it comes, into content and calls.

    `content` and `calls` ([name, arguments]) hold all so far.
    """

    def __init__(self) -> None:
        self.content, self.calls = "", []  # type: str, list[list[str]]
        self._rest, self._state = "", "text"
        self._depth, self._in_string, self._escaped = 0, False, False

    def push(self, text: str, *, last: bool = False) -> tuple[str, list[ToolCallDelta]]:
        """(content, news of calls) that this piece of text adds; last: nothing comes after it."""
        self._rest += text
        content, news = "", []  # type: str, list[ToolCallDelta]
        before = ""
        while before != self._rest + self._state:
            before = self._rest + self._state
            if self._state == "text":
                content += self._text(last)
            elif self._state == "head" and (head := _HEAD.match(self._rest)):
                name = json.loads(head[1])
                self.calls.append([name, ""])
                news.append(ToolCallDelta(len(self.calls) - 1, name))
                self._rest, self._state = self._rest[head.end() :], "arguments"
            elif self._state == "arguments" and self._rest:
                taken = self._arguments()
                self.calls[-1][1] += taken
                news.append(ToolCallDelta(len(self.calls) - 1, arguments=taken))
            elif self._state == "tail" and self._rest.startswith(TAIL):
                self._rest, self._state = self._rest[len(TAIL) :], "between"
            elif self._state == "between" and self._rest.startswith("\n" + BEGIN):
                self._rest, self._state = self._rest[1 + len(BEGIN) :], "head"
        self.content += content
        return content, news

    def _text(self, last: bool) -> str:
        """Content that is certain to be no part of a call; the line break before a call belongs to the call."""
        at = self._rest.find(BEGIN)
        if at >= 0:
            found, self._rest, self._state = self._rest[:at], self._rest[at + len(BEGIN) :], "head"
            return found.removesuffix("\n")
        kept = 0
        if not last:
            for mark in (BEGIN, "\n" + BEGIN):
                for length in range(min(len(mark) - 1, len(self._rest)), 0, -1):
                    if self._rest.endswith(mark[:length]):
                        kept = max(kept, length)
                        break
        at = len(self._rest) - kept
        found, self._rest = self._rest[:at], self._rest[at:]
        return found

    def _arguments(self) -> str:
        """The rest up to the brace that closes the object."""
        for i, character in enumerate(self._rest):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    taken, self._rest, self._state = self._rest[: i + 1], self._rest[i + 1 :], "tail"
                    return taken
        taken, self._rest = self._rest, ""
        return taken
