"""When a model counts as unsure: gates on the next-token law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.floating]  # (V,), sums to 1


def root_collision(p: Probabilities) -> float:
    """sqrt(Σ p²) in [1/√V, 1]: 1 for a certain token, 1/√V for the uniform law.

    Σ p² is the probability that two draws agree (the collision probability); sqrt(Σ p²) = exp(-H₂ / 2), H₂ the Rényi
    entropy of order 2 in nats.
    """
    return float(np.sqrt(np.square(p, dtype=np.float64).sum()))


def spread(p: Probabilities) -> float:
    """μ = sqrt(Σ (p - 1/V)² / V), the standard deviation of p over the vocabulary.

    It is bounded by about 1/√V, so that the same μ means different things for different vocabularies; exactly
    μ² V = Σ p² - 1/V, which is why the gate asks for sqrt(Σ p²).
    """
    p = np.asarray(p, np.float64)
    return float(np.sqrt(np.square(p - 1 / len(p)).sum() / len(p)))


class Gate(Protocol):
    """Whether the other context is asked at a step.

    always  it is at every step, so that both contexts may be computed in the same call
    """

    @property
    def always(self) -> bool: ...

    def opens(self, collision: float) -> bool:
        """collision  `root_collision` of the next-token law"""
        ...


@dataclass(frozen=True)
class Always:
    always: ClassVar[bool] = True

    def opens(self, collision: float) -> bool:
        return True


@dataclass(frozen=True)
class CollisionGate:
    """Opens where sqrt(Σ p²) <= tau: the flatter the law, the smaller the sum.

    tau  in (0, 1).  The default is the paper's threshold 4e-3 on μ, read at a vocabulary of 32,000.
    """

    tau: float = 0.72
    always: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1:
            raise ValueError(f"tau must lie in (0, 1), got {self.tau}")

    @classmethod
    def from_spread(cls, mu: float, vocab_size: int) -> CollisionGate:
        """The gate that opens where `spread` <= mu, as the paper states it; mu must lie in (0, √(1/V (1 - 1/V)))."""
        most = spread(np.eye(1, vocab_size)[0])
        if not 0 < mu < most:
            raise ValueError(
                f"with {vocab_size} tokens the spread of a law lies in [0, {most:.3g}]: "
                f"a threshold of {mu:g} would say the same at every step"
            )
        return cls(float(np.sqrt(mu * mu * vocab_size + 1 / vocab_size)))

    def opens(self, collision: float) -> bool:
        return collision <= self.tau
