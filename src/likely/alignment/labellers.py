"""Who says which of two completions is the better one: preference probabilities p = P(first ≻ second).  numpy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from likely.alignment.rewards import PairRanker, Reward, rewards_of
from likely.alignment.scores import Completion
from likely.errors import DataError
from likely.metrics.checks import Floats
from likely.runtimes.protocol import IntArray

Hardness = bool | Literal["sample"]
ASYMMETRY = 1e-3  # of p(a ≻ b) + p(b ≻ a) about 1, beyond which a labeller is symmetrised with a warning


class Labeller(Protocol):
    """Pairs of completions of the same prompts -> (B,) p(first ≻ second) in [0, 1]."""

    def __call__(self, firsts: Seq[Completion], seconds: Seq[Completion]) -> Floats: ...


@dataclass(frozen=True)
class RewardDifference:
    """p = σ((r_a − r_b) / scale): Bradley–Terry preferences of a reward."""

    reward: Reward
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be > 0, got {self.scale}")

    def __call__(self, firsts: Seq[Completion], seconds: Seq[Completion]) -> Floats:
        return bradley_terry(rewards_of(self.reward, firsts), rewards_of(self.reward, seconds), scale=self.scale)


def bradley_terry(first: Floats, second: Floats, *, scale: float = 1.0) -> Floats:
    """(B,) σ((r_a − r_b) / scale) of rewards (B,); two rewards of −inf are equally good."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(first == second, 0.0, (first - second) / scale)
        return 1 / (1 + np.exp(-difference))


@dataclass(frozen=True)
class Symmetrised:
    """p = ½[ρ(x, a, b) + 1 − ρ(x, b, a)] of a ranker ρ: no preference for a place, by construction."""

    ranker: PairRanker | Labeller

    def __call__(self, firsts: Seq[Completion], seconds: Seq[Completion]) -> Floats:
        return 0.5 * (np.asarray(self.ranker(firsts, seconds)) + 1 - np.asarray(self.ranker(seconds, firsts)))


@dataclass(frozen=True)
class PreferenceOracle:
    """A function (prompt text, first text, second text) -> p(first ≻ second)."""

    function: Callable[[str, str, str], float]

    def __call__(self, firsts: Seq[Completion], seconds: Seq[Completion]) -> Floats:
        pairs = zip(firsts, seconds, strict=True)
        return np.array([self.function(a.prompt_text, a.text, b.text) for a, b in pairs], np.float64)


def checked(labeller: Labeller, firsts: Seq[Completion], seconds: Seq[Completion]) -> Labeller:
    """The labeller, or with a warning its symmetrised form where p(a ≻ b) + p(b ≻ a) is not 1 on these pairs."""
    there, back = np.asarray(labeller(firsts, seconds)), np.asarray(labeller(seconds, firsts))
    worst = float(np.abs(there + back - 1).max(initial=0.0))
    if worst <= ASYMMETRY:
        return labeller
    warnings.warn(f"p(a ≻ b) + p(b ≻ a) differs from 1 by up to {worst:.3g}: both orders are averaged", stacklevel=2)
    return Symmetrised(labeller)


@dataclass(frozen=True)
class PreferencePair:
    """Two completions of one prompt and p = P(first ≻ second); `margin` is how much better the first is known to be.

    row  where it stood in the user's file, from 1; 0: not from a file
    """

    first: Completion
    second: Completion
    preference: float = 1.0
    margin: float = 0.0
    row: int = 0

    def __post_init__(self) -> None:
        where = f"row {self.row}: " if self.row else ""
        if not 0 <= self.preference <= 1:
            raise DataError(f"{where}the preference must lie in [0, 1], got {self.preference}")
        if self.first.prompt != self.second.prompt:
            raise DataError(f"{where}the two completions have different prompts")
        if self.first.tokens == self.second.tokens and self.preference != 0.5:
            raise DataError(f"{where}the chosen and the rejected completion are the same: remove the row")


@dataclass(frozen=True)
class Labels:
    """What a labeller said of pairs, ties of hard labels left out.

    kept  (B',) places of the pairs that have a label;  preferences: (B',) p(first ≻ second);  ties: how many were
          left out
    """

    kept: IntArray
    preferences: Floats
    ties: int


def label_pairs(
    labeller: Labeller,
    firsts: Seq[Completion],
    seconds: Seq[Completion],
    *,
    hard: Hardness = False,
    rng: np.random.Generator | None = None,
) -> Labels:
    """Preferences of pairs.

    hard  False: p itself.  True: 1 or 0, whichever is nearer, and ties (p = ½) are left out.  "sample": 1 with
          probability p, drawn from `rng`
    DataError that names the pair where p lies outside [0, 1].
    """
    p = np.asarray(labeller(firsts, seconds), np.float64)
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"pair {row + 1}: the preference is {p[row]}, it must lie in [0, 1]")
    every = np.arange(len(p))
    if hard == "sample":
        if rng is None:
            raise ValueError('hard="sample" needs rng=')
        return Labels(every, (rng.random(len(p)) < p).astype(np.float64), 0)
    if not hard:
        return Labels(every, p, 0)
    kept = np.flatnonzero(p != 0.5)
    return Labels(kept, (p[kept] > 0.5).astype(np.float64), len(p) - len(kept))
