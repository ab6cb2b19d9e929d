"""Several monitors at once: what all of them allow; where nothing is left, what the first ones allow."""

from __future__ import annotations

from collections.abc import Sequence

from likely.decoding.masks import Mask


def join(masks: Sequence[Mask], everything: Mask) -> tuple[Mask, list[int]]:
    """(the intersection of `everything` and the masks, the numbers of those left out).

    masks  in order of priority: one that would leave no token beside what the masks before it allow is left out
    """
    found, dropped = everything, []
    for number, mask in enumerate(masks):
        both = found & mask
        if both.any() or not mask.any():  # one that allows nothing at all is a dead end, not a conflict
            found = both
        else:
            dropped.append(number)
    return found, dropped
