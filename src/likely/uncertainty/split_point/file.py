"""What the two split-point estimators share: parameters by name, and files without code in them.

A file is safetensors: the networks as arrays, and in its metadata, as JSON, what they belong to.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from likely.calibration.recalibrators.protocol import Parameters, plain
from likely.errors import DataError
from likely.io.whole_file import write_whole_file
from likely.metrics.checks import Floats, as_floats
from likely.uncertainty.types import Uncertainty

FORMAT = "likely-split-point-1"
OBJECTS = ("base", "features")  # parameters that are the caller's own objects, and are in no file


class SplitPoint(Parameters, ABC):
    """scikit-learn's contract: the constructor stores, `fit` checks and learns, learned values end in `_`."""

    kind: ClassVar[str]  # in files

    @abstractmethod
    def check_params(self) -> None:
        """ValueError for a parameter that cannot be."""

    @abstractmethod
    def arrays(self) -> tuple[dict[str, Floats], dict[str, Any]]:
        """Everything learned: arrays by name, and what JSON holds."""

    @abstractmethod
    def restore(self, arrays: Mapping[str, Floats], learned: Mapping[str, Any]) -> None:
        """The inverse of `arrays`; DataError for what does not fit."""

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; the caller's own `base` and `features` are not in it."""
        from safetensors.numpy import save

        arrays, learned = self.arrays()
        params = {k: v for k, v in plain(self.get_params(deep=False)).items() if k not in OBJECTS}
        metadata = {"format": FORMAT, "kind": self.kind, "params": json.dumps(params), "learned": json.dumps(learned)}
        data = save({name: np.ascontiguousarray(a, np.float64) for name, a in arrays.items()}, metadata)
        write_whole_file(Path(path), data)

    @classmethod
    def load(cls, path: str | Path, *, base: Any = None, features: Any = None) -> Self:
        """What `save` wrote, with the base and features it was fitted with, if any.  DataError for another file."""
        found, metadata = _read(path, cls.kind)
        objects = {name: value for name, value in zip(OBJECTS, (base, features), strict=True) if value is not None}
        try:
            params, learned = json.loads(metadata["params"]), json.loads(metadata["learned"])
            made = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}, **objects)
            made.check_params()
            made.restore(found, learned)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is damaged: {error}") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        return made


def check_table(x: Any, name: str, columns: int | None = None) -> Floats:
    """(N, F) finite numbers; columns: how many there were when this was fitted."""
    array = as_floats(x, name, 2)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(f"{name}: row {int(bad.argmax())} holds a number that is not finite")
    if columns is not None and array.shape[1] != columns:
        raise ValueError(f"{name} has {array.shape[1]} columns, this was fitted on {columns}")
    return array


def as_uncertainty(sds: Floats) -> Uncertainty:
    """The score as other estimators give theirs."""
    return Uncertainty(sds, "score", "less_certain", "sds")


def _read(path: str | Path, kind: str) -> tuple[dict[str, Floats], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
                raise DataError(
                    f"{path} holds no split-point {kind} of format {FORMAT} (found {metadata.get('kind')!r}, "
                    f"{metadata.get('format')!r})"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
