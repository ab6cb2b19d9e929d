"""What scoring and generation return: frozen records with the same field names everywhere (API, CLI, server, files)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from likely.scoring.scored import TopLogprob, top_rows

if TYPE_CHECKING:
    from likely.guided.fields import Field, Share


@dataclass(frozen=True, repr=False)
class Generation:
    """One generated text.

    token_ids        every emitted token, the end token included; `text` holds neither end token nor stop string
    token_logprobs   of the model itself (temperature 1, no penalties), one per emitted token, natural log
    finish_reason    "stop" (end token or stop string), "length" (max_tokens), "context" (context full), "repetition"
                     (it ran in circles, with stop_repetition), "cancelled"
    target_calls     calls of the model that gave this text tokens, without those that read the first pieces of a long
                     prompt; None from a server
    processed_logprobs  of the distribution sampled from (after temperature, penalties, truncation), on request
    entropies        of the model's distribution at each token, in nats, with entropy=True
    drafted          per token whether a drafter had guessed it; None where nothing was guessed
    actions          with backspace_id: every token and deletion in order; `token_ids` is what they leave
    steering         with a contrast: what it saw at each token (`guided.contrast.StepInfo`)

    With a constraint, log p(text) = log q(text) + Σ log m exactly, q the model masked and renormalised, token by token:
    token_log_masses  log m per token: the model's probability of what the constraint allowed there
    log_weight        their sum; low where the model did not want to answer in this form
    guided_logprob    log q(text) = sequence_logprob - log_weight
    complete          whether the text is whole; one cut by max_tokens or a stop string may not be
    approximate       some set of allowed tokens was not the exact one, so that log_weight is an estimate
    healing_log_weight  with heal=True: log of the model's probability of the end of the prompt that was written anew
                     (and, where a form follows, that its first token was allowed); no part of the other fields
    value             what the text stands for (a validated object for a schema), None unless complete
    warnings          what of the schema was not held, and whether earlier draws broke it, one line each
    log_evidence, ess  with a sampler for p(text | form): log of the estimate of p(form | prompt), effective sample size
    """

    text: str
    token_ids: list[int] | None
    token_logprobs: list[float] | None
    sequence_logprob: float | None
    mean_logprob: float | None
    finish_reason: str
    target_calls: int | None
    seconds: float
    tokens: list[str] | None = None
    prompt_tokens: int | None = None
    proposed: int = 0  # draft tokens offered to the model and kept by it
    accepted: int = 0
    tokens_per_call: float | None = None  # emitted tokens per call that emitted (block efficiency τ); 1.0 undrafted
    sample: int = 0
    seed: int | None = None
    top_logprobs: list[list[TopLogprob]] | None = None
    processed_logprobs: list[float] | None = None
    entropies: list[float] | None = None
    actions: list[int] | None = None
    drafted: list[bool] | None = None
    steering: list[Any] | None = None
    token_log_masses: list[float] | None = None
    log_weight: float | None = None
    guided_logprob: float | None = None
    complete: bool | None = None
    approximate: bool = False
    value: Any = None
    healing_log_weight: float | None = None
    warnings: tuple[str, ...] = ()
    fields: list[Field] | None = None
    structure: Share | None = None
    log_evidence: float | None = None
    ess: float | None = None

    def __repr__(self) -> str:
        """The text and what matters most; `to_dict` holds all."""
        text = self.text if len(self.text) <= 60 else f"{self.text[:40]}...{self.text[-17:]}"
        count = len(self.token_ids if self.token_ids is not None else self.tokens or [])
        shown = {"sequence_logprob": self.sequence_logprob, **self._more_shown(), "finish_reason": self.finish_reason}
        details = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({text!r}, {count} tokens, {details})"

    def _more_shown(self) -> dict[str, Any]:
        return {} if self.value is None else {"value": self.value}

    def to_dict(self) -> dict[str, Any]:
        return _plain(self)


@dataclass(frozen=True, repr=False)
class Answer(Generation):
    """What `ask` and `chat` return: a generation, and how likely it is right.

    confidence   calibrated probability that the answer is right; None until a calibrator was fitted
    prompt       the text the model really saw, template included
    abstained    the confidence was too low for the threshold and nobody else was asked: `text` is no answer then
    answered_by  name of the model whose answer this is; None: abstained
    why          with a threshold: why the first answer did not reach it
    first        with a fallback: that answer
    """

    confidence: float | None = None
    prompt: str = ""
    system_folded: bool = False
    abstained: bool = False
    answered_by: str | None = None
    why: str = ""
    first: Answer | None = None

    def _more_shown(self) -> dict[str, Any]:
        abstained = {"abstained": True} if self.abstained else {}
        return {**super()._more_shown(), "confidence": self.confidence, **abstained}

    def to_dict(self) -> dict[str, Any]:
        values = _plain(self)
        first = values.pop("first")
        if not self.why:
            del values["why"]
        if first is not None:
            values["first"] = {"text": first.text, "confidence": first.confidence}
        return values


class AnswerStream(ABC):
    """Text pieces of one generation, as an iterator; then `.result`.

    Stopped early (`close()`, or an exception such as Ctrl-C in the consumer), `.result` is the partial text with
    finish_reason "cancelled".

    result  an Answer, or a Generation where a raw prompt was continued;  prompt: the text that the model sees
    """

    prompt = ""
    result: Any = None
    _pieces: Iterator[str]

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def finish(self) -> Any:
        """Run to the end and give the result."""
        for _ in self._pieces:
            pass
        return self.result

    @abstractmethod
    def close(self) -> Any:
        """Stop here; gives the partial result."""


def _pointer_first(field: dict[str, Any]) -> dict[str, Any]:
    """The same fields, in the order in which people read them."""
    return {**{name: field[name] for name in ("pointer", "value") if name in field}, **field}


def _plain(record: Any) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    out: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name == "top_logprobs":
            value = top_rows(value)
        elif field.name in ("fields", "steering") and value is not None:
            value = [_pointer_first(asdict(found)) for found in value]
        elif field.name == "structure" and value is not None:
            value = asdict(value)
        elif field.name == "value" and value is not None:
            value = to_jsonable_python(value)  # of a pydantic model or a dataclass
        out[field.name] = value
    return out
