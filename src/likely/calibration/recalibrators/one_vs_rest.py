"""One map per class, each class against the rest: how binary recalibrators take probabilities of K classes."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

import numpy as np

from likely.calibration.recalibrators.protocol import ACCURACIES, Fitted, Input, plain, read_learned
from likely.errors import DataError
from likely.metrics.checks import Floats


@dataclass(eq=False)
class OneVsRest(Fitted):
    """p_k ∝ base_k(p_k), a copy of `base` fitted on (p_k, whether the class is k) for each class k.

    Rows are divided by their sum; a row of zeros becomes uniform.  May change which class is on top.
    base   a recalibrator of confidences, not fitted: Platt, Beta, Isotonic, Histogram, ScalingBinning, VennAbers
    input  "probs" (N, K), or "logits" (N, K)
    Learned: `maps_`, K fitted copies; `accuracy_before_`, `accuracy_after_` on the rows they were fitted on.
    """

    name: ClassVar[str] = "one_vs_rest"
    inputs: ClassVar[tuple[Input, ...]] = ("probs", "logits")

    base: Fitted
    _: KW_ONLY
    input: Input = "probs"

    def fit(self, x: Any, labels: Any) -> Self:
        if self.base.input != "confidence":
            raise ValueError(
                f'{self.base.name} takes {self.base.input}; one-vs-rest needs a map with input "confidence"'
            )
        logp, classes = self.checked_classes(x, labels)
        probs, maps, said = np.exp(logp), [], set()
        for k in range(probs.shape[1]):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                maps.append(self._copy().fit(probs[:, k], classes == k))
            said |= {str(warning.message) for warning in caught}
        for message in sorted(said):
            warnings.warn(f"one-vs-rest: {message}", stacklevel=2)
        self.maps_ = maps
        self.keep_accuracies(probs, self._map(probs), classes)
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return self._map(np.exp(self.checked_logprobs(x, len(self.maps_))))

    def to_dict(self) -> dict[str, Any]:
        learned = self.learned()
        return {
            "method": self.name,
            "params": {
                "base": {"method": self.base.name, "params": plain(self.base.get_params(deep=False))},
                "input": self.input,
            },
            "learned": learned | {"maps_": [plain(one.learned()) for one in self.maps_]},
        }

    def restore(self, learned: Any) -> Self:
        rest = dict(learned) if isinstance(learned, dict) else learned
        maps = rest.pop("maps_", None) if isinstance(rest, dict) else None
        if not isinstance(maps, list) or len(maps) < 2:
            raise DataError("learned.maps_: must be a list of one map for each of at least 2 classes")
        for name, value in read_learned(rest, ACCURACIES).items():
            setattr(self, name, value)
        self.maps_ = []
        for k, one in enumerate(maps):
            try:
                self.maps_.append(self._copy().restore(one))
            except DataError as error:
                raise DataError(f"learned.maps_, class {k}: {error}") from None
        return self

    def _copy(self) -> Fitted:
        return type(self.base)(**self.base.get_params(deep=False))

    def _map(self, probs: Floats) -> Floats:
        mapped = np.column_stack(
            [one.predict_proba(np.minimum(column, 1)) for one, column in zip(self.maps_, probs.T, strict=True)]
        )
        sums = mapped.sum(axis=1, keepdims=True)
        return np.where(sums > 0, mapped / np.where(sums > 0, sums, 1), 1 / mapped.shape[1])
