"""A conversation with tools: calls are checked and executed, what is refused may be repaired, then the model answers.

box = Toolbox([get_weather])
run = run_tools(lm, [{"role": "user", "content": "What is the weather in Paris?"}], box)
run.text, run.calls, run.escalate
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

from likely.lm.base import LanguageModel
from likely.lm.confidence import AskOptions
from likely.lm.options import TextOptions
from likely.lm.results import Answer
from likely.models.chat_template import Message
from likely.prompting.selection.bm25 import BM25
from likely.serving.tools.grammar import ToolChoice, tool_form
from likely.serving.tools.prompted import signature_of
from likely.serving.tools.toolbox import CallResult, Toolbox
from likely.serving.tools.transcript import CallParser, with_tools

MAX_REPAIRS = 2
MAX_TURNS = 8
End = Literal["answered", "called", "repairs", "unknown", "turns"]


@dataclass(frozen=True)
class ToolTurn:
    """One reply of the model, and what became of its calls; repair: it was asked for to mend the turn before."""

    answer: Answer
    calls: list[CallResult]
    repair: bool = False


@dataclass(frozen=True)
class ToolRun:
    """What became of a conversation.

    ended     "answered" in words;  "called": its calls are done and no further reply was wanted;  "repairs": calls were
              refused once more after the last repair;  "unknown": nobody knows what a tool has done;  "turns"
    messages  of the conversation in OpenAI's form, with all calls and results
    """

    ended: End
    turns: list[ToolTurn]
    messages: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The last words, "" where the last reply holds none."""
        return str(self.messages[-1].get("content") or "") if self.messages[-1]["role"] == "assistant" else ""

    @property
    def calls(self) -> list[CallResult]:
        return [call for turn in self.turns for call in turn.calls]

    @property
    def repairs(self) -> int:
        return sum(turn.repair for turn in self.turns)

    @property
    def escalate(self) -> bool:
        """Whether somebody else should take over."""
        return self.ended in ("repairs", "unknown", "turns")


def run_tools(
    lm: LanguageModel,
    messages: Sequence[Message],
    box: Toolbox,
    *,
    choice: ToolChoice | None = None,
    max_repairs: int = MAX_REPAIRS,
    max_turns: int = MAX_TURNS,
    answer_after: bool = True,
    most_offered: int | None = None,
    **options: Unpack[TextOptions],
) -> ToolRun:
    """Let the model call tools until it answers in words.

    choice       of the first reply, by default what the model decides; later ones are free, repairs must call
    max_repairs  replies that may mend refused or failed calls; what is done is not done again, and a call whose outcome
                 is unknown ends the run
    answer_after False: the run ends as soon as its calls are done
    most_offered of many tools only so many are offered, which fit the last message of the user best (`best_tools`); a
                 small model chooses badly among many
    options      of `chat`; every reply is held to the grammar of the tools
    """
    said: list[dict[str, Any]] = [dict(message) for message in messages]
    turns: list[ToolTurn] = []
    repairs, repairing = 0, False
    wanted = choice or ToolChoice()
    functions: Sequence[Mapping[str, Any]] = box.functions
    if most_offered is not None and wanted.name is None:
        question = next((str(m.get("content", "")) for m in reversed(said) if m.get("role") == "user"), "")
        functions = best_tools(question, functions, most_offered)
    while len(turns) < max_turns:
        answer = reply_with_tools(lm, said, functions, wanted, options)
        content, calls = read_reply(answer.text)
        ids = [f"call_{len(turns)}_{i}" for i in range(len(calls))]
        said.append(_assistant(content, calls, ids))
        done = [box.execute(name, arguments) for name, arguments in calls]
        said += [
            {"role": "tool", "tool_call_id": number, "content": result.content()}
            for number, result in zip(ids, done, strict=True)
        ]
        turns.append(ToolTurn(answer, done, repairing))
        if not calls:
            return ToolRun("answered", turns, said)
        if any(result.outcome == "unknown" for result in done):
            return ToolRun("unknown", turns, said)
        broken = [result for result in done if result.may_repair]
        repairing = bool(broken)
        if broken:
            if repairs == max_repairs:
                return ToolRun("repairs", turns, said)
            repairs += 1
            wanted = _repair_choice(broken, functions)
        elif not answer_after:
            return ToolRun("called", turns, said)
        else:
            wanted = ToolChoice()
    return ToolRun("turns", turns, said)


def reply_with_tools(
    lm: LanguageModel,
    messages: Sequence[Mapping[str, Any]],
    functions: Sequence[Mapping[str, Any]],
    choice: ToolChoice | None,
    options: TextOptions,
) -> Answer:
    """The next message, held to the grammar of the functions; choice None: written as the model likes."""
    given: AskOptions = {**options, "calibrator": None}
    if choice is not None:
        given["grammar"] = tool_form(functions, choice).source
    return lm.chat(with_tools(messages, functions), **given)


def best_tools(question: str, functions: Sequence[Mapping[str, Any]], k: int) -> list[Mapping[str, Any]]:
    """The k functions whose names and descriptions fit a question best, in their order; all where there are no more.

    By words in common (`BM25`), no model is asked.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    scores = BM25(_words(signature_of(function)) for function in functions).scores(_words(question))
    order = sorted(range(len(functions)), key=lambda i: -scores[i])[:k]
    return [functions[i] for i in sorted(order)]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def read_reply(text: str) -> tuple[str, list[tuple[str, str]]]:
    """(what was said, the calls as (name, arguments)) of a reply; a call that was cut has cut arguments."""
    parser = CallParser()
    parser.push(text, last=True)
    return parser.content, [(name, arguments) for name, arguments in parser.calls]


def _assistant(content: str, calls: Sequence[tuple[str, str]], ids: Sequence[str]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    if calls:
        message["tool_calls"] = [
            {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in zip(ids, calls, strict=True)
        ]
    return message


def _repair_choice(broken: Sequence[CallResult], functions: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """A repair must call: the one function that was refused, or any where there were several or none of that name."""
    names = {result.name for result in broken}
    known = names & {each["name"] for each in functions}
    return ToolChoice("required", known.pop() if len(names) == 1 and known else None, parallel=len(broken) > 1)
