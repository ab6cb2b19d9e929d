"""What a drafter of fixed drafts would have achieved on a recorded answer, without a model.

Under greedy and keyed decoding the rounds of such a drafter depend on the text alone: walk each draft against the
answer, emit what was kept and one more token, observe.  Exact for any model that gave the answer, up to the tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from likely.decoding.accept import matched_walk
from likely.decoding.draft import DraftSource, Draw, Law


@dataclass(frozen=True)
class Rounds:
    """One entry per call of the target: how many drafted tokens were offered and kept."""

    proposed: list[int]
    accepted: list[int]
    tokens: int
    draft_s: float

    @property
    def tokens_per_call(self) -> float:
        """Block efficiency τ: emitted tokens per call; 1.0 without drafts."""
        return self.tokens / len(self.accepted)

    @property
    def acceptance_rate(self) -> float | None:
        """Kept share of the drafted tokens; None if nothing was drafted."""
        return sum(self.accepted) / sum(self.proposed) if sum(self.proposed) else None


def replay(source: DraftSource, prompt: Sequence[int], answer: Sequence[int], *, budget: int = 10) -> Rounds:
    """Rounds of `source` on an answer (A >= 1 token ids, the end token included if there was one)."""
    if Law.FIXED not in source.laws:
        raise ValueError(f"replay needs a drafter of fixed drafts; the drafts of {source.name} depend on a model")
    if not answer or not prompt:
        raise ValueError("replay needs a prompt and an answer of at least one token each")
    proposed, accepted = [], []
    started = time.perf_counter()
    drafter = source.begin(list(prompt), Draw())
    try:
        done = 0
        while done < len(answer):
            draft = drafter.propose(min(budget, len(answer) - done - 1)).cut(len(answer) - done - 1)
            kept, emitted = matched_walk(draft, lambda node, path, at=done: answer[at + len(path)])  # type: ignore[misc]
            proposed.append(len(draft))
            accepted.append(len(kept))
            drafter.observe(emitted)
            done += len(emitted)
    finally:
        drafter.end()
    return Rounds(proposed, accepted, len(answer), time.perf_counter() - started)
