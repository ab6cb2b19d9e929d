"""Recorded answers from JSON lines: {"prompt", "answer"}, {"messages", "answer"} or {"prompt_ids", "answer_ids"}."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from likely.decoding.replay import Trace
from likely.errors import DataError, LikelyError
from likely.jsonl import Line, text_field

KINDS = ("prompt", "messages", "prompt_ids")


@dataclass(frozen=True)
class Recorded:
    """One line, checked but not yet tokens.  Exactly one of `prompt` (text), `messages` and `ids` is given."""

    where: str
    answer: str = ""
    prompt: str | None = None
    messages: Sequence[dict[str, Any]] | None = None
    ids: tuple[list[int], list[int]] | None = None

    @property
    def is_text(self) -> bool:
        return self.ids is None


def recorded(line: Line, where: str) -> Recorded:
    """A line of a file of traces; DataError names file and line.

    Without "answer", the last message is the answer if the assistant wrote it, as in a log of a chat.
    """
    record, here = line.record, f"{where}:{line.number}"
    given = [kind for kind in KINDS if kind in record]
    if len(given) != 1:
        found = ", ".join(f'"{key}"' for key in record) or "nothing"
        raise DataError(f'{here}: give one of "prompt", "messages" and "prompt_ids" (found: {found})')
    if given == ["prompt_ids"]:
        return Recorded(here, ids=(_ids(record, "prompt_ids", here), _ids(record, "answer_ids", here)))
    if given == ["prompt"]:
        trace = Recorded(here, text_field(line, "answer", where), prompt=text_field(line, "prompt", where))
    else:
        trace = _chat(line, where, here)
    if not trace.answer:
        raise DataError(f'{here}: field "answer" is empty: there is nothing to replay')
    return trace


def _chat(line: Line, where: str, here: str) -> Recorded:
    from likely.models.chat_template import check_messages

    messages = line.record["messages"]
    if not isinstance(messages, list):
        raise DataError(f'{here}: field "messages" must be a list, found {type(messages).__name__}')
    try:
        held = check_messages(messages)
    except (LikelyError, ValueError, TypeError) as error:
        raise DataError(f"{here}: {error}") from None
    if "answer" in line.record:
        return Recorded(here, text_field(line, "answer", where), messages=held)
    if len(held) < 2 or held[-1]["role"] != "assistant":
        raise DataError(f'{here}: field "answer" is missing, and the last of "messages" is not the assistant\'s')
    return Recorded(here, held[-1]["content"], messages=held[:-1])


def _ids(record: dict[str, Any], name: str, here: str) -> list[int]:
    ids = record.get(name)
    whole = isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    if not whole or not ids:
        raise DataError(f'{here}: field "{name}" must be a list of one or more token ids')
    return ids


def tokenise(
    trace: Recorded,
    *,
    vocab_size: int | None = None,
    encode_prompt: Callable[[str], list[int]] | None = None,
    render: Callable[[Sequence[dict[str, Any]]], list[int]] | None = None,
    encode: Callable[[str], list[int]] | None = None,
) -> Trace:
    """Prompt and answer as a model's tokens, each on its own, as in a live run; DataError names the line.

    encode_prompt, render, encode  of the model; not needed for ids
    """
    if trace.ids is not None:
        prompt, answer = trace.ids
        worst = max(*prompt, *answer)
        if vocab_size is not None and worst >= vocab_size:
            raise DataError(f"{trace.where}: token id {worst} is outside 0..{vocab_size - 1} of this model")
        return Trace(prompt, answer)
    assert encode_prompt is not None and render is not None and encode is not None
    try:
        read = encode_prompt(trace.prompt) if trace.prompt is not None else render(trace.messages or [])
    except LikelyError as error:
        raise DataError(f"{trace.where}: {error}") from None
    if not read:
        raise DataError(f'{trace.where}: field "prompt" is empty, and this model has no token to begin with')
    return Trace(read, encode(trace.answer))
