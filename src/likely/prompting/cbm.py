"""Calibration by marginalisation as a recalibrator that needs no labels, from a batch or as inputs come in."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from likely.calibration.inputs import Floats, check_probs
from likely.calibration.recalibrator import Fitted, Input
from likely.prompting.answer_bias import Norm, normalise_ratio


class CBM(Fitted):
    """p̃_k ∝ p_k / m_k, m the mean of p over inputs: repairs a liking for some answers, without a label.

    norm   "mean" divides by the sum (the identity where m is uniform); "softmax" is the official code's choice
    prior  as so many inputs with uniform answers count before the first one: with prior > 0 the map can be used from
           the first request on, and moves from the identity to CBM as `partial_fit` sees more
    It is right where the labels are balanced; where they are not, it takes a true difference for a bias.
    Learned: `marginal_` (K,), prior included;  `count_`: the inputs seen.
    Yang et al. 2023, section 5; the running mean and its prior are ours.
    """

    inputs = ("probs",)
    input: Input = "probs"
    name: ClassVar[str] = "cbm"

    def __init__(self, *, norm: Norm = "mean", prior: float = 0.0):
        self.norm: Norm = norm
        self.prior = prior

    def fit(self, x: Any, labels: Any = None) -> Self:
        """x (N, K): answers' probabilities for N unlabelled inputs; labels are not looked at."""
        for name in ("marginal_", "count_"):
            vars(self).pop(name, None)
        self.partial_fit(x)
        if self.count_ < 2 and not self.prior:
            raise ValueError("probs has 1 row: the marginal is a mean over inputs, give at least 2 (or a prior)")
        return self

    def partial_fit(self, x: Any, labels: Any = None) -> Self:
        """Take these inputs into the running mean, too."""
        if not self.prior >= 0:
            raise ValueError(f"prior must be >= 0 (a number of inputs), got {self.prior}")
        probs = check_probs(x)
        k = probs.shape[1]
        before = vars(self).get("marginal_", np.full(k, 1 / k))
        if len(before) != k:
            raise ValueError(f"probs has {k} answers, so far there were {len(before)}")
        seen = int(vars(self).get("count_", 0))
        weight = self.prior + seen
        self.marginal_ = (weight * before + probs.sum(axis=0)) / (weight + len(probs))
        self.count_ = seen + len(probs)
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        probs = check_probs(x)
        if probs.shape[1] != len(self.marginal_):
            raise ValueError(f"probs has {probs.shape[1]} answers, the marginal {len(self.marginal_)}")
        if self.prior + self.count_ < 2:
            raise ValueError("one input says nothing about the marginal: see more, or set a prior of at least 1")
        if (self.marginal_ <= 0).any():
            raise ValueError(f"answer {int(self.marginal_.argmin())} had probability 0 everywhere: leave it out")
        return normalise_ratio(probs / self.marginal_, norm=self.norm)
