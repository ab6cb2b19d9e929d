"""What a caller asks of the loop, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from likely.decoding.draft import DraftSource
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    prompt         token ids, at least one (the beginning-of-sequence token included)
    max_tokens     per sample;  min_tokens: end tokens are impossible before that many
    stop           strings that end the text;  stop_tokens: ids that end it, beside the model's end tokens
    samples        independent continuations from one prefill; sample i is keyed by first_sample + i
    beams          > 0: beam search of this width, returning the `samples` best;  length_penalty: a finished text is
                   ranked by sequence_logprob / length ** length_penalty, as in transformers
    drafter, draft_budget   speculation: the tokens are the same with any drafter
    top_logprobs   alternatives per position;  processed: also logprobs of the law sampled from
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    samples: int = 1
    first_sample: int = 0
    beams: int = 0
    length_penalty: float = 1.0
    drafter: DraftSource | None = None
    draft_budget: int = 10
    top_logprobs: int = 0
    processed: bool = False

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt needs at least one token (this model has no beginning-of-sequence token)")
        for name, low, high in (
            ("max_tokens", 1, 2**24),
            ("min_tokens", 0, self.max_tokens),
            ("samples", 1, 4096),
            ("beams", 0, 256),
            ("draft_budget", 0, 1024),
            ("top_logprobs", 0, 1000),
        ):
            value = getattr(self, name)
            if not (isinstance(value, int) and low <= value <= high):
                raise ValueError(f"{name} must be a whole number in [{low}, {high}], got {value}")
        if self.beams:
            if self.samples > self.beams:
                raise ValueError(f"samples must be <= beams ({self.beams}), got {self.samples}")
            if not self.sampling.greedy:
                raise CapabilityError(
                    f"beam search is deterministic: set temperature=0 (got {self.sampling.temperature}), or sample "
                    f"without beams"
                )
            if self.drafter is not None:
                raise CapabilityError("beam search takes no drafter: drop drafter= or beams=")


@dataclass(frozen=True)
class Event:
    """News of one sample of one request: emitted tokens, text that became safe, and, once, why it ended.

    tops  alternatives per emitted token, (id, logprob), where the request asked for some
    """

    request: int
    sample: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: Finished | None = None
    error: Exception | None = None
    tops: tuple[list[tuple[int, float]], ...] = ()


@dataclass(frozen=True)
class Finished:
    """A whole sample. Logprob fields have one entry per token."""

    reason: str
    text: str
    tokens: list[int]
    logprobs: list[float]
    tops: list[list[tuple[int, float]]]  # per token: (id, logprob), most likely first
    processed: list[float]
    target_calls: int
    proposed: int
    accepted: int
