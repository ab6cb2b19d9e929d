"""The cost of a call in four terms: measured here, or fitted to times that another engine has logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from likely.errors import DataError
from likely.io.jsonl import read_lines
from likely.lm.model import Model
from likely.runtimes.cost_curve import CostCurve, measure
from likely.runtimes.machine import cores, machine
from likely.runtimes.step_cost import StepCost

FIELDS = ("sequences", "tokens", "context", "seconds")


def profile_model(
    lm: Model, *, threads: int | None = None, quick: bool = False, progress: Callable[[str], None] | None = None
) -> CostCurve:
    """Time calls over batch sizes, tokens per sequence and contexts, and store the curve with its `step_cost`.

    The same curve as that of likely bench, with the shapes that tell the terms apart.
    """
    longest = lm.runtime.limits.tokens_held
    curve = measure(
        lm.runtime,
        name=lm.info.runtime,
        dtype=lm.info.dtype,
        threads=getattr(lm.runtime, "threads", None) or threads or cores(),
        cpu=machine().cpu,
        source=lm.info.sha256,
        contexts=[context for context in (64, 512) if context < longest] or (16,),
        positions=(1, 2, 5, 9, 17) if quick else (1, 2, 3, 5, 9, 17, 33, 64),
        sequences=(4, 8) if quick else (2, 4, 8, 16),
        per_sequence=(1, 3) if quick else (1, 3, 5),
        batch_contexts=(16, 128),
        rounds=3 if quick else 5,
        seconds=30.0 if quick else 240.0,
        progress=progress,
    )
    if curve.step_cost is None:
        curve.fitted()  # says what is missing
    curve.save()
    return curve


def fit_timings(path: str | Path) -> StepCost:
    """From a JSON Lines file with the numbers of `FIELDS` per timed call; DataError names the line of a wrong one."""
    rows = []
    for line in read_lines(path):
        row = [line.record.get(name) for name in FIELDS]
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in row):
            raise DataError(f"{path}:{line.number}: expected numbers {', '.join(FIELDS)}, got {row}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no timed calls: expected lines with {', '.join(FIELDS)}")
    sequences, tokens, context, seconds = zip(*rows, strict=True)
    return StepCost.fit(sequences, tokens, context, seconds, measured_on={"timings": Path(path).name})
