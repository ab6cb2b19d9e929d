"""The probability at the end of a reasoned text: the last one that is stated, or none."""

from __future__ import annotations

import math

from likely.uncertainty.verbal import stated_probability


def reasoned_probability(text: str) -> float:
    """`stated_probability` in [0, 1]; NaN where none is stated (0.5 would pass for an answer).

    What follows the last "probability" (30%, 0.3, 3/10, 30), else the last percentage.  1 without a percent sign is
    certainty; numbers over 1 without one are percentages; below 0 or over 100 they are none.
    """
    found = stated_probability(text)
    return math.nan if found is None else found
