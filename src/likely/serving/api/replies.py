"""Answers in OpenAI's shapes: token names, log-probability blocks, choices, usage."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from likely.decoding.request import Event, Finished
from likely.serving.api.schemas import GenerationRequest
from likely.tokenizers.protocol import Tokenizer

Alternatives = Sequence[tuple[int, float]]  # (token id, logprob), most likely first
LEAST = -9999.0  # what JSON gets for a probability of zero, as from OpenAI


class TokenNames:
    """Tokens as text: control tokens by name, bytes that are no text as bytes:\\xe2\\x80."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._written = {number: text for text, number in tokenizer.special_tokens.items()}

    def bytes_of(self, token: int) -> bytes:
        """As the token stands in a prompt: control tokens in their written form."""
        written = self._written.get(token)
        return self._tokenizer.token_bytes(token) if written is None else written.encode()

    def shown(self, token: int) -> bytes:
        """As the token adds to a generated text: nothing for control tokens."""
        return self._tokenizer.token_bytes(token)

    def name(self, token: int, *, skip: int = 0) -> str:
        """skip  bytes at the beginning that are not part of the text"""
        raw = self.bytes_of(token)[skip:]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST


class CompletionLogprobs:
    """`logprobs` of a text completion, as one block or as one block per piece of a stream.

    k       alternatives per token; the token itself is always among them, as OpenAI does it
    offset  characters of the text before the first token
    """

    def __init__(self, names: TokenNames, k: int, *, offset: int = 0):
        self._names, self._k, self._offset = names, k, offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def block(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[Alternatives | None],
        *,
        entropies: Sequence[float | None] | None = None,
        drafted: Sequence[bool] = (),
        skip: int = 0,
        written: bool = False,
    ) -> dict[str, Any]:
        """entropies, drafted: of the tokens;  skip: bytes of the first token that are no text;  written: control
        tokens are part of the text (a prompt).
        """
        texts, offsets, rows = [], [], []
        for i, (token, logprob, top) in enumerate(zip(tokens, logprobs, tops, strict=True)):
            cut = skip if i == 0 else 0
            name = self._names.name(token, skip=cut)
            texts.append(name)
            offsets.append(self._offset)
            raw = self._names.bytes_of(token)[cut:] if written else self._names.shown(token)
            self._offset += len(self._decoder.decode(raw))
            rows.append(None if logprob is None else self._row(token, name, logprob, top or ()))
        return {
            "tokens": texts,
            "token_logprobs": [None if lp is None else finite(lp) for lp in logprobs],
            "top_logprobs": rows,
            "text_offset": offsets,
            **({} if entropies is None else {"entropies": list(entropies), "drafted": list(drafted)}),
        }

    def _row(self, token: int, name: str, logprob: float, top: Alternatives) -> dict[str, float]:
        row: dict[str, float] = {}
        for other, value in top[: self._k]:
            row.setdefault(name if other == token else self._names.name(other), finite(value))
        row[name] = finite(logprob)
        return row


def joined(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two blocks, one after the other."""
    if a is None or b is None:
        return b if a is None else a
    return {name: a[name] + b[name] for name in a}


def chat_content(names: TokenNames, of: Event | Finished, k: int, *, details: bool = False) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat completion; details: also entropy and whether a token had been guessed."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": names.name(token), "logprob": finite(logprob), "bytes": list(names.bytes_of(token))}

    content = [
        {**entry(token, lp), "top_logprobs": [entry(other, lp if other == token else v) for other, v in top[:k]]}
        for token, lp, top in zip(of.tokens, of.logprobs, of.tops, strict=True)
    ]
    if details:
        for each, entropy, drafted in zip(content, of.entropies, of.drafted, strict=True):
            each |= {"entropy": entropy, "drafted": drafted}
    return content


def ended_by(reason: str | None, *, complete: bool | None = None) -> dict[str, str | None]:
    """How a choice says why its text ended; None: it goes on.

    OpenAI knows "stop" and "length".  A full context is a length, a text that was stopped because it repeated itself a
    stop; so is one whose form was complete when the tokens ran out, since clients read such a value only then.  Beyond
    OpenAI's field, `stop_reason` says which.
    """
    if reason in ("length", "context") and complete:
        return {"finish_reason": "stop", "stop_reason": reason}
    if reason is None or reason in ("stop", "length", "tool_calls"):
        return {"finish_reason": reason}
    return {"finish_reason": "stop" if reason == "repetition" else "length", "stop_reason": reason}


def usage(prompt_tokens: int, texts: Iterable[Finished], cached_tokens: int | None = None) -> dict[str, Any]:
    """What a request took; guessed tokens that the model took and refused, where something was guessed.

    cached_tokens  of the prompts, that were computed before
    """
    done = list(texts)
    written = sum(len(text.tokens) for text in done)
    found = _usage(prompt_tokens, written)
    if cached_tokens is not None:
        found["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    if proposed := sum(text.proposed for text in done):
        accepted = sum(text.accepted for text in done)
        found["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": proposed - accepted,
        }
    return found


def _usage(prompt_tokens: int, written: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


class Pieces:
    """The events of one stream: the head of each, and usage where it was asked for."""

    def __init__(self, asked: GenerationRequest, head: dict[str, Any], prompt_tokens: int):
        self._options, self._head, self._prompt_tokens = asked.stream_options, head, prompt_tokens
        self._warnings, self._written = asked.warnings, 0
        self._done: list[tuple[tuple[int, int], Finished]] = []

    def note(self, request: int, event: Event) -> None:
        """News that the next pieces tell of."""
        self._written += len(event.tokens)
        if event.finish:
            self._done.append(((request, event.sample), event.finish))

    def piece(self, choice: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._options.include_usage:  # where it will come at the end, every other event says that it holds none
            running = self._options.continuous_usage_stats
            found["usage"] = _usage(self._prompt_tokens, self._written) if running else None
        if self._warnings:
            found["warnings"], self._warnings = self._warnings, []
        return found

    def last(self) -> list[dict[str, Any]]:
        """What comes behind all choices."""
        return [{**self._head, "choices": [], "usage": self.usage()}] if self._options.include_usage else []

    def usage(self) -> dict[str, Any]:
        return usage(self._prompt_tokens, [text for _, text in self._done], cached_of(dict(self._done)))


def cached_of(done: Mapping[tuple[int, int], Finished]) -> int | None:
    """Tokens of prompts that were computed before; done: (number of the prompt, sample) -> text."""
    if not done:
        return None
    return sum(next(text.cached_tokens for (j, _), text in done.items() if j == i) for i in {i for i, _ in done})


def json_safe(value: Any) -> Any:
    """The same with null for numbers that JSON has not (-inf)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_safe(item) for item in value]
    return value
