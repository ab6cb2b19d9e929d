"""What a caller asks of the loop, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from likely.decoding.constraint import Constraint, LogitsProcessor
from likely.decoding.drafting.protocol import FIXED_ONLY, DraftDistribution, DraftSource, SamplingContext, Verification
from likely.decoding.drafting.table import drafter_names
from likely.decoding.options import check_whole
from likely.decoding.sampling import Sampling, noise_of
from likely.decoding.text import TextStream
from likely.errors import CapabilityError, ModelError
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import IntArray, Runtime, Sequence


def longest_text(runtime: Runtime) -> int:
    """Most tokens of one text, the prompt included: what the model was made for, and what its cache holds."""
    return min(runtime.context_length, runtime.limits.tokens_held)


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    prompt         token ids, at least one (the beginning-of-sequence token included)
    max_tokens     per sample;  min_tokens: end tokens are impossible before that many
    stop           strings that end the text;  stop_tokens: ids that end it, beside the model's end tokens
    stop_repetition  end a text without a constraint that runs in circles (`text.runs_in_circles`), reason "repetition"
    samples        independent continuations from one prefill; sample i is keyed by first_sample + i
    beams          > 0: beam search of this width, returning the `samples` best;  length_penalty: a finished text is
                   ranked by sequence_logprob / length ** length_penalty, as in transformers
    particles      > 0: sequential Monte Carlo under the constraint with this many weighted texts, all of them returned
    drafter        speculation: guesses that cost no quality
    draft_budget   most drafted tokens per call; "auto": as many as pay, none if none do; "off": 0
    verification   "keyed": the tokens are the same with any drafter (rules M and G).  "rejection", "spectr": their
                   distribution is the same, the tokens depend on the drafter (rules R and K); for drafters that sample
                   from a known q
    constraint     what the text must look like, in its first state
    logits_processors  changes of the logits, in order
    form           for the caller: what the constraint was made from
    healed         bytes of the prompt that are written anew before the text begins (token healing); None: not asked for
    backspace_id   a token that deletes the one before it (a model trained for it, as by SequenceMatch): it is no part
                   of the text, nothing of the prompt is deleted, and tokens and deletions together are at most
                   2 max_tokens.  Nothing of such a text is certain, so that its one event comes at its end
    priority       of those that wait the smaller number begins first;  cache_salt: only prompts with the same one share
                   what the prefix cache keeps
    top_logprobs   alternatives per position;  entropy: that of each position, in nats
    processed      also logprobs of the distribution sampled from
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    stop_repetition: bool = False
    samples: int = 1
    first_sample: int = 0
    beams: int = 0
    length_penalty: float = 1.0
    particles: int = 0
    drafter: DraftSource | None = None
    draft_budget: int | Literal["auto", "off"] = "auto"
    verification: Verification = "keyed"
    constraint: Constraint | None = None
    logits_processors: tuple[LogitsProcessor, ...] = ()
    form: Any = None
    healed: bytes | None = None
    backspace_id: int | None = None
    top_logprobs: int = 0
    entropy: bool = False
    processed: bool = False
    priority: int = 0
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt needs at least one token (this model has no beginning-of-sequence token)")
        check_whole("max_tokens", self.max_tokens)
        check_whole("n", self.samples, shown="samples")
        check_whole("beams", self.beams)
        check_whole("top_logprobs", self.top_logprobs)
        for name, high in (("min_tokens", self.max_tokens), ("particles", 4096)):
            value = getattr(self, name)
            if not (isinstance(value, int) and 0 <= value <= high):
                raise ValueError(f"{name} must be a whole number in [0, {high}], got {value}")
        for name in ("stop_repetition", "entropy"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
        budget = self.draft_budget
        if budget not in ("auto", "off") and not (isinstance(budget, int) and 0 <= budget <= 1024):
            raise ValueError(f'draft_budget must be "auto", "off" or a whole number in [0, 1024], got {budget!r}')
        if self.verification not in ("keyed", "rejection", "spectr"):
            raise ValueError(f'verification must be "keyed", "rejection" or "spectr", got {self.verification!r}')
        if self.backspace_id is not None:
            self._check_backspace(self.backspace_id)
        if self.drafter is not None and self.verification != "keyed":
            needed = {DraftDistribution.IID} if self.verification == "spectr" else set(DraftDistribution) - FIXED_ONLY
            if not needed & self.drafter.distributions:
                able = ", ".join(drafter_names(lambda entry: entry.known_distribution))
                raise CapabilityError(
                    f'verification="{self.verification}" needs a drafter that samples from a known q ({able}); '
                    f'{self.drafter.name} does not: use verification="keyed"'
                )
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
        if self.particles:
            if self.constraint is None:
                raise ValueError("particles need a constraint")
            if self.samples > 1 or self.beams:
                raise ValueError("particles come without samples= and beams=")
            if self.logits_processors:
                raise CapabilityError(
                    'particles (sampler="smc") weigh the model\'s own distribution: drop contrast= and '
                    "logits_processors=, or sample without particles"
                )
            if self.drafter is not None:
                raise CapabilityError(
                    'particles (sampler="smc") grow together, token by token: drop drafter=, or sampler="importance"'
                )

    def _check_backspace(self, token: int) -> None:
        if not isinstance(token, int) or token < 0:
            raise ValueError(f"backspace_id must be a token id >= 0, got {token!r}")
        if token in self.stop_tokens:
            raise ValueError(f"backspace_id {token} is one of the stop_tokens, too: it cannot end the text and go on")
        if self.sampling.greedy:
            raise CapabilityError(
                "greedy decoding with backspace_id would write and delete one token for ever: set temperature > 0"
            )
        others = {
            "beams": self.beams,
            "particles": self.particles,
            "constraint": self.constraint is not None,
            "logits_processors": self.logits_processors,
            "verification": self.verification != "keyed",
        }
        if taken := [name for name, value in others.items() if value]:
            raise CapabilityError(
                f"a text that deletes tokens (backspace_id) takes no {taken[0]}: it goes with sampling, n, stop, "
                f'penalties and any drafter under verification="keyed"'
            )

    @property
    def most_actions(self) -> int:
        """Tokens and deletions of a text that may delete."""
        return 2 * self.max_tokens

    @cached_property
    def noise(self) -> int:
        """What keys the noise of its samples: the seed, and the prompt."""
        return noise_of(self.sampling.seed, self.prompt)

    @cached_property
    def most_drafted(self) -> int | None:
        """Drafted tokens per call; None: as many as pay."""
        if self.draft_budget == "auto":
            return None
        return 0 if self.draft_budget == "off" else self.draft_budget

    @cached_property
    def prompt_ids(self) -> IntArray:
        return np.array(self.prompt, np.int64)

    @property
    def selects(self) -> bool:
        """Whether its continuations are chosen among each other after every step."""
        return bool(self.beams or self.particles)

    def check_runtime(self, runtime: Runtime, held: Sequence | None = None) -> None:
        """Raises if the request can never run here.

        held  a sequence of the runtime that keeps the first tokens of the prompt
        """
        if len(self.prompt) >= longest_text(runtime):
            raise ModelError(
                f"the prompt has {len(self.prompt)} tokens; this model's context is {longest_text(runtime)}: "
                f"shorten it or load the model with a larger context="
            )
        bad = [t for t in self.prompt if not 0 <= t < runtime.vocab_size]
        if bad:
            raise ValueError(f"token id {bad[0]} is outside 0..{runtime.vocab_size - 1}")
        worst = max(self.sampling.logit_bias, default=0)
        if worst >= runtime.vocab_size:
            raise ValueError(f"logit_bias names token {worst}, the vocabulary has {runtime.vocab_size}")
        if max(self.samples, self.beams, self.particles) > 1 and not runtime.capabilities.fork:
            raise CapabilityError(f"several samples from one prompt need a runtime that forks: {kinds_with('fork')}")
        if self.backspace_id is not None:
            if not runtime.capabilities.truncate:
                raise CapabilityError(f"backspace_id needs a runtime that truncates: {kinds_with('truncate')}")
            if self.backspace_id >= runtime.vocab_size:
                raise ValueError(f"backspace_id {self.backspace_id} is outside 0..{runtime.vocab_size - 1}")
        if self.drafter is not None and not runtime.capabilities.trees:
            raise CapabilityError(f"drafts need a runtime with pending tokens: {kinds_with('trees')}")
        constraint = self.constraint
        if constraint is not None and constraint.vocab_size != runtime.vocab_size:
            raise ValueError(
                f"the constraint was made for {constraint.vocab_size} tokens, this model has {runtime.vocab_size}"
            )
        if getattr(constraint, "judges_late", False) and (self.selects or self.verification != "keyed"):
            raise CapabilityError(
                'a monitor that judges tokens when they are chosen takes no beams and only verification="keyed": use '
                'across_trigger="split" and no arity monitor'
            )
        if held is not None and (held.pending or held.length >= len(self.prompt)):
            raise ValueError(
                f"held must keep fewer than the prompt's {len(self.prompt)} tokens and nothing pending, "
                f"it keeps {held.length} (pending: {held.pending})"
            )

    def new_stream(self) -> TextStream:
        """What its text is read from, before any token."""
        return TextStream(self.stop, len(self.healed or b""))

    def sampling_context(self, sample: int) -> SamplingContext:
        """What a drafter knows of how the target samples."""
        return SamplingContext(self.sampling, sample, self.verification, self.noise)


@dataclass(frozen=True)
class Event:
    """News of one sample of one request: emitted tokens, text that became safe, and, once, why it ended.

    tops       alternatives per emitted token, (id, logprob), where the request asked for some
    entropies  of the model's distribution at each of them, in nats, where it asked for that
    drafted    per emitted token whether it had been guessed
    """

    request: int
    sample: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: Finished | None = None
    error: Exception | None = None
    tops: tuple[list[tuple[int, float]], ...] = ()
    entropies: tuple[float, ...] = ()
    drafted: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A whole sample. Logprob fields have one entry per token; `rounds` one per call that emitted: drafts kept.

    target_calls  calls of the model that gave this text tokens;  prefill_calls: those before that read pieces of a long
                 prompt, as many as the runtime and the batch make of it
    log_masses   with a constraint: log of the model's probability of the tokens allowed at each position
    complete     with a constraint: whether the text is whole in its language; one that was cut is not
    approximate  with a constraint: whether some set of allowed tokens was not the exact one
    steering     what the first logits processor that keeps a record (`steps`) noted per token
    particle_log_weight  of a particle: log of its weight; the mean weight of all estimates p(constraint | prompt)
    resamplings  of a particle: how often all were resampled
    cached_tokens  of the prompt, that were kept in the prefix cache
    entropies    of the model's distribution at each token, in nats, where the request asked for them
    actions      of a text that may delete: every token and deletion (backspace_id) in order;  action_logprobs: of each
    """

    reason: str
    text: str
    tokens: list[int]
    logprobs: list[float]
    tops: list[list[tuple[int, float]]]  # per token: (id, logprob), most likely first
    processed: list[float]
    target_calls: int
    proposed: int
    rounds: list[int]
    log_masses: list[float] = field(default_factory=list)
    complete: bool | None = None
    approximate: bool = False
    particle_log_weight: float | None = None
    resamplings: int = 0
    steering: list[Any] | None = None
    prefill_calls: int = 0
    cached_tokens: int = 0
    entropies: list[float] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    action_logprobs: list[float] = field(default_factory=list)
    backspace_id: int | None = None

    @property
    def accepted(self) -> int:
        return sum(self.rounds)

    @property
    def drafted(self) -> list[bool]:
        """Per token whether it had been guessed: of each call the guesses that were kept, then the model's own."""
        marks = [guessed for kept in self.rounds for guessed in [*[True] * kept, False]]
        if self.backspace_id is not None:
            stack: list[bool] = []
            for action, mark in zip(self.actions, marks, strict=False):
                if action == self.backspace_id:
                    stack.pop()
                else:
                    stack.append(mark)
            marks = stack
        return (marks + [False] * len(self.tokens))[: len(self.tokens)]
