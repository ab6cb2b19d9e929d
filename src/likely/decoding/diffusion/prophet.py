"""Prophet: fill the rest of an answer in one step once the model is sure of it.

"Diffusion Language Models Know the Answer Before Decoding", arXiv:2508.19982.  The gap of a position is the difference
of its two largest logits: the log-odds of the best token against the second.  Its mean over a region is compared with a
threshold that falls as decoding goes on.  No further call is made.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from likely.decoding.diffusion.canvas import BoolArray, Canvas
from likely.errors import check_choice
from likely.metrics.checks import Floats
from likely.runtimes.protocol import FloatArray, IntArray

PUBLISHED = ((0.33, 7.5), (0.67, 5.0), (1.0, 2.5))  # up to this share of the steps: this gap, in nats
Thresholds = Sequence[tuple[float, float]] | Callable[[float], float]
Region = Literal["masked"] | tuple[int, int] | Callable[[Canvas], BoolArray]
Aggregate = Literal["mean", "min"] | float


def log_odds_gap(logits: FloatArray) -> Floats:
    """(...,) log p1 - log p2 of the two most likely tokens, from logits (..., V); +inf where one token is possible."""
    if logits.shape[-1] < 2:
        raise ValueError(f"a gap needs a vocabulary of at least 2 tokens, got {logits.shape[-1]}")
    best = np.partition(logits, -2, axis=-1)[..., -2:].astype(np.float64)
    if not np.isfinite(best[..., 1]).all():
        raise FloatingPointError("a gap needs a finite largest logit at every position")
    return np.asarray(best[..., 1] - best[..., 0])


def threshold_at(thresholds: Thresholds, progress: Floats) -> Floats:
    """The threshold of each share of the steps: of the first phase whose end lies behind it; of the last at 1."""
    if callable(thresholds):
        return np.array([float(thresholds(float(r))) for r in progress], np.float64)
    ends, values = (np.array(column, np.float64) for column in zip(*thresholds, strict=True))
    return np.asarray(values[np.minimum(np.searchsorted(ends, progress, side="right"), len(ends) - 1)])


def check_thresholds(thresholds: Thresholds) -> None:
    """ValueError for phases whose ends do not rise to 1; a warning where a threshold is larger than the one before."""
    if callable(thresholds):
        return
    ends, values = [end for end, _ in thresholds], [value for _, value in thresholds]
    if not ends or any(b <= a for a, b in zip([0.0, *ends], ends, strict=False)) or ends[-1] != 1:
        raise ValueError(f"the ends of phases must rise and the last must be 1, got {ends}")
    if np.isnan(values).any():
        raise ValueError(f"thresholds must be numbers, got {values}")
    if any(later > earlier for earlier, later in itertools.pairwise(values)):
        warnings.warn(f"thresholds usually fall as decoding goes on, got {values}", stacklevel=3)


class Prophet:
    """Stop rule of `diffusion_generate`: fill what is masked when the gap of the region reaches the threshold.

    thresholds  (end of the phase as a share of the steps, gap in nats) of each phase, or a function of the share; the
                published ones suit LLaDA-8B: fit those of another model with `fit_thresholds`
    region      "masked": all masked positions; (start, end) of the answer; or a function of the canvas that gives
                (B, L).  Committed positions of it are left out; a region that is all committed is sure
    aggregate   of the gaps of the region: "mean", "min", or a quantile between 0 and 1
    commit      "all": the answer is finished;  "block": only the current block is filled
    end_id      of a "masked" region, positions behind the first one where this token is the most likely are left out:
                models are sure of what stands behind the end of an answer.  None: in `lm` the model's own
    """

    def __init__(
        self, thresholds: Thresholds = PUBLISHED, region: Region = "masked", aggregate: Aggregate = "mean",
        commit: Literal["all", "block"] = "all", *, end_id: int | None = None,
    ):  # fmt: skip
        check_thresholds(thresholds)
        if isinstance(region, str):
            check_choice("region", region, ("masked",))
        elif not callable(region) and not 0 <= region[0] < region[1]:
            raise ValueError(f"a region must be (start, end) with 0 <= start < end, got {region}")
        if isinstance(aggregate, str):
            check_choice("aggregate", aggregate, ("mean", "min"))
        elif not 0 <= aggregate <= 1:
            raise ValueError(f"a quantile must lie in [0, 1], got {aggregate}")
        check_choice("commit", commit, ("all", "block"))
        self.thresholds, self.region, self.aggregate, self.commit, self.end_id = (
            thresholds, region, aggregate, commit, end_id,
        )  # fmt: skip

    def decide(self, logits: FloatArray, canvas: Canvas, progress: Floats) -> BoolArray:
        """(B,) whether each row is sure; logits (B, L, V), progress (B,): step, from 1, over all steps."""
        threshold = threshold_at(self.thresholds, progress)
        return np.asarray((self.gap(logits, canvas) >= threshold) & (threshold < np.inf))  # infinite: never

    def gap(self, logits: FloatArray, canvas: Canvas) -> Floats:
        """(B,) the aggregated gap of the region; +inf where nothing in it is masked."""
        region = self.positions(logits, canvas)
        gaps = log_odds_gap(logits)
        if self.aggregate == "mean":
            count = region.sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                means = np.where(region, gaps, 0.0).sum(axis=1) / count
            return np.where(count > 0, means, np.inf)
        if self.aggregate == "min":
            return np.where(region, gaps, np.inf).min(axis=1)
        with np.errstate(invalid="ignore"):  # between two infinite gaps numpy finds no number
            found = np.array(
                [np.quantile(g[r], self.aggregate) if r.any() else np.inf for g, r in zip(gaps, region, strict=True)]
            )
        return np.where(np.isnan(found), np.inf, found)

    def positions(self, logits: FloatArray, canvas: Canvas) -> BoolArray:
        """(B, L) the masked positions of the region."""
        masked = canvas.masked
        if isinstance(self.region, str):
            if self.end_id is None:
                return masked
            best = np.where(masked, logits.argmax(axis=2), canvas.answers)
            ends = best == self.end_id
            inside = masked & (np.cumsum(ends, axis=1) - ends == 0)
            return np.asarray(inside)
        if callable(self.region):
            found = np.asarray(self.region(canvas), np.bool_)
            if found.shape != masked.shape:
                raise ValueError(f"a region must be {masked.shape}, got {found.shape}")
            return np.asarray(found & masked)
        start, end = self.region
        if end > masked.shape[1]:
            raise ValueError(f"the region {start}..{end} reaches beyond the answer of {masked.shape[1]} tokens")
        place = np.arange(masked.shape[1])
        return np.asarray(masked & (start <= place) & (place < end))


def after_pinned(*, offset: int = 1, length: int = 5) -> Callable[[Canvas], BoolArray]:
    """A region: `length` positions, the first of them `offset` behind the last pinned one ("... the answer is")."""
    if offset < 1 or length < 1:
        raise ValueError(f"offset and length must be >= 1, got {offset} and {length}")

    def region(canvas: Canvas) -> BoolArray:
        if not canvas.pinned.any(axis=1).all():
            raise ValueError("after_pinned needs a pinned token in every row")
        size = canvas.pinned.shape[1]
        first: IntArray = size - 1 - canvas.pinned[:, ::-1].argmax(axis=1)[:, None] + offset
        place = np.arange(size)
        return np.asarray((first <= place) & (place < first + length))

    return region
