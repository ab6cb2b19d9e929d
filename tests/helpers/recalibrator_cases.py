"""Every recalibrator with every input it takes, and labelled data on which a map has something to repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from likely.calibration.recalibrators.one_vs_rest import OneVsRest
from likely.calibration.recalibrators.protocol import Fitted, Input
from likely.calibration.recalibrators.table import RECALIBRATORS, make

K = 3
# without what takes seconds: other maps are trained, a penalty is chosen by cross-validation
QUICK: dict[str, dict[str, Any]] = {"h": {"map": "temperature"}, "dirichlet": {"penalty": 0.01}}
DRAWS = {"scaling_binning"}  # it divides the rows by a seeded draw, so that their order matters


@dataclass(frozen=True)
class Case:
    method: str
    input: Input
    base: str | None = None  # of one-vs-rest

    def make(self) -> Fitted:
        if self.base is not None:
            return OneVsRest(make(self.base), input=self.input)
        if self.method == "h":
            pytest.importorskip("torch")
        return make(self.method, input=self.input, **QUICK.get(self.method, {}))

    def fit(self, n: int = 1200, seed: int = 0) -> Fitted:
        return self.make().fit(*rows(self.input, n, seed))

    @property
    def classes(self) -> bool:
        return self.input in ("logits", "probs")

    @property
    def draws(self) -> bool:
        return not DRAWS.isdisjoint({self.method, self.base})

    def __str__(self) -> str:
        return "-".join(part for part in (self.method, self.base, self.input) if part)


def cases() -> list[Case]:
    own = [Case(name, given) for name, method in RECALIBRATORS.items() for given in method.inputs]
    bases = [name for name, method in RECALIBRATORS.items() if "confidence" in method.inputs]
    return own + [Case("one_vs_rest", given, base) for base in bases for given in OneVsRest.inputs]


def rows(given: Input, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(x, labels): twice as sure as they should be, and leaning to one side."""
    rng = np.random.default_rng(seed)
    if given in ("logits", "probs"):
        true = rng.normal(size=(n, K)) * 1.5
        labels = (softmax(true, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
        said = 2 * true + np.array([0.5, 0.0, -0.5])
        return (said if given == "logits" else softmax(said, axis=1)), labels
    true = rng.normal(size=n) * 1.5
    correct = (rng.random(n) < expit(true)).astype(int)
    return (2 * true + 0.5 if given == "score" else expit(2 * true + 0.5)), correct


def good_row(given: Input) -> Any:
    """One row that is as it should be."""
    return {"logits": [0.5, -1.0, 2.0], "probs": [0.2, 0.3, 0.5], "confidence": 0.6, "score": -3.0}[given]


def bad_rows(given: Input) -> list[tuple[Any, str]]:
    """(a row that must be refused, what is said of it)."""
    nan, inf = float("nan"), float("inf")
    return {
        "logits": [([0.0, nan, 1.0], r"row 1 is not a number \(NaN\)"), ([0.0, inf, 1.0], r"row 1 holds \+inf"),
                   ([-inf] * 3, "row 1 is all -inf")],
        "probs": [([0.5, nan, 0.5], r"row 1 is not a number \(NaN\)"), ([0.2, 0.3, 0.4], "row 1 sums to 0.9, not 1"),
                  ([0.7, 0.5, -0.2], r"row 1 has values outside 0..1 \(-0.2 to 0.7\)"), ([0.0] * 3, "row 1 sums to 0")],
        "confidence": [(nan, r"row 1 is not a number \(NaN\)"), (1.2, r"row 1 is 1.2, outside 0..1"),
                       (-0.1, r"row 1 is -0.1, outside 0..1")],
        "score": [(nan, r"row 1 is not a number \(NaN\)"), (inf, "row 1 is inf: finite"), (-inf, "row 1 is -inf")],
    }[given]  # fmt: skip
