"""Rows of a user's JSONL become token ids: prompts as text or conversations, completions that end or were cut.

Errors name file and row.  Prompt and completion are tokenised once; ids that a row brings along (samples of a model)
are taken as they are, and only for the tokenizer that they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from likely.alignment.labellers import PreferencePair
from likely.alignment.scores import Completion
from likely.alignment.sources import Prompt
from likely.errors import DataError, LikelyError, ModelError, check_choice, names_in
from likely.io.jsonl import Line, read_lines
from likely.models.chat_template import ChatTemplate, Rendered, check_messages, go_on, render_chat
from likely.tokenizers.protocol import Tokenizer, begin, opening
from likely.training.lora import HasRuntime

TooLong = Literal["error", "drop", "cut"]
TOO_LONG = ("error", "drop", "cut")
LEAST_ROOM = 8  # tokens of a completion that a prompt must leave, where completions are cut


class TooManyTokens(DataError):
    """A row does not fit."""


@dataclass
class RowEncoder:
    """Text and conversations as ids of one model.

    max_length  most tokens of prompt and completion together
    too_long    of a row that has more: "error", "drop" it (and count), or "cut" the completion's end, which is then
                scored as a text that did not end
    """

    lm: HasRuntime
    max_length: int
    too_long: TooLong = "error"
    dropped: list[int] = field(default_factory=list)  # rows
    cut: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choice("too_long", self.too_long, TOO_LONG)
        context = self.lm.runtime.context_length
        if not 2 <= self.max_length <= context:
            raise ModelError(f"max_length must lie in 2..{context}, the model's context, got {self.max_length}")

    @property
    def tokenizer(self) -> Tokenizer:
        return self.lm.tokenizer

    @cached_property
    def template(self) -> ChatTemplate:
        source = self.tokenizer.chat_template
        if source is None:
            raise ModelError("this model has no chat template: give prompts as text, or use a chat model")
        names = {number: text for text, number in self.tokenizer.special_tokens.items()}
        bos, eos = (names.get(i, "") if i is not None else "" for i in (self.tokenizer.bos_id, self.tokenizer.eos_id))
        return ChatTemplate(source, bos_token=bos, eos_token=eos)

    def prompt(self, value: Any, where: str, row: int = 0) -> Prompt:
        """A text, or messages that end before the assistant's turn."""
        if isinstance(value, str):
            tokens = begin(self.tokenizer, self.tokenizer.encode(value, parse_special=True)) or opening(self.tokenizer)
            text = value
        else:
            rendered = self._rendered(value, where, ask=True)
            tokens, text = rendered.tokens, rendered.text
        if not tokens:
            raise DataError(f"{where}: the prompt has no tokens, and this model has no beginning token")
        if len(tokens) >= self.max_length:
            raise TooManyTokens(f"{where}: the prompt has {len(tokens)} tokens, max_length is {self.max_length}")
        return Prompt(tuple(tokens), text, row)

    def completion(
        self, asked: Any, prompt: Prompt, value: Any, name: str, where: str, *, finished: bool = True
    ) -> Completion:
        """What follows the prompt: a text, or one message of the assistant; with its end token if it is finished."""
        text = _answer_text(value, name, where)
        if not text:
            raise DataError(f'{where}: "{name}" is empty: nothing can be learned from it')
        if isinstance(asked, str):
            tokens = go_on(self.tokenizer, Rendered(prompt.text, list(prompt.tokens)), text).tokens
        else:
            message = {"role": "assistant", "content": text}
            tokens = self._rendered([*asked, message], where, ask=False).tokens
            self._check_prefix(prompt.tokens, tokens, where)
        answer = list(tokens[len(prompt.tokens) :])
        ends = self.tokenizer.end_ids
        until = next((i for i, t in enumerate(answer) if t in ends), len(answer))
        answer = answer[:until]
        if not answer:
            raise DataError(f'{where}: "{name}" has no tokens before its end: nothing can be learned from it')
        if finished:
            answer.append(self._end_of(tokens[len(prompt.tokens) + until :]))
        return self.fitted(prompt, answer, text, finished, name, where)

    def fitted(
        self, prompt: Prompt, answer: Sequence[int], text: str, finished: bool, name: str, where: str
    ) -> Completion:
        """The completion, cut where that is allowed."""
        room = self.max_length - len(prompt.tokens)
        if len(answer) > room:
            if self.too_long != "cut" or room < LEAST_ROOM:
                raise TooManyTokens(
                    f'{where}: prompt and "{name}" have {len(prompt.tokens) + len(answer)} tokens, max_length is '
                    f"{self.max_length}: raise it, or choose --too-long drop or cut"
                )
            answer, finished = list(answer)[:room], False
            self.cut.append(prompt.row)
        return Completion(prompt.tokens, tuple(answer), finished, text, prompt.text)

    def given(self, record: Mapping[str, Any], name: str, prompt: Prompt, where: str) -> Completion:
        """A completion by the ids that the row holds, such as a sample that `likely align pairs` wrote."""
        ids, finished = self.given_ids(record, f"{name}_ids", where), flag(record, f"{name}_finished", where)
        return self.fitted(prompt, ids, str(record.get(name, "")), finished, name, where)

    def given_ids(self, record: Mapping[str, Any], name: str, where: str) -> list[int]:
        """A row's field of token ids."""
        ids = record.get(name)
        whole = isinstance(ids, list) and all(type(i) is int and 0 <= i < self.tokenizer.vocab_size for i in ids)
        if not whole or not ids:
            raise DataError(f'{where}: "{name}" must be a list of this model\'s token ids, at least one')
        return list(ids)

    def check_tokenizer(self, record: Mapping[str, Any], where: str) -> None:
        """DataError where the row's ids are another tokenizer's."""
        if record.get("tokenizer") != self.tokenizer.fingerprint:
            raise DataError(
                f"{where}: the ids are those of another tokenizer ({record.get('tokenizer')}, this model's is "
                f"{self.tokenizer.fingerprint}): draw the samples with this model"
            )

    def assistant_spans(self, messages: Any, where: str) -> tuple[list[int], list[bool]]:
        """(ids of a conversation, which of them an assistant wrote): every assistant turn with its end token."""
        ids = self._rendered(messages, where, ask=False).tokens
        scored, ends = [False] * len(ids), self.tokenizer.end_ids
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._rendered(messages[:k], where, ask=True).tokens if k else []
            self._check_prefix(before, ids, where)
            start = max(1, len(before))
            stop = next((i for i in range(start, len(ids)) if ids[i] in ends), len(ids) - 1)
            scored[start : stop + 1] = [True] * (stop + 1 - start)
        if not any(scored):
            raise DataError(f"{where}: the conversation has no turn of an assistant: nothing can be learned from it")
        return ids, scored

    def _rendered(self, messages: Any, where: str, *, ask: bool) -> Rendered:
        try:
            held = check_messages(messages)
            own = getattr(getattr(self.lm, "info", None), "system", None)  # as when the model is asked
            if own is not None and all(m["role"] != "system" for m in held):
                held = [{"role": "system", "content": own}, *held]
            return render_chat(self.tokenizer, self.template, held, add_generation_prompt=ask)
        except LikelyError as error:
            raise DataError(f"{where}: {error}") from None

    def _check_prefix(self, prompt: Sequence[int], whole: Sequence[int], where: str) -> None:
        if list(whole[: len(prompt)]) != list(prompt):
            at = next(i for i, t in enumerate(prompt) if i >= len(whole) or whole[i] != t)
            raise DataError(
                f"{where}: the chat template does not write the prompt as the beginning of the conversation (token "
                f"{at}: {self.tokenizer.token_text(prompt[at])!r}): where the answer begins is not known"
            )

    def _end_of(self, rest: Sequence[int]) -> int:
        if rest:
            return rest[0]
        if self.tokenizer.eos_id is None:
            raise ModelError("this tokenizer has no end token, so that a completion cannot end")
        return self.tokenizer.eos_id


def _answer_text(value: Any, name: str, where: str) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise DataError(f'{where}: "{name}" must be a text or a list of one message of the assistant')
    return value


def read_pairs(path: str | Path, encoder: RowEncoder, *, limit: int | None = None) -> list[PreferencePair]:
    """Rows {"prompt", "chosen", "rejected"} and optionally "p", "margin", "chosen_finished", "rejected_finished".

    prompt, chosen, rejected  texts; or a list of messages and the assistant's answers, as in trl's data
    p                         probability that "chosen" is the better one, 1 if it is not there
    """
    return read_rows(path, encoder, _pair, limit)


def read_prompts(path: str | Path, encoder: RowEncoder, *, limit: int | None = None) -> list[Prompt]:
    """Rows {"prompt"}: a text, or messages."""
    return read_rows(
        path, encoder, lambda e, line, where: e.prompt(row_field(line, "prompt", where), where, line.number), limit
    )


def _pair(encoder: RowEncoder, line: Line, where: str) -> PreferencePair:
    record, row = line.record, line.number
    asked = row_field(line, "prompt", where)
    if "chosen_ids" in record:
        encoder.check_tokenizer(record, where)
        ids = encoder.given_ids(record, "prompt_ids", where)
        if len(ids) >= encoder.max_length:
            raise TooManyTokens(f"{where}: the prompt has {len(ids)} tokens, max_length is {encoder.max_length}")
        prompt = Prompt(tuple(ids), asked if isinstance(asked, str) else "", row)
        first, second = (encoder.given(record, name, prompt, where) for name in ("chosen", "rejected"))
    else:
        prompt = encoder.prompt(asked, where, row)
        first, second = (
            encoder.completion(
                asked,
                prompt,
                row_field(line, name, where),
                name,
                where,
                finished=flag(record, f"{name}_finished", where),
            )
            for name in ("chosen", "rejected")
        )
    numbers = {name: record.get(name, default) for name, default in (("p", 1.0), ("margin", 0.0))}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise DataError(f'{where}: "{name}" must be a number, got {value!r}')
    if not 0 <= numbers["p"] <= 1:
        raise DataError(f'{where}: "p" must lie in [0, 1], got {numbers["p"]}')
    if first.tokens == second.tokens:
        raise DataError(
            f'{where}: "chosen" and "rejected" are the same{" once cut" if row in encoder.cut else ""}: remove the row'
        )
    return PreferencePair(first, second, float(numbers["p"]), float(numbers["margin"]), row)


def row_field(line: Line, name: str, where: str) -> Any:
    if name not in line.record:
        raise DataError(f'{where}: field "{name}" is missing (found: {names_in(line.record)})')
    return line.record[name]


def flag(record: Mapping[str, Any], name: str, where: str) -> bool:
    """A row's field that is true where it is not there, such as whether a text ended by itself."""
    value = record.get(name, True)
    if not isinstance(value, bool):
        raise DataError(f'{where}: "{name}" must be true or false, got {value!r}')
    return value


def read_rows(path: str | Path, encoder: RowEncoder, read: Any, limit: int | None = None) -> list[Any]:
    """What `read(encoder, line, where)` makes of every row; rows that do not fit are an error or left out."""
    found: list[Any] = []
    for line in read_lines(path):
        if limit is not None and len(found) >= limit:
            break
        try:
            found.append(read(encoder, line, f"{path}: row {line.number}"))
        except TooManyTokens:
            if encoder.too_long == "error":
                raise
            encoder.dropped.append(line.number)
    if not found:
        dropped = f" ({len(encoder.dropped)} rows were too long)" if encoder.dropped else ""
        raise DataError(f"{path}: no row can be used{dropped}")
    return found
