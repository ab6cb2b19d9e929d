"""A product of cases by its pairs: what two of the axes do together, each at least once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any


def pairwise(cases: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Some of the cases, in their order, in which every pair of values of two axes stands that stands in any.

    The next is always one with the most pairs that are missing.
    """
    pairs = {case: set(combinations(enumerate(case), 2)) for case in cases}
    missing, found = set[Any]().union(*pairs.values()), set()
    while missing:
        best = max(pairs, key=lambda case: len(pairs[case] & missing))
        found.add(best)
        missing -= pairs[best]
    return [case for case in pairs if case in found]
