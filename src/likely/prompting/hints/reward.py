"""The reward for a stated confidence (a proper score), and advantages within a group of samples (Prompt4Trust).

Kriz et al. 2025, "Prompt4Trust", arXiv:2507.09279, section 3; the constants are those of the official code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from likely.metrics.checks import Floats

INVALID = math.log(1e-12)


def confidence_reward(
    correct: Any, confidence: Any, parsed: Any = None, *, wrong_penalty: float = 1.0, eps: float = 1e-10,
    invalid: float = INVALID,
) -> Floats:  # fmt: skip
    """The reward of answers that state a confidence p; all arrays of one shape, or numbers.

    right   ln max(p, eps): 0 at full confidence
    wrong   ln max(1 − p, eps) − wrong_penalty: −1 at none, −24 at full confidence
    parsed  False: no answer or no confidence could be read; the reward is `invalid` whatever the other arguments are

    For answers that are right with probability a, the expected reward a·ln p + (1−a)·(ln(1−p) − 1) is largest at p = a
    (the log score is proper), whatever the penalty; the penalty pays for being right.
    """
    right, p = np.asarray(correct, np.float64), np.asarray(confidence, np.float64)
    read = np.ones(np.broadcast_shapes(right.shape, p.shape), bool) if parsed is None else np.asarray(parsed, bool)
    right, p, read = np.broadcast_arrays(right, p, read)
    _refuse(read & ~np.isin(right, (0.0, 1.0)), "correct", right, "must be 0 or 1")
    _refuse(read & ~((p >= 0) & (p <= 1)), "confidence", p, "must lie in 0..1")
    safe = np.where(read, p, 0.5)
    won = np.log(np.maximum(safe, eps))
    lost = np.log(np.maximum(1 - safe, eps)) - wrong_penalty
    return np.where(read, np.where(right == 1, won, lost), invalid)


def group_advantages(rewards: Any) -> Floats:
    """(G, n) rewards of n samples for each of G questions -> advantages: reward − mean of its group.

    They are not divided by the group's standard deviation, as GRPO first did: a group of nearly equal rewards would
    count as much as one with large differences.
    """
    array = np.asarray(rewards, np.float64)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"rewards must be (groups, samples) with 2 samples or more, got shape {array.shape}")
    _refuse(~np.isfinite(array), "rewards", array, "must be finite")
    return array - array.mean(axis=1, keepdims=True)


def _refuse(bad: Any, name: str, values: Any, what: str) -> None:
    if np.any(bad):
        place = tuple(int(i) for i in np.argwhere(np.atleast_1d(bad))[0])
        shown = np.atleast_1d(values)[place]
        where = f"row {place[0]}" if len(place) == 1 else f"entry {place}"
        raise ValueError(f"{name}: {where} {what}, got {shown}")
