"""Every recalibrator by name: made, saved to and restored from a JSON record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from likely.calibration.beta import Beta
from likely.calibration.histogram import Histogram
from likely.calibration.isotonic import Isotonic
from likely.calibration.platt import Platt
from likely.calibration.recalibrator import Fitted, Input
from likely.calibration.scaling_binning import ScalingBinning
from likely.calibration.temperature import Temperature
from likely.errors import DataError, nearest

METHODS: dict[str, type[Fitted]] = {
    method.name: method for method in (Temperature, Platt, Beta, Isotonic, Histogram, ScalingBinning)
}


def make(name: str, **params: Any) -> Fitted:
    """A recalibrator that is not fitted yet; ValueError names the nearest method or parameter."""
    made = _method(name)()
    return made.set_params(**params)


def inputs_of(name: str) -> tuple[Input, ...]:
    """What the method may be given (its parameter `input`), the default first."""
    return _method(name).inputs


def from_dict(record: Any) -> Fitted:
    """The fitted recalibrator of which this is the `to_dict`; DataError names the field that is wrong."""
    if not isinstance(record, Mapping):
        raise DataError(f"a recalibrator must be an object of method, params and learned, got {type(record).__name__}")
    for field in ("method", "params", "learned"):
        if field not in record:
            found = ", ".join(f'"{name}"' for name in record) or "nothing"
            raise DataError(f'a recalibrator must have the field "{field}" (found: {found})')
    if not isinstance(record["params"], Mapping):
        raise DataError(f"params: must be an object, got {type(record['params']).__name__}")
    try:
        made = make(record["method"], **record["params"])
    except (ValueError, TypeError) as error:
        raise DataError(f"a recalibrator's record: {error}") from None
    return made.restore(record["learned"])


def _method(name: str) -> type[Fitted]:
    if name not in METHODS:
        raise ValueError(f'unknown method "{name}"{nearest(str(name), METHODS)} (allowed: {", ".join(METHODS)})')
    return METHODS[name]
