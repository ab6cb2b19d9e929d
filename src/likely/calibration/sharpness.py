"""How far confidences lie from each other and from "do not know", whatever is true."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from likely.calibration.inputs import Floats, check_confidence


def sharpness(confidence: Any) -> float:
    """Variance of the confidences (N,), 0 (all equal) to ¼."""
    return float(check_confidence(confidence).var())


class Polarisation(NamedTuple):
    """extreme: share outside [0.1, 0.9].  deviation: standard deviation.  to_certainty: mean distance to 0 or 1."""

    extreme: float
    deviation: float
    to_certainty: float


def polarisation(confidence: Any) -> Polarisation:
    """Whether scores crowd at 0 and 1.  For scores of an event, e.g. risk scores (N,)."""
    c = check_confidence(confidence)
    return Polarisation(float(extreme(c).mean()), float(c.std()), float(np.minimum(c, 1 - c).mean()))


def extreme(confidence: Floats) -> Floats:
    """1.0 for confidences outside [0.1, 0.9], else 0.0; (N,)"""
    return ((confidence < 0.1) | (confidence > 0.9)).astype(np.float64)
