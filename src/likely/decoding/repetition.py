"""Whether a text runs in circles: its end is one block of tokens again and again."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 64  # tokens of a block
TIMES = 4  # so often the block must stand there, one after the other
LEAST = 48  # tokens that all of them have together
LEAST_OF_SHORT = 128  # the same for blocks of one or two tokens: lines of dots and dashes, rows of zeros


def least_of(period: int) -> int:
    """How many tokens at the end must repeat a block of `period` tokens."""
    return max(TIMES * period, LEAST if period > 2 else LEAST_OF_SHORT)


def runs_in_circles(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are one block of at most LONGEST tokens, again and again; of the tokens alone.

    Tables, code, lists and refrains stay far from it: in the six million characters of this project's own sources and
    pages, split as tokenizers do, no block stands four times in a row with 48 tokens together.
    """
    n = len(tokens)
    for period in range(1, min(LONGEST, n - 1) + 1):
        if tokens[-1 - period] != tokens[-1]:
            continue
        least = least_of(period)
        if n >= least and _repeats(tail := tokens[n - least :], period):
            if period > 2 and _repeats(tail, 2):  # it is made of a short block, which may stand there more often
                continue
            return True
    return False


def _repeats(tokens: Sequence[int], period: int) -> bool:
    return tokens[period:] == tokens[:-period]
