"""One χ² test for all sampling tests: false alarm below 1e-6."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.stats import chi2


def chi_square_p(draws: Iterable[Any], law: Mapping[Any, float]) -> float:
    """p-value of Pearson's χ² of draws against exact probabilities; cells expecting < 5 are pooled.

    A draw outside the law's support gives 0.
    """
    counts = Counter(draws)
    n = sum(counts.values())
    assert abs(sum(law.values()) - 1) < 1e-5
    if any(law.get(outcome, 0.0) == 0.0 for outcome in counts):
        return 0.0
    observed, expected, rest_o, rest_e = [], [], 0.0, 0.0
    for outcome, p in law.items():
        if n * p >= 5:
            observed.append(counts[outcome])
            expected.append(n * p)
        else:
            rest_o, rest_e = rest_o + counts[outcome], rest_e + n * p
    if rest_e > 0:
        observed.append(rest_o)
        expected.append(max(rest_e, 1e-9))
    o, e = np.array(observed, float), np.array(expected)
    if len(o) < 2:
        return 1.0
    return float(chi2.sf(((o - e) ** 2 / e).sum(), len(o) - 1))
