"""Goodput: tokens that a step emits by expectation, per second of the step; and the draft lengths that maximise it.

SmartSpec: Liu et al. 2024, arXiv:2406.14066.  Pure functions of expected gains and predicted seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from likely.metrics.checks import Floats
from likely.runtimes.protocol import IntArray
from likely.runtimes.step_cost import StepCost

DEEPEST = 16  # most tokens that are drafted by a source that costs time
SPARE = 0.05  # of the tokens per second of decoding may be given for tokens that come sooner while prompts are read


def expected_tokens(alpha: ArrayLike, k: int) -> float:
    """ℓ(α, k) = Σ_{i=0..k} Π_{j<=i} α_j: expected tokens of one verification, the target's own token included.

    alpha  P(a drafted token is accepted | those before it were): one number, or one per position (at least k)
    """
    return 1.0 + float(survival(alpha, k).sum())


def survival(alpha: ArrayLike, k: int) -> Floats:
    """(k,) P(the i-th drafted token is kept) = Π_{j<=i} α_j."""
    if k < 0:
        raise ValueError(f"the number of drafted tokens must be >= 0, got {k}")
    rates = np.asarray(alpha, np.float64)
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"an acceptance rate must lie in [0, 1], got {alpha!r}")
    if rates.ndim and len(rates) < k:
        raise ValueError(f"acceptance rates of {len(rates)} positions are too few for {k} drafted tokens")
    return np.asarray(np.cumprod(np.broadcast_to(rates, k) if rates.ndim == 0 else rates[:k]), np.float64)


def choose_length(
    alpha: ArrayLike,
    cost: StepCost,
    *,
    sequences: int,
    context: float,
    k_max: int,
    draft: StepCost | None = None,
    matched: int | None = None,
    prefill: int = 0,
    margin: float = 1.0,
) -> int:
    """The one number of drafted tokens for all sequences of a step whose goodput is largest; 0 where none pays.

    context  tokens that the sequences keep, all together;  prefill: tokens of prompts in the same step
    draft    cost of a step of the draft model, of which k tokens need k; None: drafting is free
    matched  how many of the sequences have a draft at all (prompt lookup); None: all
    margin   speculation must promise that many times the goodput of plain decoding
    """
    if sequences < 1 or k_max < 0 or context < 0 or prefill < 0:
        raise ValueError(
            f"expected sequences >= 1, k_max, context and prefill >= 0, got {sequences}, {k_max}, {context}, {prefill}"
        )
    drafting = sequences if matched is None else matched
    if not 0 <= drafting <= sequences:
        raise ValueError(f"matched must lie in 0..{sequences}, got {matched}")
    k = np.arange(k_max + 1)
    emitted = sequences + drafting * np.concatenate([[0.0], np.cumsum(survival(alpha, k_max))])
    seconds = cost.seconds(sequences, sequences + drafting * k + prefill, context)
    if draft is not None and drafting:
        seconds = seconds + k * draft.seconds(drafting, drafting, context * drafting / sequences)
    rate = emitted / seconds
    best = int(rate.argmax())
    return best if best and rate[best] >= margin * rate[0] else 0


def draft_lengths(
    gains: Sequence[Floats],
    batch: StepShape,
    *,
    room: int,
    level_seconds: Callable[[IntArray], Floats] | None = None,
    margin: float = 1.0,
    uniform: bool = False,
) -> tuple[list[int], float]:
    """(how many tokens of each request's draft go into the step, how many of all those will be kept by expectation).

    gains    per request: expected kept tokens that its i-th drafted token adds; a later one is never worth more
    room     most drafted tokens
    level_seconds  (m,) numbers of sequences -> seconds in which a draft model extends the drafts of that many by one
    uniform  all requests get one length (or all that they have): the paper's batch granularity

    Water-filling: tokens are taken in the order of their worth, over all requests, as far as goodput is largest.  Every
    prefix of that order is compared, so costs need not be convex; and every depth of the drafts, where a level of them
    costs time, which the few texts that are worth a further level may not be worth.
    """
    sizes = [len(each) for each in gains]
    nothing = [0] * len(gains)
    if not sum(sizes) or room <= 0:
        return nothing, 0.0
    request = np.repeat(np.arange(len(gains)), sizes)
    level = np.concatenate([np.arange(size) for size in sizes])
    gain = np.concatenate([np.asarray(each, np.float64) for each in gains])
    worth = np.zeros(len(gain)) if uniform else np.concatenate([np.minimum.accumulate(g) for g in gains if len(g)])
    order = np.lexsort((request, level, -worth))
    of_level = None if level_seconds is None else np.concatenate([[0.0], level_seconds(np.arange(1, len(gains) + 1))])
    depths = [max(sizes)] if of_level is None else range(1, min(max(sizes), DEEPEST) + 1)
    for goodput in batch.criteria():
        most, plain, falling = 0.0, 0.0, 0
        taken, total = order[:0], 0.0
        for depth in depths:
            these = order[level[order] < depth][:room]
            kept = np.concatenate([[0.0], np.cumsum(gain[these])])
            drafting = np.zeros(len(kept))
            if of_level is not None:
                before = _earlier_in_level(level[these])
                drafting[1:] = np.cumsum(of_level[before + 1] - of_level[before])
            rate = goodput(kept, drafting)
            if uniform and len(these) > 1:
                rate[1:-1][np.diff(level[these]) == 0] = 0.0  # the batch would be cut within a level
            best, plain = int(rate.argmax()), float(rate[0])
            falling += 1
            if rate[best] > most:
                most, falling, taken, total = float(rate[best]), 0, these[:best], float(kept[best])
            if falling == 2:
                break
        if len(taken) and most >= margin * plain:
            return np.bincount(request[taken], minlength=len(gains)).tolist(), total
    return nothing, 0.0


@dataclass(frozen=True)
class StepShape:
    """What a step does beside verifying drafts.

    seconds  (n,) numbers of drafted tokens -> predicted seconds of decoding, without prompts that are read beside
    emitted  tokens that it emits without drafts
    whole_s  the same of all of the step, where it reads prompts
    others   texts that do not decode yet and wait for its end
    """

    seconds: Callable[[IntArray], Floats]
    emitted: float
    whole_s: Callable[[IntArray], Floats] | None = None
    others: int = 0

    def criteria(self) -> list[Callable[[Floats, Floats], Floats]]:
        """What is to be as large as possible, the second where the first is largest without drafts.

        Functions of (N,) tokens kept of 0 .. N-1 drafted ones, and the seconds of drafting these.  First tokens per
        second of decoding, so that drafts never cost throughput.  Then, where prompts are read in the same step, a
        token that is kept saves its text a long step, and its own time is lost by all texts:
        (emitted + others + kept) / whole_s, but not where decoding loses more than `SPARE`.
        """
        return [self._alone] if self.whole_s is None else [self._alone, self._beside]

    def _alone(self, kept: Floats, drafting_s: Floats) -> Floats:
        return (self.emitted + kept) / (self.seconds(np.arange(len(kept))) + drafting_s)

    def _beside(self, kept: Floats, drafting_s: Floats) -> Floats:
        assert self.whole_s is not None
        alone = self._alone(kept, drafting_s)
        whole = (self.emitted + self.others + kept) / (self.whole_s(np.arange(len(kept))) + drafting_s)
        return np.where(alone >= (1 - SPARE) * alone[0], whole, 0.0)


def _earlier_in_level(level: IntArray) -> IntArray:
    """(n,) how many entries before this one are of the same level."""
    by_level = np.argsort(level, kind="stable")
    grouped = level[by_level]
    first = np.searchsorted(grouped, grouped)
    earlier = np.empty(len(level), np.int64)
    earlier[by_level] = np.arange(len(level)) - first
    return earlier


def schedule_by_batch(
    alpha: ArrayLike,
    cost: StepCost,
    *,
    context: float,
    k_max: int,
    batch_max: int,
    draft: StepCost | None = None,
    margin: float = 1.0,
) -> list[list[int]]:
    """[[first batch size, last batch size, k], ...]: `choose_length` for every batch size up to batch_max.

    The form of vLLM's `num_speculative_tokens_per_batch_size`.  context: tokens that each sequence keeps.
    """
    if batch_max < 1:
        raise ValueError(f"the largest batch must be >= 1, got {batch_max}")
    rows: list[list[int]] = []
    for size in range(1, batch_max + 1):
        k = choose_length(alpha, cost, sequences=size, context=size * context, k_max=k_max, draft=draft, margin=margin)
        if rows and rows[-1][2] == k:
            rows[-1][1] = size
        else:
            rows.append([size, size, k])
    return rows
