"""The scaling-binning calibrator.  Kumar, Liang and Ma 2019, arXiv:1909.10155, section 4."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import expit

from likely.calibration.histogram import check_rows, check_steps, mass_edges
from likely.calibration.inputs import Floats
from likely.calibration.learned import Learned
from likely.calibration.platt import fit_platt, log_odds
from likely.calibration.recalibrator import Fitted, Input


class ScalingBinning(Fitted):
    """Platt's map g, then the mean of g over the bin that g(x) falls into: few values, each with little variance.

    Half of the rows (drawn by `seed`) fit g, the others make bins of equal mass of g, whose values are means of g, not
    of labels.
    bins   how many at most; at least 20 rows of the second half a bin
    Learned: `a_`, `b_` of g;  `edges_` (B − 1,) and `values_` (B,) of its bins, in probabilities.
    """

    name: ClassVar[str] = "scaling_binning"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {
        "a_": Learned(), "b_": Learned(),
        "edges_": Learned("E", least=0, low=0, high=1, increasing=True), "values_": Learned("B", low=0, high=1),
    }  # fmt: skip
    input: Input = "confidence"

    def __init__(self, *, bins: int = 10, seed: int = 0, input: Input = "confidence"):
        self.bins = bins
        self.seed = seed
        self.input = input

    def fit(self, x: Any, labels: Any) -> Self:
        values, correct = self.checked_binary(x, labels)
        order = np.random.default_rng(self.seed).permutation(len(values))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        check_rows(len(second), self.bins, f"the half of {self.name} that is binned")
        score = self._score(values)
        self.a_, self.b_ = fit_platt(score[first], correct[first].astype(np.float64))
        scaled = expit(self.a_ * score[second] + self.b_)
        self.edges_ = mass_edges(scaled, self.bins)
        where = np.searchsorted(self.edges_, scaled, side="left")
        self.values_ = np.bincount(where, weights=scaled) / np.bincount(where)
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        scaled = expit(self.a_ * self._score(self.checked(x)) + self.b_)
        return self.values_[np.searchsorted(self.edges_, scaled, side="left")]

    def restore(self, learned: Any) -> Self:
        super().restore(learned)
        check_steps(self.edges_, self.values_)
        return self

    def _score(self, values: Floats) -> Floats:
        return log_odds(values) if self.input == "confidence" else values
