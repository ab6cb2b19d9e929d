"""Work in fixed chunks of input lines, so that a run that was stopped ends with the digits of an unbroken one.

The last digits of a log-probability may depend on what is computed in the same call.  A chunk is the unit that is
computed together; one that was cut is computed whole again, and only its missing lines are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from likely.jsonl import Line, Results

T = TypeVar("T")
CHUNK = 128  # lines scored together: enough to fill calls and share prefixes, few enough to lose on a kill


def chunked(items: Sequence[T], size: int = CHUNK) -> list[Sequence[T]]:
    """The items in runs of `size`, the last one shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def unfinished(lines: Sequence[Line], results: Results, where: str, *, size: int = CHUNK) -> list[Sequence[Line]]:
    """The chunks of which at least one line has no result yet; DataError if a finished line was changed since."""
    return [chunk for chunk in chunked(lines, size) if not all([results.is_done(line, where) for line in chunk])]
