"""Plans of sequence parallelism for one batch: which devices form groups, and which sequences each group computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from likely.errors import DataError
from likely.metrics.checks import Ints
from likely.sequence.parallel.planner.cost import CostModel
from likely.sequence.parallel.planner.filling import Filling, fill, least_degrees, size_choices
from likely.sequence.parallel.planner.integer_program import SolverLimits, solve, surely_needed
from likely.sequence.parallel.planner.splits import split_batch

TRIED = 5  # numbers of micro-batches, from the least on
CLOSE = 1e-9  # relative, between a stated time and one computed anew


@dataclass(frozen=True)
class DeviceGroup:
    """Devices `ranks` (an aligned block of a power of two) that share each sequence of `sequences` (positions)."""

    ranks: tuple[int, ...]
    sequences: tuple[int, ...]

    @property
    def degree(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True)
class ParallelPlan:
    """Micro-batches one after the other, each of groups that work side by side.

    predicted_ms  Σ over micro-batches of the slowest group's time, under the cost model that made the plan
    bound_ms      no plan at all takes less
    """

    lengths: tuple[int, ...]
    n_devices: int
    microbatches: tuple[tuple[DeviceGroup, ...], ...]
    predicted_ms: float
    bound_ms: float

    @property
    def degrees(self) -> tuple[tuple[int, ...], ...]:
        """Of the groups of each micro-batch."""
        return tuple(tuple(group.degree for group in groups) for groups in self.microbatches)

    def time(self, cost: CostModel) -> float:
        """Of this plan under any cost model, in ms."""
        s = np.asarray(self.lengths)
        return sum(max(cost.time(s[list(g.sequences)], g.degree) for g in groups) for groups in self.microbatches)

    def validate(self, cost: CostModel) -> None:
        """DataError where sequences are lost or doubled, a group overfull, devices misplaced or the time misstated."""
        placed = sorted(i for groups in self.microbatches for group in groups for i in group.sequences)
        if placed != list(range(len(self.lengths))):
            wrong = sorted(set(range(len(self.lengths))) ^ set(placed)) or [i for i in placed if placed.count(i) > 1]
            raise DataError(f"sequence {wrong[0]} must be in exactly one group, found in {placed.count(wrong[0])}")
        s = np.asarray(self.lengths)
        for number, groups in enumerate(self.microbatches):
            ranks = [rank for group in groups for rank in group.ranks]
            if len(set(ranks)) != len(ranks) or not set(ranks) <= set(range(self.n_devices)):
                raise DataError(f"micro-batch {number}: devices must be different ones of 0..{self.n_devices - 1}")
            for group in groups:
                first, degree = group.ranks[0], group.degree
                if degree & (degree - 1) or first % degree or group.ranks != tuple(range(first, first + degree)):
                    raise DataError(f"micro-batch {number}: {group.ranks} is no aligned block of a power of two")
                tokens, room = int(s[list(group.sequences)].sum()), cost.capacity(degree, self.n_devices)
                if not group.sequences or tokens > room:
                    raise DataError(f"micro-batch {number}: {tokens} tokens in a group of {degree} that holds {room}")
        found = self.time(cost)
        if abs(found - self.predicted_ms) > CLOSE * found:
            raise DataError(f"the plan states {self.predicted_ms} ms; its cost model gives {found}")

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "n_devices": self.n_devices,
            "predicted_ms": self.predicted_ms,
            "bound_ms": self.bound_ms,
            "microbatches": [
                [{"degree": g.degree, "ranks": list(g.ranks), "sequences": list(g.sequences)} for g in groups]
                for groups in self.microbatches
            ],
        }


def plan(
    lengths: ArrayLike, n_devices: int, cost: CostModel, *, solver: Literal["milp", "greedy"] = "milp",
    degrees: Sequence[int] | None = None, limits: SolverLimits | None = None,
) -> ParallelPlan:  # fmt: skip
    """Groups and micro-batches that take the least predicted time.

    lengths   (K,) tokens of each sequence of the global batch, padding included
    solver    "greedy": every choice of group sizes, filled longest sequence first;  "milp": the integer program, too
    degrees   sizes that groups may have, powers of two with a bandwidth in `cost`; None: all up to n_devices

    The batch is split into M micro-batches of neighbouring lengths, from the least M that holds its tokens, five tried.
    DataError for a sequence that no group holds.  Wang et al. 2025 (FlexSP).
    """
    if solver not in ("milp", "greedy"):
        raise ValueError(f'solver must be "milp" or "greedy", got {solver!r}')
    s, sizes, capacity = _checked(lengths, n_devices, cost, degrees)
    choices = size_choices(n_devices, sizes)

    def greedy(part: Ints) -> Filling | None:
        found = fill(part, choices, cost, capacity)
        return found[0] if found else None

    if solver == "greedy":
        return _planned(s, n_devices, cost, sizes, capacity, greedy)

    improve = Improvement(n_devices, sizes, cost, capacity, limits or SolverLimits())
    return _planned(s, n_devices, cost, sizes, capacity, greedy, improve)


@dataclass(frozen=True)
class Improvement:
    """The integer program for micro-batches that are filled already."""

    n_devices: int
    degrees: tuple[int, ...]
    cost: CostModel
    capacity: int
    limits: SolverLimits

    def worth_it(self, parts: Sequence[Ints], known: Sequence[Filling], best_ms: float) -> bool:
        """Whether these micro-batches together could beat the best total by more than the gap."""
        needed = [
            surely_needed(part, self.n_devices, self.degrees, self.cost, self.capacity, filling.ms)
            for part, filling in zip(parts, known, strict=True)
        ]
        return sum(needed) < best_ms * (1 - self.limits.gap)

    def filling(self, part: Ints, known: Filling) -> Filling:
        return solve(part, self.n_devices, self.degrees, self.cost, self.capacity, known, self.limits)


def homogeneous_plans(
    lengths: ArrayLike, n_devices: int, cost: CostModel, *, degrees: Sequence[int] | None = None
) -> dict[int, ParallelPlan]:
    """Degree -> the plan in which all groups have it, for every degree that holds the longest sequence."""
    s, sizes, capacity = _checked(lengths, n_devices, cost, degrees)
    longest = int(s.max())
    return {
        d: _planned(s, n_devices, cost, sizes, capacity, _alike(d, n_devices, cost, capacity))
        for d in sizes
        if capacity * d >= longest
    }


def lower_bound(s: Ints, n_devices: int, degrees: Sequence[int], cost: CostModel, capacity: int, parts: int) -> float:
    """Time that no plan with at least `parts` micro-batches beats.

    Every micro-batch takes a group's fixed time; device-milliseconds of the sequences at their cheapest degrees are
    shared by all devices; some group computes the longest sequence.
    """
    least = least_degrees(s, degrees, capacity)
    work, fastest = np.full(len(s), np.inf), np.full(len(s), np.inf)
    start = min(cost.group_ms(d) for d in degrees)
    for d in degrees:
        ms = np.where(least <= d, cost.sequence_ms(s, d), np.inf)
        work, fastest = np.minimum(work, d * ms), np.minimum(fastest, ms + cost.group_ms(d) - start)
    return parts * start + float(max(work.sum() / n_devices, fastest.max()))


def _alike(degree: int, n_devices: int, cost: CostModel, capacity: int) -> Callable[[Ints], Filling | None]:
    def filled(part: Ints) -> Filling | None:
        found = fill(part, [(degree,) * (n_devices // degree)], cost, capacity)
        return found[0] if found else None

    return filled


def _checked(
    lengths: ArrayLike, n_devices: int, cost: CostModel, degrees: Sequence[int] | None
) -> tuple[Ints, tuple[int, ...], int]:
    """Lengths, degrees from small to large, tokens that fit one device."""
    given = np.asarray(lengths)
    if given.ndim != 1 or not given.size or not np.issubdtype(given.dtype, np.integer) or given.min() < 1:
        raise DataError(f"lengths must be a list of whole numbers >= 1, at least one, got {_shown(given)}")
    if n_devices < 1:
        raise ValueError(f"n_devices must be >= 1, got {n_devices}")
    sizes = tuple(sorted({d for d in (cost.degrees if degrees is None else degrees) if d <= n_devices}))
    if not sizes or any(d < 1 or d & (d - 1) for d in sizes):
        raise ValueError(f"degrees must be powers of two, one at most n_devices={n_devices}, got {degrees}")
    capacity = cost.capacity(1, n_devices)
    longest = int(given.max())
    if longest > capacity * sizes[-1]:
        raise DataError(
            f"a sequence of {longest} tokens does not fit {sizes[-1]} devices, which hold {capacity * sizes[-1]}: "
            f"use more devices or memory, or leave it out"
        )
    return given.astype(np.int64), sizes, capacity


def _shown(given: np.ndarray) -> str:
    return f"shape {given.shape}" if given.ndim != 1 or not given.size else f"values from {given.min()} on"


def _planned(
    s: Ints, n_devices: int, cost: CostModel, degrees: Sequence[int], capacity: int,
    filled: Callable[[Ints], Filling | None], improve: Improvement | None = None,
) -> ParallelPlan:  # fmt: skip
    """The best number of micro-batches, each filled, then improved where that can still beat the best."""
    fewest = max(1, -(-int(s.sum()) // (n_devices * capacity)))
    tried: list[tuple[list[Ints], list[Filling]]] = []
    best = np.inf
    for parts in range(fewest, len(s) + 1):
        if parts >= fewest + TRIED and tried:
            break
        if lower_bound(s, n_devices, degrees, cost, capacity, parts) >= best:
            break
        split = split_batch(s, parts)
        fillings = _all_filled(s, split, filled)
        if fillings is not None:
            tried.append((split, fillings))
            best = min(best, _total((split, fillings)))
    split, fillings = min(tried, key=_total)
    if improve is not None:
        for other, known in sorted(tried, key=_total):
            if not improve.worth_it([s[part] for part in other], known, best):
                continue
            better = [improve.filling(s[part], filling) for part, filling in zip(other, known, strict=True)]
            if _total((other, better)) < best:
                split, fillings, best = other, better, _total((other, better))
    microbatches = tuple(_placed(part, filling) for part, filling in zip(split, fillings, strict=True))
    bound = lower_bound(s, n_devices, degrees, cost, capacity, fewest)
    made = ParallelPlan(tuple(s.tolist()), n_devices, microbatches, sum(filling.ms for filling in fillings), bound)
    made.validate(cost)
    return made


def _total(tried: tuple[list[Ints], list[Filling]]) -> float:
    return sum(filling.ms for filling in tried[1])


def _all_filled(s: Ints, split: list[Ints], filled: Callable[[Ints], Filling | None]) -> list[Filling] | None:
    found = []
    for part in split:
        filling = filled(s[part])
        if filling is None:
            return None
        found.append(filling)
    return found


def _placed(part: Ints, filling: Filling) -> tuple[DeviceGroup, ...]:
    """Groups on consecutive devices, large ones first: every block is aligned, and small ones stay within a node."""
    made, at = [], 0
    for group in sorted(filling.groups, key=lambda g: -g.degree):
        made.append(DeviceGroup(tuple(range(at, at + group.degree)), tuple(part[list(group.sequences)].tolist())))
        at += group.degree
    return tuple(made)
