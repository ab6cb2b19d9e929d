"""Conformal p-values: how unusual a score is beside calibration scores, and thresholds and rates that follow from it.

For a score that is exchangeable with the n calibration scores, P(p <= t) <= t for every t; with ties broken at random
p is uniform.  The promise is on average over calibration sets: `rate_spread` says how far one of them may be off.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any, Literal, Self, get_args, overload

import numpy as np
from scipy.special import betaincinv

from likely.calibration.conformal.quantiles import check_alpha, conformal_quantile
from likely.errors import DataError, check_choice
from likely.metrics.checks import Floats, as_floats, check_share

Side = Literal["greater", "less"]
Ties = Literal["random", "conservative"]


@overload
def conformal_pvalue(
    scores: float, calibration: Any, *, side: Side = ..., ties: Ties = ..., rng: np.random.Generator | None = ...
) -> float: ...
@overload
def conformal_pvalue(
    scores: Any, calibration: Any, *, side: Side = ..., ties: Ties = ..., rng: np.random.Generator | None = ...
) -> Floats: ...


def conformal_pvalue(
    scores: Any,
    calibration: Any,
    *,
    side: Side = "greater",
    ties: Ties = "random",
    rng: np.random.Generator | None = None,
) -> Any:
    """The p-value of each score, a number or (N,), against calibration scores (n,).

    side   what is unusual: "greater", p is near 0 where a score exceeds most calibration scores; "less": near 0 where
           it lies below them
    ties   "conservative": (1 + #{s_i >= s}) / (n + 1), for side="greater"
           "random": (#{s_i > s} + u (1 + #{s_i = s})) / (n + 1), u uniform on (0, 1] from `rng`: exactly uniform
    Only the order of the scores counts: any rising map of both leaves p as it is.  -inf and inf are scores, NaN is not.
    Vovk, Gammerman & Shafer 2005, eq. 2.20 (conservative) and 2.27 (smoothed).
    """
    check_choice("side", side, get_args(Side))
    check_choice("ties", ties, get_args(Ties))
    known = np.sort(_oriented(as_floats(calibration, "calibration", 1), side))
    values = np.asarray(scores, np.float64)
    asked = _oriented(as_floats(np.atleast_1d(values), "scores", 1), side) if values.size else values
    below, upto = known.searchsorted(asked, "left"), known.searchsorted(asked, "right")
    p = _pvalue(len(known), below, upto, ties, rng)
    return float(p[0]) if values.ndim == 0 else p


def _pvalue(n: int, below: Any, upto: Any, ties: Ties, rng: np.random.Generator | None) -> Any:
    """From how many of the n sorted scores are less than a score, and how many are not greater."""
    if ties == "conservative":
        return (1 + n - below) / (n + 1)
    if rng is None:
        raise ValueError('ties="random" needs rng=: numpy.random.default_rng(seed), or take ties="conservative"')
    u = 1 - rng.random(np.shape(below))
    return (n - upto + u * (1 + upto - below)) / (n + 1)


def _oriented(scores: Floats, side: Side) -> Floats:
    return scores if side == "greater" else -scores


def pvalue_threshold(calibration: Any, alpha: float, *, side: Side = "greater") -> float:
    """t such that the conservative p-value of s is <= alpha exactly where s > t ("greater"), or s < t ("less").

    Infinite where n < (1 - alpha) / alpha: then no p-value is so small.
    """
    check_choice("side", side, get_args(Side))
    scores = _oriented(as_floats(calibration, "calibration", 1), side)
    quantile = conformal_quantile(scores, alpha)
    return quantile if side == "greater" else -quantile


def rate_spread(n: int, alpha: float, *, level: float = 0.95) -> tuple[float, float]:
    """(low, high): where P(p <= alpha | calibration scores) lies with probability `level` over sets of n scores.

    Quantiles of Beta(a, n + 1 - a), a = alpha (n + 1), exact for whole a and scores without ties; its standard
    deviation is about sqrt(alpha (1 - alpha) / n).  For scores that come in clusters (several of one question) the
    spread is wider.  Vovk 2012, arXiv:1209.2673, section 3.
    """
    check_alpha(alpha)
    if n < 1:
        raise ValueError(f"n must be at least 1 calibration score, got {n}")
    check_share(level=level)
    a = alpha * (n + 1)
    low, high = betaincinv(a, n + 1 - a, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class OnlineConformal:
    """Calibration scores that grow, one array per group, and p-values against them.

    side, ties  as for `conformal_pvalue`
    window      only the newest so many scores of a group count; None: all
    A score is added in O(n) moves of memory, a p-value takes O(log n).
    """

    def __init__(self, *, side: Side = "greater", ties: Ties = "random", window: int | None = None):
        check_choice("side", side, get_args(Side))
        check_choice("ties", ties, get_args(Ties))
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 score, or None for all, got {window}")
        self.side, self.ties, self.window = side, ties, window
        self._sorted: dict[Hashable, list[float]] = {}
        self._arrived: dict[Hashable, deque[float]] = {}

    @property
    def groups(self) -> list[Hashable]:
        """Those that have scores, in the order in which they came."""
        return list(self._sorted)

    def scores(self, group: Hashable = "") -> Floats:
        """The scores of a group that count, oldest first."""
        return np.array(self._arrived.get(group, ()), np.float64)

    def add(self, scores: Any, group: Hashable = "") -> None:
        """One score or several, oldest first."""
        values = as_floats(np.atleast_1d(np.asarray(scores, np.float64)), "scores", 1)
        arrived, ordered = self._arrived.setdefault(group, deque()), self._sorted.setdefault(group, [])
        for value in values.tolist():
            arrived.append(value)
            insort(ordered, value if self.side == "greater" else -value)
            if self.window is not None and len(arrived) > self.window:
                oldest = arrived.popleft()
                del ordered[bisect_left(ordered, oldest if self.side == "greater" else -oldest)]

    def pvalue(self, score: float, group: Hashable = "", *, rng: np.random.Generator | None = None) -> float:
        """As `conformal_pvalue` of one score; ValueError for a group without scores."""
        ordered = self._sorted.get(group)
        if not ordered:
            known = ", ".join(str(g) for g in self._sorted) or "none"
            raise ValueError(f"group {group!r} has no calibration scores (groups that have some: {known})")
        if np.isnan(score):
            raise ValueError("score is not a number (NaN)")
        asked = score if self.side == "greater" else -score
        below, upto = bisect_left(ordered, asked), bisect_right(ordered, asked)
        return float(_pvalue(len(ordered), below, upto, self.ties, rng))

    def threshold(self, alpha: float, group: Hashable = "") -> float:
        """`pvalue_threshold` of the group's scores."""
        return pvalue_threshold(self.scores(group), alpha, side=self.side)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; groups must be strings or whole numbers."""
        groups = [[group, list(arrived)] for group, arrived in self._arrived.items()]
        return {"side": self.side, "ties": self.ties, "window": self.window, "groups": groups}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """What `to_dict` gave; DataError says what is wrong with it."""
        try:
            found = cls(side=record["side"], ties=record["ties"], window=record["window"])
            for group, scores in record["groups"]:
                found.add(scores, group)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"these are no saved calibration scores: {error}") from None
        return found
