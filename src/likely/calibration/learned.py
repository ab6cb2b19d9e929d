"""What a recalibrator has learned, read back from JSON: each value is checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.errors import DataError, nearest


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
