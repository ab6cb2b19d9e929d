"""Conformal prediction: sets of classes that hold the right one at least 1 − alpha of the time, for any model.

Split conformal: a score says how badly a label fits, q is a quantile of the scores of n labelled rows, a set holds
every label that scores at most q.  For exchangeable rows, the right label is in the set with a probability between
1 − alpha and 1 − alpha + 1/(n+1) (the upper end for scores without ties).  Shapes: N rows, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from likely.calibration.conformal.quantiles import GroupQuantiles
from likely.calibration.selective import lower_bound
from likely.metrics.checks import Floats, check_labels, check_probs

ConformalScore = Literal["lac", "aps", "raps"]
By = Literal["class", "group"]


def aps_scores(probs: Floats, u: Any = 1.0, *, penalty: float = 0.0, k_reg: int = 0) -> Floats:
    """(N, K) probability of all classes before k in falling order, plus u·p_k.

    u  (N,) uniform in [0, 1] for exact coverage; 0: without p_k itself, 1: with the whole of it
    penalty, k_reg  RAPS adds penalty·max(0, rank − k_reg), ranks from 1: the tail of unlikely classes costs extra
    Ties: the lower class comes first.  Romano, Sesia & Candès 2020, arXiv:2006.02544;  RAPS: Angelopoulos et al. 2021,
    arXiv:2009.14193, eq. 4.
    """
    order = np.argsort(-probs, axis=1, kind="stable")
    falling = np.take_along_axis(probs, order, axis=1)
    share = np.broadcast_to(np.asarray(u, np.float64), len(probs))[:, None]
    ranks = np.arange(1, probs.shape[1] + 1)
    scores = np.cumsum(falling, axis=1) - falling + share * falling + penalty * np.maximum(0, ranks - k_reg)
    found = np.empty_like(probs)
    np.put_along_axis(found, order, scores, axis=1)
    return found


def row_uniforms(rows: Floats, seed: int) -> Floats:
    """(N,) in [0, 1): 53 bits of a hash of each row's numbers and the seed."""
    key = str(seed).encode()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in np.ascontiguousarray(rows)]
    return np.array([int.from_bytes(d, "little") >> 11 for d in digests], np.float64) * 2.0**-53


@dataclass(kw_only=True)
class ConformalSets(GroupQuantiles):
    """Sets of classes with coverage >= 1 − alpha.

    score       "lac" (1 − p: the smallest sets on average, Sadinle et al. 2019), "aps" (cumulated probability) or
                "raps" (the same with a penalty on long sets)
    by          None: one quantile, coverage over all rows;  "class": one per class (coverage for the rows of every
                class);  "group": one per group given to fit and predict
    randomised  aps, raps: with a uniform number per row (coverage is then exact), a hash of the row and the seed, so
                that a row's set is the same in every batch; or without: a class is held where the classes before it
                have less than the quantile (at least 1 − alpha, and no set is empty)
    penalty, k_reg  of raps; 0.01 and 5 are the paper's for ImageNet
    allow_empty False adds the likeliest class to a set that holds none
    Learned: `groups_` (what the quantiles belong to; empty for one), `quantiles_`, `rows_` (how many rows each rests
    on).  A quantile from too few rows is infinite: its sets hold every class, and `fit` warns.
    """

    name: ClassVar[str] = "conformal_sets"
    score: ConformalScore = "lac"
    alpha: float = 0.1
    by: By | None = None
    randomised: bool = True
    penalty: float = 0.01
    k_reg: int = 5
    allow_empty: bool = True
    seed: int = 0

    def fit(self, x: Any, labels: Any, groups: Sequence[Any] | None = None) -> Self:
        """x (N, K) probabilities of rows that trained nothing; groups (N,) strings or whole numbers, for by="group"."""
        probs = check_probs(x)
        y = check_labels(labels, *probs.shape)
        scores = self.scores(probs)[np.arange(len(y)), y]
        keys = list(range(probs.shape[1])) if self.by == "class" else None
        of = [int(k) for k in y] if self.by == "class" else groups
        self.set_quantiles(scores, of, keys)
        return self

    def scores(self, probs: Floats) -> Floats:
        """(N, K) how badly each class fits."""
        if self.score not in get_args(ConformalScore):
            raise ValueError(f'score must be "lac", "aps" or "raps", got "{self.score}"')
        if self.by not in (None, *get_args(By)):
            raise ValueError(f'by must be None, "class" or "group", got "{self.by}"')
        if self.score == "lac":
            return 1 - probs
        u = row_uniforms(probs, self.seed) if self.randomised else 0.0
        return aps_scores(probs, u, penalty=self.penalty if self.score == "raps" else 0.0, k_reg=self.k_reg)

    def predict(self, x: Any, groups: Sequence[Any] | None = None) -> NDArray[np.bool_]:
        """(N, K) which classes are in the set of each row."""
        self.check_fitted("quantiles_")
        probs = check_probs(x)
        scores = self.scores(probs)
        if self.by == "class":
            if probs.shape[1] != len(self.quantiles_):
                raise ValueError(f"probs has {probs.shape[1]} classes, fit saw {len(self.quantiles_)}")
            q = self.quantiles_[None, :]
        else:
            q = self.quantile_of_rows(groups, len(probs))[:, None]
        # a cumulated sum and the same sum in another row differ in the last bits
        sets = scores <= q + 1e-12
        if not self.allow_empty:
            empty = ~sets.any(axis=1)
            sets[empty, probs[empty].argmax(axis=1)] = True
        return sets


@dataclass(frozen=True)
class SetReport:
    """coverage with its 95 % interval (Clopper-Pearson); mean_size in classes; empty, single: shares of sets of 0 and 1
    classes; worst_class: the coverage of the class that is covered worst (None: no class has 10 rows)."""

    n: int
    coverage: float
    low: float
    high: float
    mean_size: float
    empty: float
    single: float
    worst_class: float | None


def set_report(sets: NDArray[np.bool_], labels: Any) -> SetReport:
    """Coverage and size of sets (N, K) against the right classes (N,)."""
    y = check_labels(labels, *sets.shape)
    held = sets[np.arange(len(y)), y]
    covered, n, sizes = int(held.sum()), len(y), sets.sum(axis=1)
    by_class = [float(held[y == k].mean()) for k in np.unique(y) if (y == k).sum() >= 10]
    return SetReport(
        n, covered / n, lower_bound(covered, n, 0.025), 1 - lower_bound(n - covered, n, 0.025),
        float(sizes.mean()), float((sizes == 0).mean()), float((sizes == 1).mean()), min(by_class, default=None),
    )  # fmt: skip
