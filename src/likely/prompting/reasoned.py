"""The probability at the end of a reasoned text: the last one that is stated, or none."""

from __future__ import annotations

import math
import re

_NUMBER = r"([0-9]{1,3}(?:\.[0-9]{1,6})?|\.[0-9]{1,6})"
_STATED = re.compile(rf"[Pp]robability(?:\s+(?:is|of|estimate))?\s{{0,5}}[:=]?\s{{0,5}}\**\s?{_NUMBER}\s?(%|percent)?")
_PERCENT = re.compile(rf"{_NUMBER}\s?(%|percent)")


def reasoned_probability(text: str) -> float:
    """In [0, 1]; NaN where none is stated (0.5 would pass for an answer).

    The last "Probability: X%" (or 0.X), else the last percentage.  1 without a percent sign is certainty; numbers over
    1 without one are percentages; over 100 they are none.
    """
    for pattern in (_STATED, _PERCENT):
        found = pattern.findall(text)
        if found:
            number, percent = found[-1]
            value = float(number)
            if percent or value > 1:
                value /= 100
            return value if value <= 1 else math.nan
    return math.nan
