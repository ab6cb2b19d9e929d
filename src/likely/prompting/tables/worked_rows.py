"""Rows with their outcome, worked in front of a question: which are drawn, and that none is a row in question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from likely.prompting.ensembles.demonstrations import plain
from likely.prompting.tables.task import TableTask
from likely.prompting.tables.text import Row, code_of

WORKED = "is also one of the worked examples, whose outcome stands in the prompt: leave one of the two out"


def drawn(examples: Sequence[Row], task: TableTask, count: int, *, balanced: bool = True, seed: int = 0) -> list[Row]:
    """`count` of the examples in a random order; balanced: the outcomes in turn, as long as none runs out."""
    order = np.random.default_rng(seed).permutation(len(examples))
    if balanced:
        turn: dict[int | None, int] = {}
        ranked: list[tuple[int, int, int]] = []
        for i in order:
            k = task.outcome(examples[i])
            turn[k] = turn.get(k, 0) + 1
            ranked.append((turn[k], len(ranked), i))
        order = np.array([i for _, _, i in sorted(ranked)])
    return [examples[i] for i in order[:count]]


def worked_row(rows: Sequence[Row], shots: Sequence[Row], task: TableTask) -> int | None:
    """The first row that is also a worked example, so that its outcome stands in the prompt; None if there is none.

    The same in all columns that both have, the target aside, without regard to case and white space.
    """
    known = [{name: _plain(value) for name, value in shot.items() if name != task.target} for shot in shots]
    for i, row in enumerate(rows):
        if any(all(_plain(row[name]) == text for name, text in shot.items() if name in row) for shot in known):
            return i
    return None


def _plain(value: object) -> str:
    return plain(code_of(value))
