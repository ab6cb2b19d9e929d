"""The contract of a recalibrator: scikit-learn's, on arrays, saved as JSON.

The constructor stores its arguments and nothing else; `fit` checks, learns and returns self; learned values end in `_`.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np

from likely.calibration.inputs import Floats, check_confidence, check_logits, check_probs, check_score
from likely.errors import DataError, nearest

Input = Literal["logits", "probs", "confidence", "score"]


class Recalibrator(Protocol):
    """A map from what a model says to probabilities that hold.

    input  what `x` is: "logits" or "probs" (N, K); "confidence" (N,) in [0, 1]; "score" (N,), any number
    For the first two `labels` are classes and the result is (N, K); for the others 0 or 1 (right or not), and the
    result is (N,), the probability of 1.
    """

    input: ClassVar[Input]

    def fit(self, x: Any, labels: Any) -> Self: ...
    def predict_proba(self, x: Any) -> Floats: ...
    def to_dict(self) -> dict[str, Any]: ...


class Fitted:
    """What all recalibrators share: parameters by name, and learned values to and from JSON."""

    input: ClassVar[Input]
    name: ClassVar[str]  # in files and on the command line

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name (scikit-learn's contract)."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f'{type(self).__name__} has no parameter "{name}"{nearest(name, known)}')
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({given})"

    def learned(self) -> dict[str, Any]:
        """Learned values by name, in the order in which they were set; ValueError before `fit`."""
        found = {name: v for name, v in vars(self).items() if name.endswith("_") and not name.startswith("_")}
        if not found:
            raise ValueError(f"{type(self).__name__} is not fitted: call fit first")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: {"method", "params", "learned"}."""
        return {"method": self.name, "params": self.get_params(), "learned": _plain(self.learned())}

    def restore(self, learned: dict[str, Any]) -> Self:
        """Take over learned values as `to_dict` gave them (lists become float64 arrays)."""
        for name, value in learned.items():
            if not name.endswith("_") or name.startswith("_"):
                raise DataError(f'a recalibrator has no learned value "{name}"')
            setattr(self, name, np.asarray(value, np.float64) if isinstance(value, list) else value)
        return self

    def checked(self, x: Any) -> Floats:
        """x as this recalibrator wants it."""
        return _CHECKS[self.input](x)


_CHECKS = {"logits": check_logits, "probs": check_probs, "confidence": check_confidence, "score": check_score}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
