"""Random trigram tables, and what every search in one promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from likely.decoding.drafting.trigram.drafter import DOUBT
from likely.decoding.drafting.trigram.table import next_pair, pair_of

V = 5
START = pair_of(0, 1)


def table(seed: int, *, vocab: int = V, most: int = 4, known: float = 0.9):
    """Random successors of every pair, heaviest first; some pairs are unknown."""
    rng = np.random.default_rng(seed)
    found = {}
    for a, b in itertools.product(range(vocab), repeat=2):
        if rng.random() < known:
            n = int(rng.integers(1, most + 1))
            weights = np.sort(rng.choice([1.0, 0.5, 1.5, rng.random() + 0.01, 3.0], n))[::-1]
            found[pair_of(a, b)] = tuple(rng.permutation(vocab)[:n].tolist()), tuple(weights.tolist())
    return lambda pair: found.get(pair, ((), ()))


def paths_of(found):
    """Node -> the tokens down to it."""
    tokens, parents, _ = found
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def every_path(look, depth):
    """{path: share} of all paths of at most `depth` tokens."""
    level, out = {(): (START, 1.0)}, {}
    for _ in range(depth):
        below = {}
        for path, (pair, share) in level.items():
            tokens, weights = look(pair)
            for token, weight in zip(tokens, weights, strict=True):
                below[*path, token] = next_pair(pair, token), share * weight / (sum(weights) + DOUBT)
        out |= {path: share for path, (_, share) in below.items()}
        level = below
    return out


def check_drafts(search, seed, budget, depth):
    """Every node is a trigram of the table, every prefix a draft."""
    look = table(seed)
    tokens, parents, shares = found = search(look, START, budget=budget, depth=depth)
    assert len(tokens) == len(parents) == len(shares) <= budget
    assert all(-1 <= parent < i for i, parent in enumerate(parents))
    paths = paths_of(found)
    assert len(set(paths)) == len(paths)
    for path, share in zip(paths, shares, strict=True):
        assert len(path) <= depth + 1
        assert path[-1] in look(pair_of(*(0, 1, *path[:-1])[-2:]))[0]
        assert share == pytest.approx(every_path(look, len(path))[path])
    smaller = search(look, START, budget=max(budget // 2, 1), depth=depth)
    assert paths_of(smaller) == paths[: len(smaller[0])]
