"""Statistical rejection sampling (RSO): of N samples of a policy, k that follow the policy tilted by a reward.

Target π*(y|x) ∝ π(y|x)·exp(r(x, y)/β); proposal π.  numpy.
Liu et al. 2024, arXiv:2309.06657, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.alignment.importance import temperature
from likely.errors import DataError, check_choice
from likely.metrics.checks import as_floats

Dedup = Literal["keep", "unique"]


@dataclass(frozen=True, eq=False)
class RejectionSample:
    """What was accepted of one prompt's candidates, and how hard that was.

    indices          (k,) of the candidates, in the order of acceptance, each at most once
    beta             the temperature that was used
    passes           over the candidates that were left
    tried            how often a candidate was put to the test; k / tried is the acceptance rate
    expected_rate    mean of exp((r − r_max)/β): the acceptance rate to expect of the first pass
    maximum_only     passes that accepted nothing but the candidate with the largest reward
    short            fewer than k distinct candidates exist (dedup="unique"): all of them are given
    """

    indices: NDArray[np.int64]
    beta: float
    passes: int
    tried: int
    expected_rate: float
    maximum_only: int
    short: bool

    @property
    def acceptance_rate(self) -> float:
        return len(self.indices) / self.tried


@dataclass(frozen=True)
class RejectionStatistics:
    """Of many prompts: how their candidates were accepted.

    acceptance_rate  accepted / tried, over all prompts
    maximum_only     share of prompts with a pass that accepted nothing but the maximum: where it is large, β is small
                     for the scale of the rewards, and what is drawn is nearly the top k
    short            prompts with fewer than k distinct candidates
    """

    prompts: int
    accepted: int
    acceptance_rate: float
    expected_rate: float
    passes: float
    maximum_only: float
    short: int

    @classmethod
    def of(cls, samples: Iterable[RejectionSample]) -> RejectionStatistics:
        found = list(samples)
        if not found:
            raise DataError("statistics of rejection sampling need at least one prompt")
        accepted = sum(len(sample.indices) for sample in found)
        return cls(
            prompts=len(found),
            accepted=accepted,
            acceptance_rate=accepted / sum(sample.tried for sample in found),
            expected_rate=float(np.mean([sample.expected_rate for sample in found])),
            passes=float(np.mean([sample.passes for sample in found])),
            maximum_only=float(np.mean([sample.maximum_only > 0 for sample in found])),
            short=sum(sample.short for sample in found),
        )


def rejection_sample(
    rewards: ArrayLike,
    k: int,
    beta: float | str,
    rng: np.random.Generator,
    *,
    dedup: Dedup = "keep",
    completions: Sequence[Hashable] | None = None,
    where: str = "rewards",
) -> NDArray[np.int64]:
    """The indices of `accept_candidates`: (k,), distinct, in the order of acceptance."""
    return accept_candidates(rewards, k, beta, rng, dedup=dedup, completions=completions, where=where).indices


def accept_candidates(
    rewards: ArrayLike,
    k: int,
    beta: float | str,
    rng: np.random.Generator,
    *,
    dedup: Dedup = "keep",
    completions: Sequence[Hashable] | None = None,
    where: str = "rewards",
) -> RejectionSample:
    """k of N candidates by rejection sampling without replacement.

    Passes over the candidates that are left: r_max is their largest reward, each is accepted with probability
    exp((r − r_max)/β), until k are.  k = 1 follows π* as N grows; with k > 1 the later ones follow targets without the
    earlier.  β → ∞ accepts the first k, β → 0 the k best: best-of-N is that limit.

    rewards      (N,) on any scale; −inf is never accepted
    beta         > 0, in units of the reward, or "ess:0.1": per prompt so that weights e^{r/β} have an effective sample
                 size of a tenth of N
    dedup        "keep" candidates that are equal (samples are), or "unique": the first of equal `completions` only
    completions  (N,) token sequences as tuples, or texts; for dedup="unique"
    where        begins the message of an error: the prompt's row
    Candidates that were not drawn from π at temperature 1 give another target: (what they were drawn from)·e^{r/β}.
    """
    values = _checked(rewards, k, where)
    candidates = _distinct(len(values), dedup, completions)
    short = len(candidates) < k
    possible = candidates[np.isfinite(values[candidates])]
    wanted = len(candidates) if short else k
    if len(possible) < wanted:
        raise DataError(f"{where}: {wanted} candidates are wanted, {len(possible)} have a finite reward")
    chosen = temperature(values[candidates], beta)
    shares = np.exp((values[candidates] - values[possible].max()) / chosen)
    accepted: list[int] = []
    left, passes, tried, maximum_only = possible, 0, 0, 0
    while len(accepted) < wanted:
        odds = np.exp((values[left] - values[left].max()) / chosen)
        taken = np.flatnonzero(rng.random(len(left)) < odds)[: wanted - len(accepted)]
        accepted += left[taken].tolist()
        passes += 1
        tried += int(taken[-1]) + 1 if len(accepted) == wanted else len(left)
        maximum_only += bool(len(taken) == 1 and odds[taken[0]] == 1 and len(left) > 1)
        left = np.delete(left, taken)
    return RejectionSample(
        np.array(accepted, np.int64), chosen, passes, tried, float(shares.mean()), maximum_only, short
    )  # fmt: skip


def _checked(rewards: ArrayLike, k: int, where: str) -> NDArray[np.float64]:
    try:
        values = as_floats(rewards, where, 1)
    except ValueError as error:
        raise DataError(str(error)) from None
    if np.isposinf(values).any():
        raise DataError(f"{where}: candidate {int(np.isposinf(values).argmax())} has a reward of +inf")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if k > len(values):
        raise ValueError(f"{where}: k must be at most the number of candidates, got k {k} of {len(values)}")
    return values


def _distinct(n: int, dedup: str, completions: Sequence[Hashable] | None) -> NDArray[np.int64]:
    check_choice("dedup", dedup, ("keep", "unique"))
    if completions is not None and len(completions) != n:
        raise ValueError(f"completions must be as many as rewards, got {len(completions)} and {n}")
    if dedup == "keep":
        return np.arange(n)
    if completions is None:
        raise ValueError('dedup="unique" needs completions: which candidates are equal')
    first: dict[Hashable, int] = {}
    for i, completion in enumerate(completions):
        first.setdefault(completion, i)
    return np.array(sorted(first.values()), np.int64)
