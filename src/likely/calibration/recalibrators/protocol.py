"""The contract of a recalibrator: scikit-learn's, on arrays, saved as JSON.

The constructor stores its arguments and nothing else; `fit` checks, learns and returns self; learned values end in `_`.
`clone`, `Pipeline`, `GridSearchCV` (with a `scoring`) and `cross_val_predict` work on them.  `check_estimator` does not
apply: inputs have one column per class, labels are 0..K−1, maps of one number take and give (N,), and rows have no
weights.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np

from likely.errors import DataError, nearest
from likely.metrics.checks import (
    Floats,
    Ints,
    check_confidence,
    check_correct,
    check_labels,
    check_logits,
    check_probs,
    check_score,
    log_probs,
    log_softmax,
)

Input = Literal["logits", "probs", "confidence", "score"]


class Recalibrator(Protocol):
    """A map from what a model says to probabilities that hold.

    input  what `x` is: "logits" or "probs" (N, K); "confidence" (N,) in [0, 1]; "score" (N,), any number
    For the first two `labels` are classes and the result is (N, K); for the others 0 or 1 (right or not), and the
    result is (N,), the probability of 1.
    """

    input: Input

    def fit(self, x: Any, labels: Any) -> Self: ...
    def predict_proba(self, x: Any) -> Floats: ...
    def to_dict(self) -> dict[str, Any]: ...


class Parameters:
    """The constructor's arguments by name (scikit-learn's contract): each is an attribute of the same name.

    deep  those of an argument that has parameters itself, too: "base__bins" is `bins` of `base`
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        inner = [(name, value) for name, value in found.items() if deep and _has_params(value)]
        for name, value in inner:
            found |= {f"{name}__{own}": one for own, one in value.get_params().items()}
        return found

    def set_params(self, **params: object) -> Self:
        known = self.get_params(deep=False)
        for name, value in params.items():
            first, nested, own = name.partition("__")
            if first not in known or (nested and not _has_params(known[first])):
                raise ValueError(f'{type(self).__name__} has no parameter "{name}"{nearest(name, self.get_params())}')
            if nested:
                getattr(self, first).set_params(**{own: value})
            else:
                setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools ask of an estimator; they are installed where this is called."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags  # type: ignore[import-untyped]

        classifies = hasattr(self, "predict_proba")
        return Tags(
            estimator_type="classifier" if classifies else None, target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags() if classifies else None,
        )  # fmt: skip

    def check_fitted(self, name: str) -> None:
        """ValueError where there is no such learned value yet."""
        if not hasattr(self, name):
            raise ValueError(f"{type(self).__name__} is not fitted: call fit first")


def _has_params(value: Any) -> bool:
    return hasattr(value, "get_params") and not isinstance(value, type)


class Fitted(Parameters, ABC):
    """What all recalibrators share: checked input, and learned values to and from JSON."""

    name: ClassVar[str]  # in files and on the command line
    inputs: ClassVar[tuple[Input, ...]]  # what `input` may be, the default first; empty: it has no such parameter
    learns: ClassVar[dict[str, Learned]] = {}  # what `fit` sets; empty: numbers, read back without further checks
    input: Input

    @abstractmethod
    def fit(self, x: Any, labels: Any) -> Self: ...

    @abstractmethod
    def predict_proba(self, x: Any) -> Floats: ...

    _classes: int  # how many labels `fit` saw, or may have seen; not saved

    @property
    def classes_(self) -> Ints:
        """(K,) the labels 0..K−1, of a map that was fitted here."""
        if not hasattr(self, "_classes"):
            raise AttributeError(f"{type(self).__name__} has no classes_ before fit")
        return np.arange(self._classes)

    def predict(self, x: Any) -> Ints:
        """(N,) the likeliest label; of one number, 1 from probability 0.5 on."""
        probs = self.predict_proba(x)
        return (probs >= 0.5).astype(np.int64) if probs.ndim == 1 else probs.argmax(axis=1)

    def learned(self) -> dict[str, Any]:
        """Learned values by name, in the order in which they were set; ValueError before `fit`."""
        found = {name: v for name, v in vars(self).items() if name.endswith("_") and not name.startswith("_")}
        if not found:
            raise ValueError(f"{type(self).__name__} is not fitted: call fit first")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: {"method", "params", "learned"}."""
        return {"method": self.name, "params": plain(self.get_params(deep=False)), "learned": plain(self.learned())}

    def restore(self, learned: Any) -> Self:
        """Take over learned values as `to_dict` gave them; DataError names the field that is wrong."""
        if self.learns:
            for name, value in read_learned(learned, self.learns).items():
                setattr(self, name, value)
            return self
        for name, value in learned.items():
            if not name.endswith("_") or name.startswith("_"):
                raise DataError(f'a recalibrator has no learned value "{name}"')
            setattr(self, name, np.asarray(value, np.float64) if isinstance(value, list) else value)
        return self

    def checked(self, x: Any) -> Floats:
        """x as this recalibrator wants it."""
        if self.input not in self.inputs:
            allowed = ", ".join(self.inputs)
            raise ValueError(
                f'{type(self).__name__} has no input "{self.input}"{nearest(str(self.input), self.inputs)} '
                f"(allowed: {allowed})"
            )
        return _CHECKS[self.input](x)

    def checked_logprobs(self, x: Any, classes: int | None = None) -> Floats:
        """(N, K) log p of what was given as logits or probs; classes: how many there were when this was fitted."""
        values = self.checked(x)
        if classes is not None and values.shape[1] != classes:
            raise ValueError(f"{self.input} have {values.shape[1]} classes, {self.name} was fitted on {classes}")
        return log_softmax(values) if self.input == "logits" else log_probs(values)

    def keep_accuracies(self, before: Floats, after: Floats, labels: Ints) -> None:
        """For maps that may change which class is on top: accuracy without and with the map, on the rows fitted."""
        self.accuracy_before_ = float((before.argmax(axis=1) == labels).mean())
        self.accuracy_after_ = float((after.argmax(axis=1) == labels).mean())

    def checked_binary(self, x: Any, labels: Any) -> tuple[Floats, Ints]:
        """(N,) confidences or scores, and whether each was right."""
        values = self.checked(x)
        self._classes = 2
        return values, check_correct(labels, len(values))

    def checked_classes(self, x: Any, labels: Any) -> tuple[Floats, Ints]:
        """(N, K) log p, and the (N,) classes; ValueError for a row whose class cannot be."""
        logp = self.checked_logprobs(x)
        classes = check_labels(labels, *logp.shape)
        self._classes = logp.shape[1]
        impossible = np.isneginf(logp[np.arange(len(logp)), classes])
        if impossible.any():
            raise ValueError(f"row {int(impossible.argmax())}: its label has logit -inf, so no map makes it possible")
        return logp, classes


_CHECKS = {"logits": check_logits, "probs": check_probs, "confidence": check_confidence, "score": check_score}


def plain(value: Any) -> Any:
    """The same as JSON knows it: lists for arrays, numbers for numpy's."""
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


@dataclass(frozen=True)
class Learned:
    """What one learned value must be.

    shape       one letter per dimension, "" for a single number; one letter is one size within a recalibrator
    least       the smallest such size
    low, high   the allowed range, ends included
    flag        true or false instead of numbers
    increasing  along the last dimension, strictly
    """

    shape: str = ""
    least: int = 1
    low: float = -math.inf
    high: float = math.inf
    flag: bool = False
    increasing: bool = False


def read_learned(values: Any, wanted: Mapping[str, Learned], where: str = "learned") -> dict[str, Any]:
    """The values by name, arrays as float64; DataError names the first field that is missing, unknown or wrong."""
    if not isinstance(values, Mapping):
        raise DataError(f"{where}: must be an object of values by name, got {type(values).__name__}")
    for name in values:
        if name not in wanted:
            raise DataError(f"{where}.{name}: unknown value{nearest(str(name), wanted)}")
    sizes: dict[str, int] = {}
    found = {}
    for name, spec in wanted.items():
        if name not in values:
            raise DataError(f"{where}.{name}: is missing")
        found[name] = _read(values[name], f"{where}.{name}", spec, sizes)
    return found


def _read(value: Any, field: str, spec: Learned, sizes: dict[str, int]) -> Any:
    if spec.flag:
        if not isinstance(value, bool):
            raise DataError(f"{field}: must be true or false, got {value!r}")
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"{field}: rows must be of one length") from None
    if array.dtype.kind not in "iuf":
        raise DataError(f"{field}: must hold numbers")
    array = array.astype(np.float64)
    if array.ndim != len(spec.shape):
        raise DataError(f"{field}: must have {len(spec.shape)} dimension(s), got {array.ndim}")
    for letter, size in zip(spec.shape, array.shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            raise DataError(f"{field}: has {size} entries where {sizes[letter]} are needed")
        if size < spec.least:
            raise DataError(f"{field}: has {size} entries, at least {spec.least} are needed")
    if not np.isfinite(array).all():
        raise DataError(f"{field}: holds values that are not finite")
    if array.size and (array.min() < spec.low or array.max() > spec.high):
        raise DataError(
            f"{field}: {array.min():g} to {array.max():g} lies outside the allowed {spec.low:g} to {spec.high:g}"
        )
    if spec.increasing and (np.diff(array) <= 0).any():
        raise DataError(f"{field}: must increase")
    return array if spec.shape else float(array)


ACCURACIES = {"accuracy_before_": Learned(low=0, high=1), "accuracy_after_": Learned(low=0, high=1)}
