"""Several opinions into one: vote, mean, max, geometric mean of members' probabilities.

Shapes: E members, N inputs, K answers.  Nothing depends on the order of the members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from likely.errors import check_choice
from likely.metrics.checks import Floats, Ints, check_probs, softmax

Combination = Literal["vote", "mean", "max", "geometric"]
COMBINATIONS = get_args(Combination)


@dataclass(frozen=True)
class Ensembled:
    """What an ensemble says.

    member_probs (E, N, K);  probs (N, K), rows sum to 1;  answers (N,)
    confidence   (N,): of the answer.  Its probability; a share of votes, in 1/E, 2/E, ... 1, for "vote"
    """

    member_probs: Floats
    probs: Floats
    answers: Ints
    confidence: Floats

    @property
    def disagreement(self) -> Floats:
        """(N,) share of pairs of members that answer differently; 0 for a single member."""
        members, _, k = self.member_probs.shape
        if members == 1:
            return np.zeros(self.member_probs.shape[1])
        counts = np.eye(k)[self.member_probs.argmax(axis=2)].sum(axis=0)
        return 1 - (counts * (counts - 1)).sum(axis=1) / (members * (members - 1))


def check_members(member_probs: Any) -> Floats:
    """(E, N, K) with E, N >= 1 and K >= 2, rows that sum to 1; ValueError names member and row."""
    try:
        array = np.asarray(member_probs, np.float64)
    except (TypeError, ValueError):
        raise ValueError("member_probs must be numbers of shape (members, inputs, answers)") from None
    if array.ndim != 3 or not array.size:
        raise ValueError(f"member_probs must be (members, inputs, answers), got shape {array.shape}")
    return np.stack([check_probs(probs, f"member {e}") for e, probs in enumerate(array)])


def vote(member_probs: Floats) -> Floats:
    """(N, K) shares of the members whose most likely answer this is."""
    return np.eye(member_probs.shape[2])[member_probs.argmax(axis=2)].mean(axis=0)


def mean(member_probs: Floats) -> Floats:
    """(N, K) the mean: neither its Brier score nor its NLL is above the mean of the members' (Jensen)."""
    return member_probs.mean(axis=0)


def largest(member_probs: Floats) -> Floats:
    """(N, K) p_k ∝ max over members of p_k, divided by their sum: the maxima sum to 1 or more."""
    found = member_probs.max(axis=0)
    return found / found.sum(axis=1, keepdims=True)


def geometric(member_probs: Floats) -> Floats:
    """(N, K) p_k ∝ exp(mean over members of log p_k); a probability of 0 counts as the smallest number above it."""
    return softmax(np.log(np.maximum(member_probs, np.finfo(np.float64).tiny)).mean(axis=0))


COMBINE = {"vote": vote, "mean": mean, "max": largest, "geometric": geometric}


def combine_members(member_probs: Any, how: Combination = "max") -> Ensembled:
    """The members' probabilities (E, N, K) as one opinion.

    how  "max" is the paper's recommendation.  Ties of a vote go to the higher mean probability; other ties, and those
         within a member, to the lowest number
    Li et al. 2023, arXiv:2312.13772 (2025: "Large Language Models are Miscalibrated In-Context Learners"); "geometric"
    is ours.
    """
    check_choice("combination", how, COMBINE)
    array = check_members(member_probs)
    probs = COMBINE[how](array)
    if how == "vote":
        tied = probs >= probs.max(axis=1, keepdims=True) - 1e-12
        answers = np.where(tied, array.mean(axis=0), -1.0).argmax(axis=1)
    else:
        answers = probs.argmax(axis=1)
    return Ensembled(array, probs, answers, probs[np.arange(len(answers)), answers])
