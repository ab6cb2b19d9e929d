"""Seconds of a call of a model, learned while it runs."""

from __future__ import annotations

from collections import deque

import numpy as np

from likely.metrics.checks import Floats
from likely.runtimes.cost_curve import CostCurve
from likely.runtimes.step_cost import StepCost

TRIES = 3  # of a call size before its measured cost is believed


class CallCosts:
    """Seconds of a call on n positions, linear between the sizes seen.

    Each size counts with the 30 % quantile of its recent calls: what disturbs a call only adds time.  Sizes not yet
    seen take a stored cost curve, and the largest prefill, which computes fewer rows of logits.  Where a `StepCost` is
    known, by itself or of the curve, it predicts, so that number and length of the texts count, too; what is learned is
    how many times its prediction calls of a size really take.

    growth  beyond the largest size seen a position costs at least this share of the mean cost of one
    """

    def __init__(self, curve: CostCurve | None = None, *, step: StepCost | None = None, growth: float = 1 / 4):
        self.step = step or (curve.step_cost if curve is not None else None)
        self._growth = growth
        self._recent: dict[int, deque[float]] = {}
        self._typical: dict[int, float] = {}
        self._prior: dict[int, float] = {}
        self._points: tuple[Floats, Floats, np.ndarray] | None = None
        if curve is not None and self.step is None:
            for n in sorted({r.positions for r in curve.rows if r.sequences == 1 and r.kind == "decode"}):
                self._prior[n] = curve.seconds(n)

    def _base(self, positions: int, sequences: int, context: float) -> float:
        """What is learned are multiples of this."""
        if self.step is None:
            return 1.0
        return max(float(self.step.seconds(sequences, positions, context)), 1e-9)

    def record(self, positions: int, seconds: float, *, sequences: int = 1, context: float = 0) -> None:
        """A call that computed logits for each of its positions; context: tokens kept by all its sequences."""
        times = self._recent.setdefault(positions, deque(maxlen=15))
        times.append(seconds / self._base(positions, sequences, context))
        typical = sorted(times)[3 * len(times) // 10]
        if typical != self._typical.get(positions):
            self._typical[positions] = typical
            self._points = None

    def record_prefill(self, positions: int, seconds: float) -> None:
        if self.step is None and positions > max(self._prior, default=8):
            self._prior[positions] = seconds
            self._points = None

    @property
    def known(self) -> bool:
        seen = len(self._recent.get(1, ())) >= 3 or len(self._recent) > 1
        return seen or 1 in self._prior or self.step is not None

    def tries(self, positions: int) -> int:
        """Calls seen of about this size."""
        return sum(len(t) for n, t in self._recent.items() if 3 * n >= 2 * positions and 2 * n <= 3 * positions)

    def seconds(self, positions: np.ndarray, *, sequences: int = 1, context: float = 0) -> Floats:
        """Predicted seconds, one per entry, for increasing positions."""
        if self._points is None:
            known = self._prior | self._typical
            seen = sorted(known)
            tried = np.array([len(self._recent.get(n, ())) >= TRIES for n in seen], np.bool_)
            self._points = np.array(seen, np.float64), np.array([known[n] for n in seen]), tried
        sizes, times, settled = self._points
        if self.step is not None:
            predicted = self.step.seconds(sequences, positions, context)
            if not settled.any():
                return predicted
            return np.maximum.accumulate(predicted * np.interp(positions, sizes[settled], times[settled]))
        # a size seen a few times only may have been disturbed: what a larger call did, it can
        reachable = np.minimum.accumulate(times[::-1])[::-1]
        times = np.where(settled, times, reachable)
        out = np.interp(positions, sizes, times)
        slope = times[0] * self._growth if len(sizes) == 1 else (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
        return out + np.maximum(positions - sizes[-1], 0) * max(slope, times[-1] / sizes[-1] * self._growth)
