"""What is asked of an OpenAI-compatible server, and what its replies say: completions, chats and pieces of streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from likely.decoding.options import check_number, check_whole
from likely.errors import CapabilityError, nearest
from likely.lm.options import OPTIONS, plain_numbers, stop_strings
from likely.lm.remote.echo import Unusable, number, top_row
from likely.lm.remote.form import RemoteForm, take_form
from likely.scoring.scored import TopLogprob, sums


@dataclass(frozen=True)
class ServerSettings:
    """How to continue a prompt, in the words of the local model object. seed None: the server's own choice."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = 0
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int = 0
    form: RemoteForm | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ServerSettings:
        form, options = take_form(options)
        names = [f.name for f in fields(cls) if f.name != "form"]
        for name, value in options.items():
            if name not in OPTIONS:
                raise TypeError(f'unknown option "{name}"{nearest(name, names)} (for a server: {", ".join(names)})')
            if name not in names and not _asks_for_nothing(name, value):
                raise CapabilityError(f"a server is not asked for {name}= (got {value!r}); load the model locally")
        options = plain_numbers({name: value for name, value in options.items() if name in names})
        return cls(**{**options, "stop": stop_strings(options.get("stop")), "form": form})

    def __post_init__(self) -> None:
        check_whole("max_tokens", self.max_tokens)
        check_whole("n", self.n, high=128)
        check_whole("top_logprobs", self.top_logprobs)
        check_number("temperature", self.temperature)
        check_number("top_p", self.top_p)

    def body(self) -> dict[str, Any]:
        """What is sent.  Temperature and top_p always: left out, a server takes its own and may cut off the tail."""
        body: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("top_logprobs", "form") and value != f.default:
                body[f.name] = list(value) if f.name == "stop" else value
        if self.seed is not None:
            body["seed"] = self.seed
        if self.form is not None:
            body |= self.form.body
        return body


def _asks_for_nothing(name: str, value: Any) -> bool:
    """Whether this value of an option that a server is not asked for changes nothing."""
    empty = value is None or (isinstance(value, (tuple, list, dict)) and not value)
    return empty or value == OPTIONS[name].default or (name == "drafter" and value in ("none", "auto"))


@dataclass
class TokenLogprobs:
    """Tokens of a written text, their log-probabilities in nats, and the alternatives at each place."""

    tokens: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    rows: list[list[TopLogprob]] = field(default_factory=list)

    def extend(self, more: TokenLogprobs) -> None:
        self.tokens += more.tokens
        self.values += more.values
        self.rows += more.rows


def choices_of(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The choices of a reply; raises Unusable if there are none."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, Mapping) for c in choices):
        raise Unusable("it sent no choices")
    return choices


def text_of(choice: Mapping[str, Any]) -> str | None:
    """The text of a completion, of a chat message, or of a piece of a stream."""
    for part in (choice.get("message"), choice.get("delta")):
        if isinstance(part, Mapping):
            return part["content"] if isinstance(part.get("content"), str) else None
    return choice["text"] if isinstance(choice.get("text"), str) else None


def prompt_tokens_of(reply: Mapping[str, Any]) -> int | None:
    usage = reply.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) else None


def logprobs_of(choice: Mapping[str, Any]) -> TokenLogprobs | None:
    """What one choice says of the tokens it wrote; None if nothing; raises Unusable on values that cannot be."""
    held = choice.get("logprobs")
    if not isinstance(held, Mapping):
        return None
    content, tokens, values = held.get("content"), held.get("tokens"), held.get("token_logprobs")
    if isinstance(content, list) and all(isinstance(c, Mapping) for c in content):  # chat
        tokens, values = [c.get("token") for c in content], [c.get("logprob") for c in content]
        rows = [_chat_row(c.get("top_logprobs")) for c in content]
    elif isinstance(tokens, list) and isinstance(values, list):
        given = held.get("top_logprobs")
        rows = [top_row(row) for row in given] if isinstance(given, list) else [[] for _ in tokens]
    else:
        return None
    if not len(tokens) == len(values) == len(rows):
        raise Unusable(f"it sent {len(values)} log-probabilities for {len(tokens)} tokens")
    return TokenLogprobs([str(t) for t in tokens], [number(v) for v in values], rows)


def _chat_row(row: object) -> list[TopLogprob]:
    items = [item for item in row if isinstance(item, Mapping)] if isinstance(row, list) else []
    return top_row({str(item.get("token")): item.get("logprob") for item in items})


def record(text: str, held: TokenLogprobs | None, reason: object, settings: ServerSettings) -> dict[str, Any]:
    """Fields of a Generation that a reply decides."""
    if held is not None and len(held.values) > 1 and not any(held.values):
        held = None  # all exactly 0: made up, or of a distribution already cut down to one token
    total, mean = sums(held.values) if held else (None, None)
    return {
        "text": text,
        "token_ids": None,
        "token_logprobs": held.values if held else None,
        "sequence_logprob": total,
        "mean_logprob": mean,
        "finish_reason": reason if isinstance(reason, str) else "unknown",
        "target_calls": None,
        "tokens": held.tokens if held else None,
        "top_logprobs": [row[: settings.top_logprobs] for row in held.rows] if held and settings.top_logprobs else None,
        **(settings.form.judge(text) if settings.form is not None else {}),
    }
