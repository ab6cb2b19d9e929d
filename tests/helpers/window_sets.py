"""Calibration sets of random tokens, for models that have no text."""

from __future__ import annotations

import numpy as np

from likely.compression.calibration_set import CalibrationSet


def random_windows(count: int = 5, length: int = 12, seed: int = 0, vocab: int = 64) -> CalibrationSet:
    ids = np.random.default_rng(seed).integers(0, vocab, (count, length))
    return CalibrationSet(ids, "random", "random")
