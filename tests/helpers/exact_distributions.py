"""The exact distribution of an acceptance rule at one node: candidates and the code's own decisions are enumerated.

The rule is called with a probe in place of each uniform: comparing `probe * a < b` records min(1, b / a), which is
the probability that the code accepts, and answers what the enumeration wants to see.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog

from likely.decoding.accept import k_sequential, recursive_rejection


class Probe:
    """Stands for u ~ U[0, 1)."""

    def __init__(self, answers: list[bool], seen: list[float], factor: float = 1.0):
        self.answers, self.seen, self.factor = answers, seen, factor

    def __mul__(self, other: float) -> Probe:
        return Probe(self.answers, self.seen, self.factor * float(other))

    def __lt__(self, bound: float) -> bool:
        accepts = 1.0 if self.factor <= 0 and bound > 0 else 0.0 if self.factor <= 0 else min(1.0, bound / self.factor)
        answer = self.answers.pop(0)
        self.seen.append(accepts if answer else 1 - accepts)
        return answer


Rule = Callable[..., tuple[int | None, np.ndarray]]  # (p, q, candidates, uniform)


def rule_r_iid(p, q, candidates, uniform):
    return recursive_rejection(p, q, candidates, uniform, replaced=True)


def rule_r_without(p, q, candidates, uniform):
    return recursive_rejection(p, q, candidates, uniform, replaced=False)


rule_k = k_sequential


def candidates_distribution(q: np.ndarray, k: int, *, replaced: bool) -> dict[tuple[int, ...], float]:
    """P of each ordered list of candidates; without replacement it is shorter where q has fewer tokens."""
    k = k if replaced else min(k, int((q > 0).sum()))
    found = {}
    for xs in itertools.product(range(len(q)), repeat=k):
        left, weight = q.copy(), 1.0
        for x in xs:
            weight *= left[x] / left.sum() if left[x] > 0 else 0.0
            if not replaced:
                left[x] = 0.0
        if weight > 0:
            found[xs] = weight
    return found


def distribution_of(rule: Rule, p: np.ndarray, q: np.ndarray, candidates: dict[tuple[int, ...], float]) -> tuple:
    """(distribution of the emitted token (V,), probability that a candidate was accepted)"""
    emitted, accepted = np.zeros(len(p)), 0.0
    for xs, weight in candidates.items():
        for refusals in range(len(xs) + 1):
            answers, seen = [False] * refusals + [True], []
            kept, rest = rule(p.copy(), q.copy(), list(xs), lambda a=answers, s=seen: Probe(a, s))
            chance = weight * float(np.prod(seen))
            if chance == 0:
                continue
            if kept is None:
                emitted += chance * rest
            else:
                emitted[xs[kept]] += chance
                accepted += chance
    return emitted, accepted


def best_possible(p: np.ndarray, candidates: dict[tuple[int, ...], float]) -> float:
    """Largest P(the emitted token is among the candidates) of any exact rule: optimal transport as a linear program."""
    lists, weights, size = list(candidates), np.array(list(candidates.values())), len(p)
    gain = np.array([[float(y in xs) for y in range(size)] for xs in lists])
    rows = np.kron(np.eye(len(lists)), np.ones(size))
    columns = np.kron(np.ones(len(lists)), np.eye(size))
    found = linprog(-gain.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([weights, p]))
    assert found.status == 0
    return -float(found.fun)


def random_distributions(size: int, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(p, q): "any", "zeros" in both, "equal", or "disjoint" supports."""
    p, q = rng.dirichlet(np.ones(size) / 2), rng.dirichlet(np.ones(size) / 2)
    if kind == "equal":
        return p, p.copy()
    if kind == "any" or size < 2:
        return p, q
    holes = rng.permutation(size)
    split = int(rng.integers(1, size))
    p[holes[:split]] = 0
    q[holes[split:] if kind == "disjoint" else rng.permutation(size)[: size - split]] = 0
    if not p.sum() or not q.sum():
        return random_distributions(size, kind, rng)
    return p / p.sum(), q / q.sum()
