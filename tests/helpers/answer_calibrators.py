"""Calibrators of answers, fitted for nothing in particular or for a model and its settings."""

from __future__ import annotations

import numpy as np

from likely.calibration.calibrator import fit_calibrator
from likely.calibration.labelled import Labelled
from likely.calibration.recalibrators.answer import features
from likely.lm.confidence import binding_of


def unsure(answers: int = 40):
    """A calibrator that is bound to nothing and finds every answer as likely right as wrong."""
    rows = np.array([features([-1.0 - i % 7, -0.5]) for i in range(answers)])
    return fit_calibrator(Labelled("answer", rows, np.arange(answers, dtype=np.int64) % 2))


def calibrator_of(lm, settings, answers, *, system=None):
    """A calibrator of answers that were given with these settings: the likelier ones are right, mostly."""
    rows = np.array([features(list(answer.token_logprobs)) for answer in answers])
    labels = (rows[:, 0] > np.median(rows[:, 0])).astype(np.int64)
    labels[::7] ^= 1
    bound = binding_of(lm, settings, system)
    return fit_calibrator(Labelled("answer", rows, labels, {**bound, "sha256": bound["weights"]}))
