"""What scoring returns: the log-probability of a given answer, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol


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
    kind             "exact", or "lower_bound": of a diffusion model, an estimate of a bound of log p with a standard
                     error.  It has no token_logprobs, and is no number to compare with an exact one
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
    kind: Literal["exact", "lower_bound"] = "exact"
    standard_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.kind == "exact":
            del values["kind"], values["standard_error"]
        return {**values, "top_logprobs": top_rows(self.top_logprobs)}


class PairScorer(Protocol):
    """What scores (prompt, answer) pairs: a model, one with an adapter, a server that returns log-probabilities."""

    def score_pairs(
        self, pairs: Sequence[tuple[str, str]], *, progress: Callable[[int], None] | None = None
    ) -> list[Scored]: ...


def top_rows(rows: list[list[TopLogprob]] | None) -> list[list[dict[str, Any]]] | None:
    """The alternatives at each position, as JSON has them."""
    if rows is None:
        return None
    return [[{"token_id": t.token_id, "text": t.text, "logprob": t.logprob} for t in row] for row in rows]


def sums(token_logprobs: Sequence[float]) -> tuple[float, float | None]:
    """(sequence_logprob, mean_logprob) of the logprobs of an answer's tokens."""
    total = float(sum(token_logprobs))
    return total, (total / len(token_logprobs) if token_logprobs else None)
