"""What scoring returns: the log-probability of a given answer, token by token."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TopLogprob:
    """One alternative at one position."""

    token_id: int | None
    text: str
    logprob: float


@dataclass(frozen=True)
class Scored:
    """log p(answer | prompt), token by token, in nats.

    token_logprobs   one per token of the answer, natural log, at temperature 1
    sequence_logprob their sum; 0.0 for an answer of no tokens (the empty string is certain to be a prefix)
    mean_logprob     sum / number of tokens; None for an answer of no tokens
    straddles        the first token also holds the end of the prompt (joint tokenisation), so its log-probability
                     covers these characters, too
    context_tokens   tokens before the answer, the beginning-of-sequence token included
    """

    text: str
    token_ids: list[int] | None
    token_logprobs: list[float]
    sequence_logprob: float
    mean_logprob: float | None
    tokens: list[str]
    context_tokens: int | None = None
    straddles: bool = False
    entropies: list[float] | None = None
    top_logprobs: list[list[TopLogprob]] | None = None

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


def plain(record: Any) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    out: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name == "top_logprobs" and value is not None:
            value = [[{"token_id": t.token_id, "text": t.text, "logprob": t.logprob} for t in row] for row in value]
        elif field.name in ("fields", "steering") and value is not None:
            value = [_pointer_first(asdict(found)) for found in value]
        elif field.name == "structure" and value is not None:
            value = asdict(value)
        elif field.name == "value" and value is not None:
            value = to_jsonable_python(value)  # of a pydantic model or a dataclass
        out[field.name] = value
    return out
