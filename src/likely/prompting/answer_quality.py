"""How good answers are where labels are known: accuracy, macro-F1, scaled F1."""

from __future__ import annotations

from typing import Any

import numpy as np

from likely.calibration.inputs import Floats, check_labels


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
    """F1 of what was chosen / F1 of the best prompt, both read in the same way (calibrated or not).

    Choosing per input can do better than every single prompt: above 1 is possible.
    """
    best = float(of_prompts.max())
    if best == 0:
        raise ValueError("scaled F1 is not defined: no prompt answers anything right")
    return f1 / best
