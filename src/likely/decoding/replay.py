"""What a drafter of fixed drafts would have achieved on a recorded answer, without a model.

Under greedy and keyed decoding the rounds of such a drafter depend on the text alone: walk each draft against the
answer, emit what was kept and one more token, observe.  Exact for any model that gave the answer, up to the tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from likely.decoding.accept import matched_walk
from likely.decoding.draft import NO_DRAFT, DraftSource, Draw, Law
from likely.errors import CapabilityError
from likely.intervals import bootstrap_ratio

PAST_THE_END = -1


@dataclass(frozen=True)
class Rounds:
    """One entry per call of the target: how many drafted tokens were offered and kept.

    draft_s  seconds in the drafter, propose_s those of its proposals
    """

    proposed: list[int]
    accepted: list[int]
    tokens: int
    draft_s: float
    propose_s: float = 0.0

    @property
    def tokens_per_call(self) -> float:
        """Block efficiency τ: emitted tokens per call; 1.0 without drafts."""
        return self.tokens / len(self.accepted)

    @property
    def acceptance_rate(self) -> float | None:
        """Kept share of the drafted tokens; None if nothing was drafted."""
        return sum(self.accepted) / sum(self.proposed) if sum(self.proposed) else None


def replay(
    source: DraftSource, prompt: Sequence[int], answer: Sequence[int], *, budget: int = 10, ended: bool = False
) -> Rounds:
    """Rounds of `source` on an answer (A >= 1 token ids), each with at most `budget` drafted tokens.

    ended  the last token of the answer ended it, so that drafts may reach beyond; otherwise the answer was cut there
           by its limit of tokens, which a draft respects

    The call that reads a prompt of two or more tokens emits the first token, without a draft, as in the live loop.
    """
    if Law.FIXED not in source.laws or not source.free:
        raise CapabilityError(
            f"the drafts of {source.name} depend on a model, so a recorded text cannot be replayed with it: "
            f"run it live (likely generate --drafter)"
        )
    if not answer or not prompt:
        raise ValueError("replay needs a prompt and an answer of at least one token each")
    if budget < 0:
        raise ValueError(f"budget must be >= 0, got {budget}")
    text = [*answer, PAST_THE_END] if ended else list(answer)
    proposed, accepted = [], []
    propose_s, started = 0.0, time.perf_counter()
    drafter = source.begin(list(prompt), Draw())
    draft_s = time.perf_counter() - started
    try:
        done = 0
        while done < len(answer):
            draft = NO_DRAFT
            deepest = budget if ended else len(answer) - done - 1
            if min(budget, deepest) and (done or len(prompt) == 1):
                started = time.perf_counter()
                draft = drafter.propose(min(budget, deepest))
                propose_s += time.perf_counter() - started
                draft = draft.cut(deepest)
            kept, emitted = matched_walk(draft, lambda node, path, at=done: text[at + len(path)])  # type: ignore[misc]
            if emitted[-1] == PAST_THE_END:
                emitted.pop()
            proposed.append(len(draft))
            accepted.append(len(kept))
            done += len(emitted)
            started = time.perf_counter()
            drafter.observe(emitted)
            draft_s += time.perf_counter() - started
    finally:
        started = time.perf_counter()
        drafter.end()
        draft_s += time.perf_counter() - started
    return Rounds(proposed, accepted, len(answer), draft_s + propose_s, propose_s)


@dataclass(frozen=True)
class Trace:
    """A recorded answer and what it answered, as token ids of one tokenizer; `group` puts traces together."""

    prompt: Sequence[int]
    answer: Sequence[int]
    group: str = ""
    ended: bool = False


@dataclass(frozen=True)
class Replayed:
    """One drafter on many traces, in order; sums over all of them."""

    name: str
    budget: int
    rounds: list[Rounds]

    @cached_property
    def tokens(self) -> int:
        return sum(r.tokens for r in self.rounds)

    @cached_property
    def calls(self) -> int:
        return sum(len(r.accepted) for r in self.rounds)

    @property
    def tokens_per_call(self) -> float:
        """τ: all tokens by all calls."""
        return self.tokens / self.calls

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % of τ, bootstrap over traces."""
        return bootstrap_ratio([r.tokens for r in self.rounds], [len(r.accepted) for r in self.rounds])

    @property
    def drafted(self) -> int:
        return sum(sum(r.proposed) for r in self.rounds)

    @property
    def accepted(self) -> int:
        return sum(sum(r.accepted) for r in self.rounds)

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    @property
    def drafted_per_call(self) -> float:
        return self.drafted / self.calls

    @property
    def propose_us(self) -> float:
        """Microseconds per call of the target spent in proposals."""
        return 1e6 * sum(r.propose_s for r in self.rounds) / self.calls

    @property
    def draft_us(self) -> float:
        """Microseconds per emitted token in the drafter, all its work: reading the prompts, proposals, observing."""
        return 1e6 * sum(r.draft_s for r in self.rounds) / self.tokens

    def of(self, traces: Sequence[Trace], group: str) -> Replayed:
        """Only the traces of one group (`traces` as replayed)."""
        rounds = [r for r, trace in zip(self.rounds, traces, strict=True) if trace.group == group]
        return Replayed(self.name, self.budget, rounds)


def replay_all(
    sources: Mapping[str, Callable[[], DraftSource]],
    traces: Sequence[Trace],
    *,
    budgets: Sequence[int] = (10,),
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[Replayed]]:
    """Every drafter on all traces, once per budget.

    sources  name -> makes a fresh source; what it remembers of a trace it has for the next ones, in order
    progress is called with the number of finished traces
    """
    if not traces:
        raise ValueError("replay needs at least one trace")
    found: dict[str, list[Replayed]] = {}
    for name, make in sources.items():
        for budget in budgets:
            source = make()
            rounds = []
            for trace in traces:
                rounds.append(replay(source, trace.prompt, trace.answer, budget=budget, ended=trace.ended))
                if progress:
                    progress(1)
            found.setdefault(name, []).append(Replayed(name, budget, rounds))
    return found
