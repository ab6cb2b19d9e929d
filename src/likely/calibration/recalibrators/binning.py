"""Maps with few values: histogram binning, and the scaling-binning calibrator."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import scipy

from likely.calibration.recalibrators.protocol import Fitted, Input, Learned
from likely.calibration.recalibrators.sigmoid import as_score, fit_platt
from likely.errors import DataError, check_choice
from likely.metrics.checks import Floats

ROWS = 20  # a bin


@dataclass(kw_only=True, eq=False)
class Histogram(Fitted):
    """The share of right rows of the bin that a value falls into.

    bins     how many at most (tied values stay in one bin, so that there may be fewer); at least 20 rows a bin
    binning  "mass": equal numbers of rows;  "width": equal parts of [0, 1], and a bin without rows gives its centre
    input    "confidence" (N,) in [0, 1], or "score" (N,) with equal mass
    Zadrozny and Elkan 2001, "Obtaining calibrated probability estimates".
    Learned: `edges_` (B − 1,): bin i holds values in (edges_[i−1], edges_[i]];  `values_` (B,).
    """

    name: ClassVar[str] = "histogram"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {
        "edges_": Learned("E", least=0, increasing=True), "values_": Learned("B", low=0, high=1),
    }  # fmt: skip

    bins: int = 15
    binning: Literal["mass", "width"] = "mass"
    input: Input = "confidence"

    def fit(self, x: Any, labels: Any) -> Self:
        values, correct = self.checked_binary(x, labels)
        check_choice("binning", self.binning, ("mass", "width"))
        if self.binning == "width" and self.input == "score":
            raise ValueError('bins of equal width divide [0, 1]: for scores use binning="mass"')
        check_rows(len(values), self.bins, self.name)
        self.edges_ = mass_edges(values, self.bins) if self.binning == "mass" else np.arange(1, self.bins) / self.bins
        where = np.searchsorted(self.edges_, values, side="left")
        count = np.bincount(where, minlength=len(self.edges_) + 1)
        right = np.bincount(where, weights=correct, minlength=len(count))
        few = int(((count > 0) & (count < ROWS)).sum())
        if few and self.binning == "width":
            warnings.warn(f"{few} of {len(count)} bins hold fewer than {ROWS} rows: use binning=mass", stacklevel=2)
        centres = (np.arange(len(count)) + 0.5) / len(count)
        self.values_ = np.where(count > 0, right / np.maximum(count, 1), centres)
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return self.values_[np.searchsorted(self.edges_, self.checked(x), side="left")]

    def restore(self, learned: Any) -> Self:
        super().restore(learned)
        check_steps(self.edges_, self.values_)
        return self


def check_rows(rows: int, bins: int, name: str) -> None:
    if not isinstance(bins, int | np.integer) or isinstance(bins, bool) or bins < 1:
        raise ValueError(f"bins must be a whole number >= 1, got {bins!r}")
    if rows < ROWS * bins:
        raise ValueError(
            f"{name} needs {ROWS} rows a bin, {ROWS * bins} for {bins} bins, got {rows}: fewer bins, or platt or beta"
        )


def check_steps(edges: Floats, values: Floats) -> None:
    if len(values) != len(edges) + 1:
        raise DataError(f"learned.values_: has {len(values)} entries where {len(edges) + 1} are needed")


def mass_edges(values: Floats, bins: int) -> Floats:
    """(at most bins − 1,) edges that leave equal numbers of rows between them; a value is in one bin only.

    Each edge lies halfway between two neighbouring values; of tied values the whole group stays in the lower bin.
    """
    rising = np.sort(values)
    last = np.array([part[-1] for part in np.array_split(rising, bins)[:-1]])
    after = np.searchsorted(rising, last, side="right")
    last, after = last[after < len(rising)], after[after < len(rising)]
    middle = last + (rising[after] - last) / 2
    return np.unique(np.where(middle < rising[after], middle, last))  # between two neighbouring floats there is none


@dataclass(kw_only=True, eq=False)
class ScalingBinning(Fitted):
    """Platt's map g, then the mean of g over the bin that g(x) falls into: few values, each with little variance.

    Half of the rows (chosen with `seed`) fit g, the others make bins of equal mass of g, whose values are means of g,
    not of labels.  Kumar, Liang and Ma 2019, arXiv:1909.10155, section 4.
    bins   how many at most; at least 20 rows of the second half a bin
    Learned: `a_`, `b_` of g;  `edges_` (B − 1,) and `values_` (B,) of its bins, in probabilities.
    """

    name: ClassVar[str] = "scaling_binning"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {
        "a_": Learned(), "b_": Learned(),
        "edges_": Learned("E", least=0, low=0, high=1, increasing=True), "values_": Learned("B", low=0, high=1),
    }  # fmt: skip

    bins: int = 10
    seed: int = 0
    input: Input = "confidence"

    def fit(self, x: Any, labels: Any) -> Self:
        values, correct = self.checked_binary(x, labels)
        order = np.random.default_rng(self.seed).permutation(len(values))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        check_rows(len(second), self.bins, f"the half of {self.name} that is binned")
        score = as_score(values, self.input)
        self.a_, self.b_ = fit_platt(score[first], correct[first].astype(np.float64))
        scaled = scipy.special.expit(self.a_ * score[second] + self.b_)
        self.edges_ = mass_edges(scaled, self.bins)
        where = np.searchsorted(self.edges_, scaled, side="left")
        self.values_ = np.bincount(where, weights=scaled) / np.bincount(where)
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        scaled = scipy.special.expit(self.a_ * as_score(self.checked(x), self.input) + self.b_)
        return self.values_[np.searchsorted(self.edges_, scaled, side="left")]

    def restore(self, learned: Any) -> Self:
        super().restore(learned)
        check_steps(self.edges_, self.values_)
        return self
