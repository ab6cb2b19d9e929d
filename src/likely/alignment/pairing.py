"""Which candidates of one prompt are compared: pairs of indices, as int arrays (P, 2), and what labels make of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Literal

import numpy as np
import numpy.typing as npt

from likely.alignment.labellers import Hardness, Labeller, PreferencePair, label_pairs
from likely.alignment.scores import Completion
from likely.alignment.sources import Candidates
from likely.errors import check_choice
from likely.runtimes.protocol import IntArray

Pairing = Literal["first_round", "tournament", "all_pairs", "best_worst"]
PAIRINGS = ("first_round", "tournament", "all_pairs", "best_worst")


def first_round(n: int, rng: np.random.Generator) -> IntArray:
    """(n // 2, 2) disjoint random pairs; with odd n one candidate is left out."""
    order = rng.permutation(_at_least_two(n))
    return order[: n - n % 2].reshape(-1, 2)


def tournament(n: int, preference: Callable[[int, int], float], rng: np.random.Generator) -> IntArray:
    """(n − 1, 2) the games of a knock-out: in each round the survivors meet in pairs, every game is a pair.

    preference  p(i ≻ j); i goes on if it is > ½, at ½ the coin of `rng` decides
    With an odd number the last of a round goes on without a game.
    """
    left = rng.permutation(_at_least_two(n)).tolist()
    games: list[tuple[int, int]] = []
    while len(left) > 1:
        survivors = []
        for i, j in zip(left[::2], left[1::2], strict=False):
            games.append((i, j))
            p = preference(i, j)
            survivors.append(i if p > 0.5 or (p == 0.5 and rng.random() < 0.5) else j)
        left = survivors + left[len(left) - len(left) % 2 :]
    return np.array(games, np.int64)


def all_pairs(n: int) -> IntArray:
    """(n(n − 1)/2, 2) every pair once, the smaller index first."""
    return np.array(list(itertools.combinations(range(_at_least_two(n)), 2)), np.int64)


def best_worst(rewards: npt.ArrayLike) -> IntArray:
    """(1, 2) the candidate of the highest reward and that of the lowest, the first ones among equals."""
    values = np.asarray(rewards, np.float64)
    if np.isnan(values).any():
        raise ValueError(f"the reward of candidate {int(np.isnan(values).argmax())} is NaN")
    _at_least_two(len(values))
    best = int(values.argmax())
    worst = int(values.argmin())
    return np.array([[best, worst if worst != best else (best + 1) % len(values)]], np.int64)


def _at_least_two(n: int) -> int:
    if n < 2:
        raise ValueError(f"a pair needs two candidates, got {n}")
    return n


def pairs_of(
    candidates: Seq[Candidates],
    pairing: Pairing,
    labeller: Labeller,
    *,
    hard: Hardness = False,
    rng: np.random.Generator,
) -> list[PreferencePair]:
    """Candidates meet, and who is preferred is written down; ties of hard labels and equal completions are left out.

    pairing  "best_worst" needs candidates with rewards
    """
    check_choice("pairing", pairing, PAIRINGS)
    firsts: list[Completion] = []
    seconds: list[Completion] = []
    for found in candidates:
        texts = found.completions
        for i, j in _meetings(found, pairing, labeller, rng):
            if texts[i].tokens != texts[j].tokens:
                firsts.append(texts[i])
                seconds.append(texts[j])
    if not firsts:
        return []
    labels = label_pairs(labeller, firsts, seconds, hard=hard, rng=rng)
    return [
        PreferencePair(firsts[i], seconds[i], float(p)) for i, p in zip(labels.kept, labels.preferences, strict=True)
    ]


def _meetings(
    candidates: Candidates, pairing: Pairing, labeller: Labeller, rng: np.random.Generator
) -> list[tuple[int, int]]:
    n, texts = len(candidates), candidates.completions
    if pairing == "best_worst":
        if candidates.rewards is None:
            raise ValueError('pairing "best_worst" needs candidates with rewards: call rewarded(...) first')
        pairs = best_worst(candidates.rewards)
    elif pairing == "tournament":
        pairs = tournament(n, lambda i, j: float(labeller([texts[i]], [texts[j]])[0]), rng)
    else:
        pairs = first_round(n, rng) if pairing == "first_round" else all_pairs(n)
    return [(int(i), int(j)) for i, j in pairs]
