"""Every recalibrator by name: made, saved to and restored from a JSON record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from likely.calibration.h.recalibrator import HCalibrator
from likely.calibration.recalibrators.binning import Histogram, ScalingBinning
from likely.calibration.recalibrators.isotonic import Isotonic, VennAbers
from likely.calibration.recalibrators.one_vs_rest import OneVsRest
from likely.calibration.recalibrators.protocol import Fitted, Input
from likely.calibration.recalibrators.scaling import Dirichlet, Matrix, Temperature, Vector
from likely.calibration.recalibrators.sigmoid import Beta, Platt
from likely.errors import DataError, nearest

_CLASSES: tuple[type[Fitted], ...] = (
    Temperature, Vector, Matrix, Dirichlet, Platt, Beta, Isotonic, Histogram, ScalingBinning, VennAbers, HCalibrator,
)  # fmt: skip
METHODS: dict[str, type[Fitted]] = {method.name: method for method in _CLASSES}


def make(name: str, **params: Any) -> Fitted:
    """A recalibrator that is not fitted yet; ValueError names the nearest method or parameter."""
    return _method(name)().set_params(**params)


def inputs_of(name: str) -> tuple[Input, ...]:
    """What the method may be given (its parameter `input`), the default first."""
    return _method(name).inputs


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
            found = ", ".join(f'"{name}"' for name in record) or "nothing"
            raise DataError(f'{what} must have the field "{field}" (found: {found})')
    if not isinstance(record["params"], Mapping):
        raise DataError(f"{what}: params must be an object, got {type(record['params']).__name__}")
    return record["method"], record["params"]


def _made(method: Any, params: Mapping[str, Any], where: str = "params") -> Fitted:
    try:
        made = _method(method)()
    except ValueError as error:
        raise DataError(f"a recalibrator's record: {error}") from None
    return _set(made, params, where)


def _set(made: Fitted, params: Mapping[str, Any], where: str = "params") -> Fitted:
    """With these parameters; predictions depend on `input`, so that it may not be left to the default."""
    try:
        made.set_params(**params)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from None
    if "input" not in params:
        raise DataError(f"{where}.input: is missing")
    if made.input not in made.inputs:
        raise DataError(f'{where}.input: "{made.input}" is not one of {", ".join(made.inputs)}')
    return made


def _method(name: str) -> type[Fitted]:
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f'unknown method "{name}"{nearest(str(name), METHODS)} (allowed: {", ".join(METHODS)})')
    return METHODS[name]
