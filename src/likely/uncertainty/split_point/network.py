"""Small networks as arrays: evaluated by numpy, so that what torch has trained runs without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from likely.errors import DataError
from likely.metrics.checks import Floats


@dataclass(frozen=True)
class Network:
    """Linear layers with ReLU between them, on standardised inputs.

    mean, scale  (F,) of the inputs: (x − mean) / scale goes in
    weights      per layer (outputs, inputs);  biases: per layer (outputs,)
    """

    mean: Floats
    scale: Floats
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    @property
    def inputs(self) -> int:
        return len(self.mean)

    @property
    def outputs(self) -> int:
        return len(self.biases[-1])

    def hidden(self, x: Floats) -> Floats:
        """(N, H): the activations before the last layer, what a head is trained on."""
        h = (x - self.mean) / self.scale
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = np.maximum(h @ weight.T + bias, 0)
        return h

    def __call__(self, x: Floats) -> Floats:
        """(N, F) -> (N, outputs)"""
        return self.hidden(x) @ self.weights[-1].T + self.biases[-1]

    def arrays(self, name: str) -> dict[str, Floats]:
        """Its arrays under names that begin with `name`."""
        found = {f"{name}.mean": self.mean, f"{name}.scale": self.scale}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            found |= {f"{name}.{i}.weight": weight, f"{name}.{i}.bias": bias}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats], name: str) -> Network:
        """The inverse of `arrays`; DataError names the first array that is missing or does not fit the one before."""
        mean, scale = (_array(arrays, f"{name}.{part}", 1) for part in ("mean", "scale"))
        if mean.shape != scale.shape or (scale <= 0).any():
            raise DataError(f"{name}.scale: {len(mean)} positive numbers are needed")
        weights, biases, width = list[Floats](), list[Floats](), len(mean)
        while not weights or f"{name}.{len(weights)}.weight" in arrays:
            at = f"{name}.{len(weights)}"
            weight, bias = _array(arrays, f"{at}.weight", 2), _array(arrays, f"{at}.bias", 1)
            if weight.shape != (len(bias), width):
                raise DataError(f"{at}.weight: has shape {weight.shape}, expected {(len(bias), width)}")
            weights.append(weight)
            biases.append(bias)
            width = len(bias)
        return cls(mean, scale, tuple(weights), tuple(biases))


def standardisation(x: Floats) -> tuple[Floats, Floats]:
    """(mean, scale) of the columns; a column that does not vary has scale 1."""
    scale = x.std(axis=0)
    return x.mean(axis=0), np.where(scale > 1e-12, scale, 1.0)


def softplus(x: Floats) -> Floats:
    return np.logaddexp(0, x)


def _array(arrays: Mapping[str, Floats], name: str, ndim: int) -> Floats:
    if name not in arrays:
        raise DataError(f"{name}: is missing")
    array = np.asarray(arrays[name], np.float64)
    if array.ndim != ndim or not array.size or not np.isfinite(array).all():
        raise DataError(f"{name}: must be an array of {ndim} dimension(s) that holds finite numbers")
    return array
