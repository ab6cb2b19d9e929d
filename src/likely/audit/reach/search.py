"""Search for a control that forces a target: exhaustive, greedy back-generation, GCG, random; and the back-off of them.

A search can only show that a target is reached, never that it is not, but for `exhaustive`.  Bhargava et al. 2023,
arXiv:2310.04444; GCG: Zou et al. 2023, arXiv:2307.15043.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from likely.audit.reach.gradient import ControlGradient
from likely.audit.reach.problem import CandidateTest, EvaluatedControls, ReachProblem
from likely.errors import CapabilityError, check_choice
from likely.runtimes.protocol import Runtime
from likely.tokenizers.protocol import Tokenizer, decode

LENGTHS = (1, 2, 3, 4, 6, 8, 10)
BATCH = 4096  # controls of an exhaustive search that are made at one time
MOST_EXHAUSTIVE = 2**24


@dataclass(frozen=True)
class ControlResult:
    """The best control that was found.

    ids, k           its tokens, and how many
    loss, base_loss  mean −log p of the target's tokens with it and with the empty control, in nats
    method           what found it: "none" (the empty control), "exhaustive", "greedy", "gcg", "random"
    evaluations      controls evaluated exactly, those of shorter lengths among them
    token_reachable  greedy decoding after its token ids gives the target
    text, text_reachable  its text; whether the target is also reached after that text is tokenised anew.  None without
                     a tokenizer
    """

    ids: tuple[int, ...]
    loss: float
    base_loss: float
    method: str
    evaluations: int
    token_reachable: bool
    text: str | None = None
    text_reachable: bool | None = None

    @property
    def k(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ControlCandidate:
    """What one method made of one length: a control (k,), its loss, whether it reaches the target."""

    ids: tuple[int, ...]
    loss: float
    reached: bool

    def better_than(self, other: ControlCandidate) -> bool:
        return (not self.reached, self.loss) < (not other.reached, other.loss)


class ControlSearch(Protocol):
    """One method: from the best shorter control to one of k tokens."""

    @property
    def name(self) -> str: ...

    def __call__(
        self, test: CandidateTest, k: int, start: ControlCandidate, allowed: NDArray[np.int64], rng: np.random.Generator
    ) -> ControlCandidate: ...


@dataclass(frozen=True)
class Exhaustive:
    """Every control of k tokens, in lexicographic order, until one reaches the target: exact, and |V|^k evaluations."""

    name = "exhaustive"

    def __call__(
        self, test: CandidateTest, k: int, start: ControlCandidate, allowed: NDArray[np.int64], rng: np.random.Generator
    ) -> ControlCandidate:
        best: ControlCandidate | None = None
        for controls in in_batches(allowed, k):
            found = _best(test, controls)
            best = found if best is None or found.better_than(best) else best
            if best.reached:
                break
        assert best is not None
        return best


@dataclass(frozen=True)
class GreedyBack:
    """Greedy back-generation: put the token with the lowest loss in front, until there are k.

    gradient  ranks the tokens by the first-order change of the loss at a random first token, and only the `top` best
              are evaluated; None: all |V| are
    """

    gradient: ControlGradient | None = None
    top: int = 512
    name = "greedy"

    def __call__(
        self, test: CandidateTest, k: int, start: ControlCandidate, allowed: NDArray[np.int64], rng: np.random.Generator
    ) -> ControlCandidate:
        best = start
        while len(best.ids) < k:
            firsts = allowed
            if self.gradient is not None and self.top < len(allowed):
                guess = (int(rng.choice(allowed)), *best.ids)
                slopes = self.gradient(test.problem, guess)[0][allowed]
                firsts = np.sort(allowed[np.argsort(slopes, kind="stable")[: self.top]])
            tails = np.tile(np.asarray(best.ids, np.int64), (len(firsts), 1))
            best = _best(test, np.concatenate([firsts[:, None], tails], axis=1))
        return best


@dataclass(frozen=True)
class GCG:
    """Greedy coordinate gradient.

    Each step takes the top-K replacements of each position by −∂L/∂onehot, draws `candidates` controls that differ in
    one position, evaluates them exactly and moves to the best.  Where positions × K is at most `candidates`, all are
    evaluated; none is the current control or evaluated twice (the official code may do both).

    accept    "improve": move only where the loss falls;  "always": to the best candidate, as the official code does.
              Either way the best control ever seen is what is returned
    restarts  other random beginnings after a search without success
    """

    gradient: ControlGradient
    candidates: int = 768
    top: int = 128
    steps: int = 34
    accept: Literal["improve", "always"] = "improve"
    restarts: int = 0
    name = "gcg"

    def __post_init__(self) -> None:
        check_choice("accept", self.accept, ("improve", "always"))
        for name in ("candidates", "top", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def __call__(
        self, test: CandidateTest, k: int, start: ControlCandidate, allowed: NDArray[np.int64], rng: np.random.Generator
    ) -> ControlCandidate:
        kept = list(start.ids)[-k:] if k else []
        best: ControlCandidate | None = None
        for attempt in range(1 + self.restarts):
            tail = kept if attempt == 0 else []
            first = [*rng.choice(allowed, k - len(tail)).tolist(), *tail]
            found = self._descend(test, _best(test, np.asarray([first], np.int64)), allowed, rng)
            best = found if best is None or found.better_than(best) else best
            if best.reached:
                break
        assert best is not None
        return best

    def _descend(
        self, test: CandidateTest, current: ControlCandidate, allowed: NDArray[np.int64], rng: np.random.Generator
    ) -> ControlCandidate:
        best = current
        tried: set[tuple[int, ...]] = {current.ids}
        for _ in range(self.steps):
            if best.reached:
                break
            controls = self._swaps(test.problem, current.ids, allowed, tried, rng)
            if not len(controls):
                break
            found = _best(test, controls)
            if self.accept == "always" or found.better_than(current):
                current = found
            if found.better_than(best):
                best = found
        return best

    def _swaps(
        self, problem: ReachProblem, ids: tuple[int, ...], allowed: NDArray[np.int64],
        tried: set[tuple[int, ...]], rng: np.random.Generator,
    ) -> NDArray[np.int64]:  # fmt: skip
        """(n, k) controls that were not tried, each one token away from `ids`; they count as tried."""
        slopes = self.gradient(problem, ids)[:, allowed]
        top = min(self.top, len(allowed))
        best = allowed[np.argpartition(slopes, top - 1, axis=1)[:, :top]]
        swaps = [(i, int(token)) for i, row in enumerate(best) for token in row if token != ids[i]]
        if len(swaps) > self.candidates:
            swaps = [swaps[j] for j in rng.permutation(len(swaps))]
        controls = []
        for i, token in swaps:
            control = (*ids[:i], token, *ids[i + 1 :])
            if control not in tried:
                tried.add(control)
                controls.append(control)
                if len(controls) == self.candidates:
                    break
        return np.asarray(sorted(controls), np.int64).reshape(len(controls), len(ids))


@dataclass(frozen=True)
class RandomSearch:
    """Controls drawn uniformly, until one reaches the target or `evaluations` are done: the baseline of equal cost."""

    evaluations: int
    batch: int = 64
    name = "random"

    def __call__(
        self, test: CandidateTest, k: int, start: ControlCandidate, allowed: NDArray[np.int64], rng: np.random.Generator
    ) -> ControlCandidate:
        best, left = start, self.evaluations
        while left > 0 and not best.reached:
            controls = rng.choice(allowed, (min(self.batch, left), k))
            found = _best(test, controls)
            best = found if found.better_than(best) or len(best.ids) != k else best
            left -= len(controls)
        return best


@dataclass(frozen=True)
class Backoff:
    """Which method for which length: `short` up to `short_to` tokens, `long` beyond; starts from the best so far."""

    short: ControlSearch
    long: ControlSearch
    short_to: int = 3

    def of_length(self, k: int) -> ControlSearch:
        return self.short if k <= self.short_to else self.long


def backoff(gradient: ControlGradient, *, quick: bool = False) -> Backoff:
    """The paper's protocol: greedy back-generation for k <= 3, then GCG.

    quick  fewer candidates (128 for the greedy part; 48 of K = 64, 20 steps for GCG), for a processor
    """
    if quick:
        return Backoff(GreedyBack(gradient, 128), GCG(gradient, 48, 64, 20), 2)
    return Backoff(GreedyBack(gradient, 512), GCG(gradient))


def search_method(
    name: str, gradient: ControlGradient | None = None, *, quick: bool = True, evaluations: int = 4096
) -> Backoff | ControlSearch:
    """A method by its name: "gcg" (the back-off), "greedy", "random" (so many evaluations a length), "exhaustive"."""
    check_choice("method", name, ("gcg", "greedy", "random", "exhaustive"))
    if name == "gcg":
        if gradient is None:
            raise CapabilityError("gcg needs gradients: give them (gradient_of), or choose greedy")
        return backoff(gradient, quick=quick)
    methods: dict[str, ControlSearch] = {
        "greedy": GreedyBack(), "random": RandomSearch(evaluations), "exhaustive": Exhaustive(),
    }  # fmt: skip
    return methods[name]


def search_control(
    runtime: Runtime,
    problem: ReachProblem,
    method: Backoff | ControlSearch,
    *,
    lengths: Sequence[int] = LENGTHS,
    forbid: Sequence[int] = (),
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    text_consistent: bool = False,
) -> ControlResult:
    """The shortest control of these lengths that makes greedy decoding give the target; else the best one found.

    k = 0 is tried first, then each length, starting from the best shorter control.

    forbid     token ids that a control may not hold
    tokenizer  also says whether the control survives as text
    text_consistent  pass over controls whose text, with that of what follows, is tokenised differently
    """
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ValueError(f"lengths must be rising numbers >= 1, got {list(lengths)}")
    problem.check(runtime.vocab_size, runtime.context_length, max(lengths))
    allowed = np.setdiff1d(np.arange(runtime.vocab_size), np.asarray(list(forbid), np.int64))
    if not len(allowed):
        raise ValueError("every token is forbidden: a control needs some")
    rng = np.random.default_rng(seed)
    if text_consistent and tokenizer is None:
        raise ValueError("text_consistent needs a tokenizer")
    test = CandidateTest(runtime, problem, tokenizer if text_consistent else None)
    base = best = _best(test, np.empty((1, 0), np.int64)) if problem.text(()) else ControlCandidate((), math.inf, False)
    name = "none"
    for k in lengths:
        if best.reached:
            break
        step = method.of_length(k) if isinstance(method, Backoff) else method
        found = step(test, k, best, allowed, rng)
        if found.better_than(best) or not best.ids:
            best, name = found, step.name
    control = ControlResult(best.ids, best.loss, base.loss, name, test.evaluations, best.reached)
    return control if tokenizer is None else with_text(runtime, problem, control, tokenizer)


def with_text(runtime: Runtime, problem: ReachProblem, control: ControlResult, tokenizer: Tokenizer) -> ControlResult:
    """The control with its text, and whether decode(u) ⊕ decode(after), tokenised anew, still reaches the target."""
    text = decode(tokenizer, list(control.ids))
    ids = tokenizer.encode(text + decode(tokenizer, list(problem.after)))
    reached = False
    if ids or problem.before:
        again = ReachProblem(tuple(ids), problem.target, problem.before)
        if len(again.text(())) + len(again.target) <= runtime.context_length:
            reached = bool(CandidateTest(runtime, again)(np.empty((1, 0), np.int64)).reached[0])
    return replace(control, text=text, text_reachable=reached)


def _best(test: CandidateTest, controls: NDArray[np.int64]) -> ControlCandidate:
    found: EvaluatedControls = test(controls)
    i = found.best
    return ControlCandidate(
        tuple(int(t) for t in np.asarray(controls)[i]), float(found.losses[i]), bool(found.reached[i])
    )


def check_exhaustive(tokens: int, k: int) -> None:
    """CapabilityError where tokens^k controls are too many to try."""
    if tokens**k > MOST_EXHAUSTIVE:
        raise CapabilityError(
            f"{tokens}^{k} controls are too many to try all (at most {MOST_EXHAUSTIVE}): search for one instead"
        )


def in_batches(allowed: NDArray[np.int64], k: int) -> Iterator[NDArray[np.int64]]:
    """Every control of k allowed tokens, in lexicographic order, some thousands at a time."""
    check_exhaustive(len(allowed), k)
    controls = itertools.product(allowed.tolist(), repeat=k)
    while batch := list(itertools.islice(controls, BATCH)):
        yield np.asarray(batch, np.int64).reshape(len(batch), k)
