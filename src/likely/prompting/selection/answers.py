"""Answers under a pool of prompts, P[t, i, k] = p(answer k | input i in prompt t): checks, accuracy and F1.

Shapes: T prompts, N inputs, K answers.  Errors name the bad prompt and input.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from likely.metrics.checks import SUM_TOLERANCE, Floats, check_labels


def check_answers(P: Any, name: str = "P") -> Floats:
    """(T, N, K), or (N, K) of one prompt; N, K >= 2, rows that sum to 1 within 1e-3 (and then exactly)."""
    array = _numbers(P, name)
    bad = (array < 0) | (array > 1 + SUM_TOLERANCE)
    if bad.any():
        raise ValueError(f"{name}: {_where(bad)} has values outside 0..1")
    sums = array.sum(axis=-1, keepdims=True)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    if off.any():
        raise ValueError(
            f"{name}: {_where(off)} sums to {sums[off][0]:.6g}, not 1: take softmax over the answers first"
        )
    return array / sums


def check_logprobs(logprobs: Any, name: str = "logprobs") -> Floats:
    """(T, N, K), or (N, K) of one prompt; N, K >= 2, no NaN, no +inf, no row that is all -inf."""
    array = _numbers(logprobs, name)
    for bad, why in (
        (np.isposinf(array), "holds +inf"),
        (np.isneginf(array).all(axis=-1, keepdims=True), "gives every answer probability 0"),
    ):
        if bad.any():
            raise ValueError(f"{name}: {_where(bad)} {why}")
    return array


def _numbers(values: Any, name: str) -> Floats:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers of shape (prompts, inputs, answers)") from None
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"{name} must be (prompts, inputs, answers) or (inputs, answers), got shape {array.shape}")
    if array.shape[-1] < 2:
        raise ValueError(f"{name} has {array.shape[-1]} answer: at least 2 are needed, one answer is always right")
    if array.shape[-2] < 2:
        raise ValueError(f"{name} has {array.shape[-2]} input: at least 2 are needed, prompts are compared over inputs")
    bad = np.isnan(array)
    if bad.any():
        raise ValueError(f"{name}: {_where(bad)} is not a number (NaN)")
    return array


def _where(bad: Any) -> str:
    *prompt, row, _ = np.argwhere(bad)[0]
    return f"prompt {prompt[0]}, input {row}" if prompt else f"input {row}"


def macro_f1(answers: Any, labels: Any, classes: int) -> float:
    """Mean over classes of 2 tp / (2 tp + fp + fn); classes that neither occur nor are answered are left out."""
    labels = check_labels(labels, len(labels), classes)
    answers = check_labels(answers, len(labels), classes, "answers")
    hits = np.bincount(labels[answers == labels], minlength=classes)
    there = np.bincount(labels, minlength=classes) + np.bincount(answers, minlength=classes)
    return float((2 * hits[there > 0] / there[there > 0]).mean())


def accuracy(answers: Any, labels: Any) -> float:
    return float((np.asarray(answers) == np.asarray(labels)).mean())


def f1_of_prompts(P: Floats, labels: Any) -> Floats:
    """(T,) macro-F1 of the most likely answers under each prompt; P (T, N, K)."""
    return np.array([macro_f1(p.argmax(axis=1), labels, P.shape[2]) for p in P])


def scaled_f1(f1: float, of_prompts: Floats) -> float:
    """F1 of the selected prompts / F1 of the best prompt, both with or both without calibration.

    Choosing per input can do better than every single prompt: above 1 is possible.
    """
    best = float(of_prompts.max())
    if best == 0:
        raise ValueError("scaled F1 is not defined: no prompt answers anything right")
    return f1 / best
