"""Seconds of one call of a model by four terms, fitted to timed calls: for choosing batches, drafts and a simulator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.errors import DataError
from likely.io.whole_file import write_for_user

TERMS = ("context", "tokens", "sequences", "constant")
MOST_BYTES = 2**20  # of a file of coefficients


@dataclass(frozen=True)
class StepCost:
    """T = context_s · N_context + token_s · N_tokens + sequence_s · B + constant_s, in seconds.

    N_context   tokens that the B sequences keep, all together;  N_tokens: tokens computed
    residual    root mean square of (predicted - measured) / measured over the fitted calls
    measured_on what the numbers depend on (machine, model, threads ...), for `differs`

    Liu et al. 2024, arXiv:2406.14066, section 4, has context, tokens and a constant; the term per sequence is what a
    batch costs beside its tokens.
    """

    context_s: float
    token_s: float
    sequence_s: float
    constant_s: float
    residual: float = 0.0
    measured_on: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("context_s", "token_s", "sequence_s", "constant_s"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of seconds >= 0, got {value}")

    def seconds(self, sequences: ArrayLike, tokens: ArrayLike, context: ArrayLike) -> NDArray[np.float64]:
        """Predicted seconds of one call; numbers or arrays of one shape."""
        return (
            self.context_s * np.asarray(context, np.float64)
            + self.token_s * np.asarray(tokens, np.float64)
            + self.sequence_s * np.asarray(sequences, np.float64)
            + self.constant_s
        )

    @classmethod
    def fit(
        cls,
        sequences: ArrayLike,
        tokens: ArrayLike,
        context: ArrayLike,
        seconds: ArrayLike,
        *,
        measured_on: Mapping[str, str] | None = None,
    ) -> StepCost:
        """Non-negative least squares of the relative error over timed calls (n,); DataError if they tell too little."""
        from scipy.optimize import nnls

        measured = np.asarray(seconds, np.float64)
        columns = [np.asarray(each, np.float64) for each in (context, tokens, sequences)]
        if measured.ndim != 1 or any(each.shape != measured.shape for each in columns):
            raise ValueError(
                f"expected one number per call, got shapes {[each.shape for each in (*columns, measured)]}"
            )
        if not (np.isfinite(measured).all() and (measured > 0).all()):
            raise DataError("a timed call must have taken a number of seconds > 0")
        if any((each < 0).any() for each in columns):
            raise DataError("sequences, tokens and context of a timed call must be >= 0")
        rows = np.stack([*columns, np.ones(len(measured))], axis=1)
        scale = np.maximum(rows.max(axis=0, initial=0.0), 1e-12)
        scaled = rows / scale
        if (rank := int(np.linalg.matrix_rank(scaled))) < len(TERMS):
            raise DataError(
                f"{len(measured)} timed calls tell {rank} of the {len(TERMS)} terms ({', '.join(TERMS)}) apart: time "
                f"several contexts, several batch sizes, and several tokens per sequence"
            )
        weighted = scaled / measured[:, None]
        solution, distance = nnls(weighted, np.ones(len(measured)))
        context_s, token_s, sequence_s, constant_s = (solution / scale).tolist()
        residual = float(distance / np.sqrt(len(measured)))
        return cls(context_s, token_s, sequence_s, constant_s, residual, dict(measured_on or {}))

    def differs(self, measured_on: Mapping[str, str]) -> str:
        """What these numbers were measured on that is not so here, in one line; "" if nothing is known to differ."""
        other = [
            f"{name} {known!r} instead of {measured_on[name]!r}"
            for name, known in self.measured_on.items()
            if name in measured_on and known != measured_on[name]
        ]
        return ", ".join(other)

    def save(self, path: str | Path) -> None:
        """As JSON."""
        write_for_user(Path(path), (json.dumps({"step_cost": asdict(self)}, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, *, measured_on: Mapping[str, str] | None = None) -> StepCost:
        """A saved one; DataError if it is none, or was measured on something else than `measured_on` says."""
        try:
            with open(path, "rb") as file:
                data = json.loads(file.read(MOST_BYTES))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise DataError(f"{path} is no file of step costs: {error}") from None
        try:
            found = cls.from_dict(data["step_cost"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is no file of step costs (likely profile -o writes one): {error}") from None
        if measured_on is not None and (difference := found.differs(measured_on)):
            raise DataError(f"{path} was measured on {difference}: run likely profile here")
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> StepCost:
        """From the fields of `save`; ValueError, TypeError or KeyError for anything else."""
        names = ("context_s", "token_s", "sequence_s", "constant_s", "residual")
        numbers: list[float] = []
        for name in names:
            number = data[name]
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                raise ValueError(f"{name} must be a number, got {number!r}")
            numbers.append(float(number))
        place = data.get("measured_on") or {}
        if not isinstance(place, Mapping):
            raise ValueError("measured_on must be an object")
        context_s, token_s, sequence_s, constant_s, residual = numbers
        named = {str(key): str(value) for key, value in place.items()}
        return cls(context_s, token_s, sequence_s, constant_s, residual, named)
