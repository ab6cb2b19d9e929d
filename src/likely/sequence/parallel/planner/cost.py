"""What a group of devices needs for its sequences: time, tokens that fit, and how time is learned from measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from likely.errors import DataError, check_choice
from likely.metrics.checks import Floats

BYTES = 2  # of an activation in bf16
STATE_BYTES = 4  # of a state that linear attention hands on


@dataclass(frozen=True)
class GroupTiming:
    """One measured step: `lengths` were computed by a group of `degree` devices in `ms`."""

    lengths: tuple[int, ...]
    degree: int
    ms: float


@dataclass(frozen=True)
class CostModel:
    """Time of a micro-batch in a group of d devices that share every sequence (Ulysses), in milliseconds.

    time = fixed_ms + Σ_s [(quadratic_ms s² + linear_ms s) / d + exchange(s, d)]

    quadratic_ms, linear_ms  computation per token² and per token;  fixed_ms: per group and micro-batch
    token_bytes     of activations that one token sends through all-to-all in a step, forward and backward
    group_bytes     that a group sends per other member whatever its lengths (the states of linear attention)
    bandwidth       degree -> GB/s of the exchange between so many devices; a degree of 1 exchanges nothing
    token_mb        of memory per token kept for the backward pass;  state_mb: weights, gradients and optimiser of the
                    whole model, which all devices share (ZeRO-3);  memory_mb: of one device

    Wang et al. 2025 (FlexSP), section 4; memory in MB of 2^20 bytes.
    """

    quadratic_ms: float
    linear_ms: float
    fixed_ms: float
    token_bytes: float
    bandwidth: Mapping[int, float]
    token_mb: float
    state_mb: float
    memory_mb: float
    group_bytes: float = 0.0

    @property
    def degrees(self) -> tuple[int, ...]:
        """Sizes of groups that the model knows, rising, 1 included."""
        return (1, *sorted(d for d in self.bandwidth if d > 1))

    def sequence_ms(self, lengths: ArrayLike, degree: int) -> Floats:
        """Time that each length adds to a group of `degree` devices."""
        s = np.asarray(lengths, np.float64)
        exchanged = self.token_bytes * s / degree / self._bytes_per_ms(degree)
        return (self.quadratic_ms * s**2 + self.linear_ms * s) / degree + exchanged

    def group_ms(self, degree: int) -> float:
        """Time of a group before its first token."""
        return self.fixed_ms + self.group_bytes * (degree - 1) / self._bytes_per_ms(degree)

    def time(self, lengths: ArrayLike, degree: int) -> float:
        """Of one micro-batch in one group; 0 without sequences."""
        s = np.asarray(lengths, np.float64)
        return float(self.group_ms(degree) + self.sequence_ms(s, degree).sum()) if s.size else 0.0

    def capacity(self, degree: int, n_devices: int) -> int:
        """Tokens that fit a group of `degree` devices of the `n_devices` that share the model; DataError if none do."""
        left = self.memory_mb - self.state_mb / n_devices
        each = math.floor(left / self.token_mb)
        if each < 1:
            raise DataError(
                f"the model's states take {self.state_mb / n_devices:.0f} MB of each of {n_devices} devices, of "
                f"{self.memory_mb:.0f} MB: no token fits. Use more devices or more memory"
            )
        return each * degree

    def scaled(self, factor: float) -> CostModel:
        """The same with all times `factor` times as long."""
        return replace(
            self,
            quadratic_ms=self.quadratic_ms * factor,
            linear_ms=self.linear_ms * factor,
            fixed_ms=self.fixed_ms * factor,
            bandwidth={d: v / factor for d, v in self.bandwidth.items()},
        )

    def linear_attention(self, *, layers: int, hidden: int, head_size: int) -> CostModel:
        """The same backbone with linear attention under LASP-2: no square, and states in place of activations.

        Two all-gathers per layer of hidden × head_size numbers in fp32 from every other member, whatever the lengths.
        """
        sent = 2.0 * layers * hidden * head_size * STATE_BYTES
        return replace(self, quadratic_ms=0.0, token_bytes=0.0, group_bytes=sent)

    @classmethod
    def fit(
        cls, profile: Iterable[GroupTiming], *, layers: int, hidden: int, bandwidth: Mapping[int, float],
        token_mb: float, state_mb: float, memory_mb: float,
    ) -> Self:  # fmt: skip
        """Learn quadratic_ms, linear_ms and fixed_ms by least squares with no negative cost; the rest is given.

        DataError where the profile has fewer than three timings or cannot tell the three apart.
        """
        rows = list(profile)
        bare = cls(0.0, 0.0, 0.0, exchanged_bytes(layers, hidden), dict(bandwidth), token_mb, state_mb, memory_mb)
        terms = np.array([_terms(row) for row in rows], np.float64).reshape(-1, 3)
        if len(rows) < 3 or np.linalg.matrix_rank(terms / np.maximum(np.abs(terms).max(0), 1e-300)) < 3:
            raise DataError(
                f"{len(rows)} timings cannot tell the square, the length and the fixed cost apart: "
                f"time at least three with different lengths and degrees"
            )
        from scipy.optimize import nnls

        exchanged = np.array([bare.time(row.lengths, row.degree) for row in rows])
        measured = np.array([row.ms for row in rows])
        weights = 1 / np.maximum(measured, 1e-9)  # relative errors count
        scale = np.abs(terms * weights[:, None]).max(0)
        learned, _ = nnls(terms * weights[:, None] / scale, (measured - exchanged) * weights)
        quadratic, linear, fixed = (learned / scale).tolist()
        return replace(bare, quadratic_ms=quadratic, linear_ms=linear, fixed_ms=fixed)

    def relative_errors(self, profile: Iterable[GroupTiming]) -> Floats:
        """|predicted − measured| / measured of each timing."""
        return np.array([abs(self.time(row.lengths, row.degree) - row.ms) / row.ms for row in profile])

    def _bytes_per_ms(self, degree: int) -> float:
        if degree == 1:
            return math.inf
        if degree not in self.bandwidth:
            known = ", ".join(map(str, self.degrees))
            raise ValueError(f"degree must be one of those with a bandwidth ({known}), got {degree}")
        return self.bandwidth[degree] * 1e6


def exchanged_bytes(layers: int, hidden: int) -> float:
    """That one token sends in a step: four all-to-alls of its hidden state per layer, forward and backward."""
    return 4.0 * 2 * layers * hidden * BYTES


def _terms(row: GroupTiming) -> Sequence[float]:
    s = np.asarray(row.lengths, np.float64)
    return float((s**2).sum()) / row.degree, float(s.sum()) / row.degree, 1.0


A100_BANDWIDTH = {2: 119.5, 4: 104.1, 8: 96.5, 16: 10.33, 32: 5.94, 64: 4.87}  # a node holds 8; beyond lies a network


@dataclass(frozen=True)
class TransformerSize:
    """Of a model whose costs are published: layers, hidden size, parameters."""

    layers: int
    hidden: int
    parameters: float


SIZES = {
    "gpt-7b": TransformerSize(32, 4096, 7e9),
    "gpt-13b": TransformerSize(40, 5120, 13e9),
    "gpt-30b": TransformerSize(60, 6656, 30e9),
}
_PUBLISHED = {  # quadratic_ms, linear_ms, fixed_ms, token_mb
    "gpt-7b": (5.128e-6, 0.18396, 629.36, 4.4804),
    "gpt-13b": (9.2852e-6, 0.30602, 1132.56, 4.2204),
    "gpt-30b": (15.4262e-6, 0.80357, 2789.36, 3.4174),
}


def published_cost(model: str, *, memory_gb: float = 36.0) -> CostModel:
    """FlexSP's constants for its GPT models on nodes of eight A100 (40 GB); model: one of SIZES."""
    check_choice("model", model, SIZES)
    if not (math.isfinite(memory_gb) and memory_gb > 0):
        raise ValueError(f"memory_gb must be > 0, got {memory_gb}")
    size = SIZES[model]
    quadratic, linear, fixed, token_mb = _PUBLISHED[model]
    return CostModel(
        quadratic, linear, fixed, exchanged_bytes(size.layers, size.hidden), dict(A100_BANDWIDTH), token_mb,
        16 * size.parameters / 2**20, 1024 * memory_gb,
    )  # fmt: skip
