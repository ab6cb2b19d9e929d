"""Every recalibrator by name: what it is, for what it is tried unasked, how it is made and restored from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from likely.calibration.h.recalibrator import HCalibrator
from likely.calibration.recalibrators.answer import AnswerLogistic
from likely.calibration.recalibrators.binning import Histogram, ScalingBinning
from likely.calibration.recalibrators.isotonic import Isotonic, VennAbers
from likely.calibration.recalibrators.one_vs_rest import OneVsRest
from likely.calibration.recalibrators.protocol import Fitted, Input
from likely.calibration.recalibrators.scaling import Dirichlet, Matrix, Temperature, Vector
from likely.calibration.recalibrators.sigmoid import Beta, Platt
from likely.errors import DataError, check_choice, names_in


@dataclass(frozen=True)
class RecalibratorEntry:
    """One method.

    made   its class, which knows its name and its inputs;  about: one line of help
    auto   kinds of labelled lines (see `Labelled`) for which method="auto" tries it: maps of few parameters
    """

    made: type[Fitted]
    about: str
    auto: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What its parameter `input` may be, the default first; none for a map of graded answers."""
        return self.made.inputs


_ENTRIES = (
    RecalibratorEntry(AnswerLogistic, "logistic regression on what an answer's tokens say", ("answer",)),
    RecalibratorEntry(Temperature, "softmax(z / T): one parameter, changes no decision", ("logits", "probs")),
    RecalibratorEntry(Vector, "a scale and an offset per class", ("logits", "probs")),
    RecalibratorEntry(Matrix, "a scale and an offset between classes"),
    RecalibratorEntry(Dirichlet, "the same, with the penalty chosen by cross-validation"),
    RecalibratorEntry(Platt, "a sigmoid: two parameters", ("answer", "confidence")),
    RecalibratorEntry(Beta, "a sigmoid of log c and log(1 - c): three parameters", ("answer", "confidence")),
    RecalibratorEntry(Isotonic, "the best rising map: takes hundreds of lines"),
    RecalibratorEntry(Histogram, "the share of right lines per bin: takes hundreds of lines"),
    RecalibratorEntry(ScalingBinning, "a sigmoid, then its mean per bin: takes hundreds of lines"),
    RecalibratorEntry(VennAbers, "two isotonic fits per value: takes hundreds of lines"),
    RecalibratorEntry(HCalibrator, "a monotone map that minimises a bounded calibration error"),
)
RECALIBRATORS: dict[str, RecalibratorEntry] = {entry.made.name: entry for entry in _ENTRIES}


def make(name: str, **params: object) -> Fitted:
    """A recalibrator that is not fitted yet; ValueError names the nearest method or parameter."""
    return entry_of(name).made().set_params(**params)


def from_dict(record: Any) -> Fitted:
    """The fitted recalibrator of which this is the `to_dict`; DataError names the field that is wrong."""
    method, params = _described(record, ("method", "params", "learned"), "a recalibrator")
    if method == OneVsRest.name:
        base = _made(*_described(params.get("base"), ("method", "params"), "params.base"), where="params.base.params")
        if base.input != "confidence":
            raise DataError(f'params.base.params.input: must be "confidence", got "{base.input}"')
        made: Fitted = _set(OneVsRest(base), {name: value for name, value in params.items() if name != "base"})
    else:
        made = _made(method, params)
    return made.restore(record["learned"])


def _described(record: Any, fields: tuple[str, ...], what: str) -> tuple[str, Mapping[str, Any]]:
    """The method and parameters of a record that has these fields."""
    if not isinstance(record, Mapping):
        raise DataError(f"{what} must be an object with {', '.join(fields)}, got {type(record).__name__}")
    for field in fields:
        if field not in record:
            raise DataError(f'{what} must have the field "{field}" (found: {names_in(record)})')
    if not isinstance(record["params"], Mapping):
        raise DataError(f"{what}: params must be an object, got {type(record['params']).__name__}")
    return record["method"], record["params"]


def _made(method: Any, params: Mapping[str, Any], where: str = "params") -> Fitted:
    try:
        made = entry_of(method).made()
    except ValueError as error:
        raise DataError(f"a recalibrator's record: {error}") from None
    return _set(made, params, where)


def _set(made: Fitted, params: Mapping[str, Any], where: str = "params") -> Fitted:
    """With these parameters; predictions depend on `input`, so that it may not be left to the default."""
    try:
        made.set_params(**params)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from None
    if not made.inputs:
        return made
    if "input" not in params:
        raise DataError(f"{where}.input: is missing")
    if made.input not in made.inputs:
        raise DataError(f'{where}.input: "{made.input}" is not one of {", ".join(made.inputs)}')
    return made


def entry_of(name: str) -> RecalibratorEntry:
    """ValueError names the nearest method."""
    check_choice("method", name, RECALIBRATORS)
    return RECALIBRATORS[name]
