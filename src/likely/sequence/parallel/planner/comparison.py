"""What unequal groups would gain on a corpus: its lengths in batches, planned and against groups of one size."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from likely.errors import DataError
from likely.metrics.checks import Ints
from likely.sequence.parallel.planner.cost import CostModel
from likely.sequence.parallel.planner.integer_program import SolverLimits
from likely.sequence.parallel.planner.plans import ParallelPlan, homogeneous_plans, plan

MOST_LINES = 20_000_000
BEST = "best single degree per batch"


def read_lengths(path: str | Path) -> Ints:
    """One whole number of tokens a line, .gz too; DataError names the line that is none."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file} is no file: give one with a length in tokens on every line")
    found = []
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) < 10**11) or number > MOST_LINES:
                raise DataError(f"{file}:{number}: a whole number of tokens >= 1 is expected, got {text[:40]!r}")
            found.append(int(text))
    if not found:
        raise DataError(f"{file} is empty: a length in tokens is expected on every line")
    return np.array(found, np.int64)


def length_batches(lengths: ArrayLike, size: int, *, longest: int | None = None, multiple: int = 128) -> Iterator[Ints]:
    """Batches of `size` lengths in their order, each rounded up to `multiple`; longer ones than `longest` are left out.

    The last batch is dropped where it is not full, unless it is the only one.
    """
    if size < 1 or multiple < 1 or (longest is not None and longest < 1):
        raise ValueError(f"size, multiple and longest must be >= 1, got {size}, {multiple}, {longest}")
    s = -(-np.asarray(lengths, np.int64) // multiple) * multiple
    s = s if longest is None else s[s <= longest]
    if not len(s):
        raise DataError(f"no length is at most {longest}: raise the limit")
    for start in range(0, max(len(s) - size + 1, 1), size):
        yield s[start : start + size]


def first_batches(batches: Iterator[Ints], count: int) -> list[Ints]:
    """At most `count` of them."""
    return list(islice(batches, count))


def longest_that_fits(n_devices: int, cost: CostModel) -> int:
    """Tokens of the longest sequence that the largest group holds."""
    return cost.capacity(max(d for d in cost.degrees if d <= n_devices), n_devices)


@dataclass(frozen=True)
class BatchComparison:
    """Predicted times of one batch in ms.

    planned  with groups of unequal sizes;  alike: degree -> time with groups of that size only, where the longest fits
    """

    planned: ParallelPlan
    alike: dict[int, float]

    @property
    def best_alike(self) -> float:
        return min(self.alike.values())

    @property
    def mixes(self) -> bool:
        """Whether a micro-batch has one group of at least 16 devices beside four or more of at most 8."""
        return any(max(sizes) >= 16 and sum(size <= 8 for size in sizes) >= 4 for sizes in self.planned.degrees)


def compare_batch(
    lengths: ArrayLike, n_devices: int, cost: CostModel, *, solver: Literal["milp", "greedy"] = "milp",
    limits: SolverLimits | None = None,
) -> BatchComparison:  # fmt: skip
    """Plan one batch, and plan it with groups of one size."""
    made = plan(lengths, n_devices, cost, solver=solver, limits=limits)
    alike = homogeneous_plans(lengths, n_devices, cost)
    return BatchComparison(made, {degree: other.predicted_ms for degree, other in alike.items()})


@dataclass(frozen=True)
class CorpusComparison:
    """Of several batches."""

    batches: tuple[BatchComparison, ...]

    def pairs(self, against: int | str) -> tuple[list[float], list[float]]:
        """(times of groups of one size, planned times) of the batches that fit; against: a degree, or BEST."""
        kept = [b for b in self.batches if against == BEST or against in b.alike]
        others = [b.best_alike if isinstance(against, str) else b.alike[against] for b in kept]
        return others, [b.planned.predicted_ms for b in kept]

    def rows(self) -> list[dict[str, Any]]:
        """One row each for the plan, the best single degree per batch, and every degree that some batch fits."""
        planned = [b.planned.predicted_ms for b in self.batches]
        n = len(self.batches)
        rows: list[dict[str, Any]] = [
            {"groups": "planned", "batches": n, "mean_ms": sum(planned) / n, "times_planned": 1.0}
        ]
        compared: list[int | str] = [BEST, *sorted({d for b in self.batches for d in b.alike})]
        for against in compared:
            others, own = self.pairs(against)
            name = against if isinstance(against, str) else f"all of {against}"
            rows.append(
                {"groups": name, "batches": len(own), "mean_ms": sum(others) / len(own),
                 "times_planned": sum(others) / sum(own)}
            )  # fmt: skip
        bounds = [b.planned.bound_ms for b in self.batches]
        rows.append(
            {"groups": "no plan is faster", "batches": n, "mean_ms": sum(bounds) / n,
             "times_planned": sum(bounds) / sum(planned)}
        )  # fmt: skip
        return rows


def compare_plans(
    batches: Sequence[ArrayLike], n_devices: int, cost: CostModel, *, solver: Literal["milp", "greedy"] = "milp",
    limits: SolverLimits | None = None, progress: Callable[[int], None] = lambda n: None,
) -> CorpusComparison:  # fmt: skip
    """Plan every batch, with unequal groups and with groups of one size.  progress: called with 1 after each."""
    made = []
    for batch in batches:
        made.append(compare_batch(batch, n_devices, cost, solver=solver, limits=limits))
        progress(1)
    return CorpusComparison(tuple(made))


def plan_rows(made: ParallelPlan, cost: CostModel) -> list[dict[str, Any]]:
    """One row per micro-batch: its groups ("1x32 + 4x8"), sequences, tokens, longest, time."""
    rows = []
    s = np.asarray(made.lengths)
    for number, groups in enumerate(made.microbatches):
        own = s[[i for group in groups for i in group.sequences]]
        sizes = sorted(Counter(group.degree for group in groups).items(), reverse=True)
        ms = max(cost.time(s[list(group.sequences)], group.degree) for group in groups)
        rows.append(
            {"micro-batch": number, "groups": " + ".join(f"{n}x{size}" for size, n in sizes), "sequences": len(own),
             "tokens": int(own.sum()), "longest": int(own.max()), "ms": ms}
        )  # fmt: skip
    return rows
