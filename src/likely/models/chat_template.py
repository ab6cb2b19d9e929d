"""A conversation becomes the text, and then the tokens, that a chat model was trained to read.

The template comes out of a model file and the contents from users; neither is trusted. A template is bounded
(`template_sandbox`), and the text of a control token inside a content stays text.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from jinja2.exceptions import SecurityError, TemplateSyntaxError

from likely.errors import DataError, ModelError, nearest, shortened
from likely.models.template_sandbox import BoundedEnvironment, Refusal
from likely.tokenizers.protocol import Tokenizer, begin, decode

MAX_TEXT = 4 * 1024 * 1024  # characters of a rendered conversation
ROLES = ("system", "user", "assistant", "tool")
FIELDS = ("role", "content", "name")
Message = Mapping[str, str]  # {"role": one of ROLES, "content": text}, and optionally "name"


def check_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages as plain dictionaries of plain strings; raises DataError in one line."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise DataError('messages must be a list like [{"role": "user", "content": "Hello"}]')
    if not messages:
        raise DataError("messages is empty: a conversation needs at least one message")
    return [_check_message(i, message) for i, message in enumerate(messages)]


def _check_message(i: int, message: Message) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise DataError(f'messages[{i}] must be like {{"role": "user", "content": "Hello"}}, got {_short(message)}')
    for name in message:
        if name not in FIELDS:
            raise DataError(
                f"messages[{i}] has an unknown field {_short(name)}; allowed: {', '.join(FIELDS)}"
                f"{nearest(str(name), FIELDS)}"
            )
    for name in ("role", "content"):
        if name not in message:
            raise DataError(f'messages[{i}]: field "{name}" is missing (found: {", ".join(message) or "nothing"})')
    for name, value in message.items():
        if not isinstance(value, str):
            raise DataError(f'messages[{i}]: "{name}" must be a string, got {_short(value)}')
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise DataError(f'messages[{i}]: "{name}" holds half of a surrogate pair, which is no character')
    if message["role"] not in ROLES:
        raise DataError(
            f"messages[{i}]: unknown role {_short(message['role'])}; allowed: {', '.join(ROLES)}"
            f"{nearest(message['role'], ROLES)}"
        )
    return {str(name): str.__str__(value) for name, value in message.items()}


def _short(value: object) -> str:
    return shortened(repr(value))


def _line(error: object) -> str:
    return shortened(" ".join(str(error).split()), 200)


class ChatTemplate:
    """A Jinja chat template, compiled once; safe to use from several threads.

    bos_token, eos_token  what the template prints for these names
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = ""):
        self.source, self._tokens = source, {"bos_token": bos_token, "eos_token": eos_token}
        self._environment, self._lock = BoundedEnvironment(), threading.Lock()
        try:
            self._template = self._environment.compile_bounded(source)
        except TemplateSyntaxError as error:
            raise ModelError(f"The chat template does not parse, line {error.lineno}: {_line(error.message)}") from None
        except SecurityError as error:
            raise ModelError(f"The chat template was refused: {_line(error)}") from None
        except Exception as error:
            raise ModelError(f"The chat template does not parse: {type(error).__name__}: {_line(error)}") from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of the conversation; with `add_generation_prompt` it ends where the assistant's answer begins.

        DataError if the messages are malformed or the template refuses them; ModelError if the template fails.
        """
        held = check_messages(messages)
        variables: dict[str, Any] = {**self._tokens, "tools": None, "documents": None}
        pieces, size = [], 0
        with self._lock:
            self._environment.renew()
            try:
                for piece in self._template.generate(
                    messages=held, add_generation_prompt=add_generation_prompt, **variables
                ):
                    pieces.append(piece)
                    size += len(piece)
                    if size > MAX_TEXT:
                        raise SecurityError(f"it prints more than {MAX_TEXT} characters")
            except Refusal as error:
                raise DataError(f"The chat template does not take these messages: {_line(error)}") from None
            except SecurityError as error:
                raise ModelError(f"The chat template was refused: {_line(error)}") from None
            except Exception as error:
                raise ModelError(f"The chat template failed: {type(error).__name__}: {_line(error)}") from None
        return "".join(pieces)

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message reaches the text. Some templates raise on one, others drop it silently."""
        probe = "likely-system-probe"
        try:
            return probe in self.render([{"role": "system", "content": probe}, {"role": "user", "content": "x"}])
        except (DataError, ModelError):
            return False


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it.

    text           what the template wrote (a beginning-of-sequence token that only `tokens` holds is not in it)
    tokens         with exactly one beginning-of-sequence token if the model wants one
    system_folded  the model has no system role: the system message was put before the first user message
    """

    text: str
    tokens: list[int]
    system_folded: bool = False


def fold_system(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The same conversation without a system role: its text and a blank line come before the first user message's."""
    held = check_messages(messages)
    system = [m["content"] for m in held if m["role"] == "system"]
    rest = [m for m in held if m["role"] != "system"]
    first = next((i for i, m in enumerate(rest) if m["role"] == "user"), None)
    if first is None:
        raise DataError("this model has no system role, and there is no user message to fold the system message into")
    if any(m["role"] == "system" for m in held[1:]):
        raise DataError("this model has no system role: only one system message, as the first one, can be folded")
    rest[first] = {**rest[first], "content": "\n\n".join([*system, rest[first]["content"]])}
    return rest


def render_chat(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> Rendered:
    """Text and tokens of a conversation.

    The tokens are those of the whole text with control tokens parsed, as long as no content holds the text of a
    control token; where one does, that text becomes ordinary tokens and never the control token's id.
    """
    held = check_messages(messages)
    folded = any(m["role"] == "system" for m in held) and not template.takes_system
    if folded:
        held = fold_system(held)
    marked = _Marked(held, tokenizer.special_tokens, template.source)
    pieces = marked.split(template.render(marked.messages, add_generation_prompt=add_generation_prompt))
    tokens: list[int] = []
    for i, (text, literal) in enumerate(pieces):
        tokens += _encode_piece(tokenizer, text, literal=literal, first=i == 0)
    return Rendered("".join(text for text, _ in pieces), begin(tokenizer, tokens), folded)


class _Marked:
    """Contents in which private characters stand for the texts of control tokens, and for edges that could form one.

    A content that ends in "<|im" or begins with "end|>" could complete a control token with the template's own text;
    its edge is marked, too, and the mark is used only if that happened.
    """

    def __init__(self, messages: list[dict[str, str]], special: Mapping[str, int], source: str):
        self._special = tuple(text for text in special if text)
        texts = [text for message in messages for text in (message["content"], message.get("name", ""))]
        used = set(source).union(*texts, *self._special)
        self._free = (chr(c) for c in range(0xF0000, 0xFFFFE) if chr(c) not in used)
        self._edge = next(self._free)
        self._marks: dict[str, str] = {}  # text of a control token -> its mark
        self.messages = [{k: v if k == "role" else self._mark(v) for k, v in message.items()} for message in messages]

    def _mark(self, text: str) -> str:
        pattern, heads, tails = _patterns(self._special)
        marked = pattern.sub(lambda m: self._marks.setdefault(m[0], next(self._free)), text)
        body = marked.strip()
        if not body:
            return marked
        start = marked.index(body)
        before, after = marked[:start], marked[start + len(body) :]
        # An edge mark goes inside the white space, so that a template which trims does so as without it.
        within = len(body) < 40 and any(body in s for s in self._special)
        if within or body.startswith(tails):
            before += self._edge
        if within or body.endswith(heads):
            after = self._edge + after
        return before + body + after

    def split(self, rendered: str) -> list[tuple[str, bool]]:
        """(text, is it a literal) pieces that join to the rendered text without marks."""
        literal_of = {mark: text for text, mark in self._marks.items()}
        if not literal_of and self._edge not in rendered:
            return [(rendered, False)]
        pieces: list[tuple[str, bool]] = []
        for part in re.split(f"([{''.join(literal_of)}])" if literal_of else "(?!)", rendered):
            if part in literal_of:
                pieces.append((literal_of[part], True))
            else:
                pieces += [(text, False) for text in self._without_edges(part) if text]
        return pieces

    def _without_edges(self, part: str) -> Iterator[str]:
        """The part without edge marks, cut only where a control token would otherwise lie across one."""
        cuts, size = [], 0
        for piece in part.split(self._edge)[:-1]:
            size += len(piece)
            cuts.append(size)
        text, start = part.replace(self._edge, ""), 0
        for cut in cuts:
            # Every occurrence, overlapping ones, too: which of them a tokenizer takes is its own affair.
            spans = (text.find(s, max(start, cut - len(s) + 1), cut + len(s) - 1) for s in self._special if len(s) > 1)
            if any(at >= 0 for at in spans):
                yield text[start:cut]
                start = cut
        yield text[start:]


@lru_cache(maxsize=8)
def _patterns(special: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[str, ...], tuple[str, ...]]:
    """A pattern for any of the texts, the longest first; all their proper beginnings; all their proper ends."""
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
    heads = {s[:i] for s in special for i in range(1, len(s))}
    tails = {s[i:] for s in special for i in range(1, len(s))}
    return pattern, tuple(heads), tuple(tails)


def go_on(tokenizer: Tokenizer, rendered: Rendered, text: str) -> Rendered:
    """The conversation, and behind it a text with which its answer has already begun (all of it ordinary tokens)."""
    tokens = _encode_inside(tokenizer, text, special=False) if text else []
    return Rendered(rendered.text + text, [*rendered.tokens, *tokens], rendered.system_folded)


def _encode_piece(tokenizer: Tokenizer, text: str, *, literal: bool, first: bool) -> list[int]:
    tokens = (
        tokenizer.encode(text, parse_special=not literal)
        if first
        else _encode_inside(tokenizer, text, special=not literal)
    )
    if literal and tokenizer.special_tokens[text] in tokens:
        raise ModelError(f"this tokenizer cannot write {_short(text)} as plain text, so a message must not hold it")
    return tokens


def _encode_inside(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """Tokens of a text that goes on from another."""
    tokens = tokenizer.encode(text, parse_special=special)
    if decode(tokenizer, tokenizer.encode(text[0])) == " " + text[0]:
        # The tokenizer puts a space before every text it is given. Let it stand before a line break that we take away.
        line_break = tokenizer.encode("\n")
        longer = tokenizer.encode("\n" + text, parse_special=special)
        if longer[: len(line_break)] == line_break:
            tokens = longer[len(line_break) :]
    return tokens
