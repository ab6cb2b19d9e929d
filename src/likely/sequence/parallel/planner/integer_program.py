"""The best groups of one micro-batch as an integer program over buckets of lengths, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.metrics.checks import Ints
from likely.sequence.parallel.planner.cost import CostModel
from likely.sequence.parallel.planner.filling import Filling, fill, filling_of, least_degrees
from likely.sequence.parallel.planner.splits import bucket_bounds

RELAXED_BUCKETS, RELAXED_NODES = 96, 1000
INFEASIBLE = 2  # scipy's status
HALVINGS = 8


@dataclass(frozen=True)
class SolverLimits:
    """When the integer program ends: limits by nodes and gap give the same plan on every machine, one by time does not.

    nodes      of the search tree;  gap: relative, between the best plan found and what none can beat
    time_s     None: no limit by the clock
    buckets    of lengths; more are taken while rounding up would fill the devices
    """

    nodes: int = 50
    gap: float = 0.02
    time_s: float | None = None
    buckets: int = 16

    def __post_init__(self) -> None:
        if self.nodes < 1 or not 0 <= self.gap < 1 or self.buckets < 1 or not (self.time_s is None or self.time_s > 0):
            raise ValueError(f"need nodes >= 1, 0 <= gap < 1, buckets >= 1 and time_s > 0, got {self}")


def enough_buckets(lengths: Ints, count: int, tokens: int) -> Ints:
    """Bounds of `count` buckets, or of more while rounding up takes over half of the room that `tokens` leave."""
    while True:
        bounds = bucket_bounds(lengths, count)
        rounded = int(bounds[np.searchsorted(bounds, lengths)].sum())
        if 2 * rounded <= int(lengths.sum()) + tokens or len(bounds) < count:
            return bounds
        count *= 2


def solve(
    lengths: Ints, n_devices: int, degrees: Sequence[int], cost: CostModel, capacity: int, known: Filling,
    limits: SolverLimits,
) -> Filling:  # fmt: skip
    """A filling that is faster than `known`, or `known`.

    min T over integers A[k, p] >= 0 (sequences of bucket k in group p), binary m[p] (group p is used), real T:
      Σ_p A[k, p] = size[k];   Σ_k t(b_k, d_p) A[k, p] + fixed(d_p) m[p] <= T;   Σ_k b_k A[k, p] <= capacity d_p m[p];
      Σ_p d_p m[p] <= n_devices;   Σ_p d_p (Σ_k t A[k, p] + fixed m[p]) <= n_devices T  (implied, for the relaxation)
    Groups of one degree are ordered by use and by tokens.  Every length counts as its bucket's bound, so that
    capacity is safe; the times of what is returned are computed from the lengths.  Wang et al. 2025, eq. 17-23.

    Where a relaxation already proves that nothing is faster than `known` by more than the gap, nothing is searched.
    """
    if not could_take(lengths, n_devices, degrees, cost, capacity, known.ms * (1 - limits.gap)):
        return known
    bounds = enough_buckets(lengths, limits.buckets, n_devices * capacity)
    bucket = np.searchsorted(bounds, lengths)
    sizes = np.bincount(bucket, minlength=len(bounds))
    groups = candidate_groups(bounds, n_devices, degrees, capacity)
    counts = _counts(bounds, sizes, groups, n_devices, cost, capacity, known.ms, limits)
    if counts is None:
        return known
    used = counts.sum(0) > 0
    sizes_used = tuple(int(d) for d in groups[used])
    found = [filling_of(lengths, sizes_used, _assigned(lengths, bucket, counts[:, used], sizes_used, cost), cost)]
    found += fill(lengths, [sizes_used], cost, capacity)
    return min([known, *found], key=lambda filling: filling.ms)


def could_take(
    lengths: Ints, n_devices: int, degrees: Sequence[int], cost: CostModel, capacity: int, ms: float
) -> bool:
    """Whether some filling may take at most `ms`; False is a proof that none does.

    A relaxation: all groups of one degree d share one budget of n[d] (ms − fixed) and n[d] capacity d tokens, sequences
    of a bucket may be cut between degrees, every length counts as its bucket's least.  Only the n[d] are whole numbers.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    bounds = bucket_bounds(lengths, RELAXED_BUCKETS)
    bucket = np.searchsorted(bounds, lengths)
    sizes = np.bincount(bucket, minlength=len(bounds)).astype(np.float64)
    least = np.full(len(bounds), np.iinfo(np.int64).max)
    np.minimum.at(least, bucket, lengths)
    n_buckets, n_degrees = len(bounds), len(degrees)
    times = np.array([cost.sequence_ms(least, d) for d in degrees])  # (degrees, buckets)
    budgets = ms - np.array([cost.group_ms(d) for d in degrees])
    d = np.asarray(degrees, np.float64)
    fits = (least[None, :] <= capacity * d[:, None]) & (times <= budgets[:, None])
    shared = np.zeros((2 * n_degrees, n_degrees * (n_buckets + 1)))
    for i in range(n_degrees):
        own = slice(i * n_buckets, (i + 1) * n_buckets)
        shared[i, own], shared[i, n_degrees * n_buckets + i] = times[i], -max(budgets[i], 0.0)
        shared[n_degrees + i, own], shared[n_degrees + i, n_degrees * n_buckets + i] = least, -capacity * d[i]
    placed = np.concatenate([np.tile(np.eye(n_buckets), n_degrees), np.zeros((n_buckets, n_degrees))], axis=1)
    devices = np.concatenate([np.zeros(n_degrees * n_buckets), d])
    found = milp(
        np.zeros(shared.shape[1]),
        integrality=np.concatenate([np.zeros(n_degrees * n_buckets), np.ones(n_degrees)]),
        bounds=Bounds(0, np.concatenate([np.where(fits, sizes, 0.0).ravel(), n_devices // d])),
        constraints=LinearConstraint(
            np.concatenate([shared, placed, devices[None]]),
            np.concatenate([np.full(2 * n_degrees, -np.inf), sizes, [0]]),
            np.concatenate([np.zeros(2 * n_degrees), sizes, [n_devices]]),
        ),
        options={"node_limit": RELAXED_NODES},
    )
    return bool(found.status != INFEASIBLE)


def surely_needed(
    lengths: Ints, n_devices: int, degrees: Sequence[int], cost: CostModel, capacity: int, known_ms: float
) -> float:
    """A time that no filling of these sequences beats, by halving below one that is known to do."""
    low, high = 0.0, known_ms
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if could_take(lengths, n_devices, degrees, cost, capacity, middle):
            high = middle
        else:
            low = middle
    return low


def candidate_groups(bounds: Ints, n_devices: int, degrees: Sequence[int], capacity: int) -> Ints:
    """Degrees, falling, of all groups that a plan can have: as many of each as fit beside the longest's group."""
    needed = int(least_degrees(bounds[-1:], degrees, capacity)[0])
    numbers = [(d, n_devices // d if d >= needed else (n_devices - needed) // d) for d in sorted(degrees, reverse=True)]
    return np.repeat([d for d, _ in numbers], [n for _, n in numbers])


def _counts(
    bounds: Ints, sizes: Ints, groups: Ints, n_devices: int, cost: CostModel, capacity: int, most_ms: float,
    limits: SolverLimits,
) -> Ints | None:  # fmt: skip
    """(buckets, groups) numbers of sequences with a time of at most `most_ms`; None where the solver finds none."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    n_buckets, n_groups = len(bounds), len(groups)
    times = np.array([cost.sequence_ms(bounds, int(d)) for d in groups], np.float64).T  # (buckets, groups)
    fixed = np.array([cost.group_ms(int(d)) for d in groups])
    n_variables = n_buckets * n_groups + n_groups + 1
    of_count = np.arange(n_buckets * n_groups).reshape(n_buckets, n_groups)
    of_use = n_buckets * n_groups + np.arange(n_groups)
    of_time = n_variables - 1
    rows: list[tuple[NDArray[np.int64], NDArray[np.float64], float, float]] = []

    def constrain(columns: list[Ints], values: list[NDArray[np.float64]], low: float, high: float) -> None:
        rows.append((np.concatenate(columns), np.concatenate(values).astype(np.float64), low, high))

    for k in range(n_buckets):
        constrain([of_count[k]], [np.ones(n_groups)], sizes[k], sizes[k])
    one_time = np.array([of_time])
    for p in range(n_groups):
        own, use = of_count[:, p], of_use[p : p + 1]
        constrain([own, use, one_time], [times[:, p], fixed[p : p + 1], np.array([-1.0])], -np.inf, 0)
        room = np.array([-float(capacity * groups[p])])
        constrain([own, use], [bounds.astype(np.float64), room], -np.inf, 0)
        if p + 1 < n_groups and groups[p] == groups[p + 1]:
            after = of_count[:, p + 1]
            constrain([use, of_use[p + 1 : p + 2]], [np.ones(1), -np.ones(1)], 0, np.inf)
            constrain([own, after], [bounds.astype(np.float64), -bounds.astype(np.float64)], 0, np.inf)
    devices = groups.astype(np.float64)
    constrain([of_use], [devices], 0, n_devices)
    constrain(
        [of_count.ravel(), of_use, one_time],
        [(times * devices).ravel(), fixed * devices, np.array([-float(n_devices)])], -np.inf, 0,
    )  # fmt: skip
    lines = np.repeat(np.arange(len(rows)), [len(row[0]) for row in rows])
    columns, values = np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])
    matrix = coo_array((values, (lines, columns)), shape=(len(rows), n_variables)).tocsr()
    highest = np.concatenate(
        [
            np.minimum(sizes[:, None], capacity * groups[None, :] // bounds[:, None]).ravel(),
            np.ones(n_groups),
            [most_ms],
        ]
    )
    options: dict[str, float | int] = {"node_limit": limits.nodes, "mip_rel_gap": limits.gap}
    if limits.time_s is not None:
        options["time_limit"] = limits.time_s
    solved = milp(
        np.eye(1, n_variables, of_time)[0],
        integrality=np.concatenate([np.ones(n_variables - 1), [0]]),
        bounds=Bounds(np.zeros(n_variables), highest),
        constraints=LinearConstraint(matrix, np.array([row[2] for row in rows]), np.array([row[3] for row in rows])),
        options=options,
    )
    return None if solved.x is None else np.rint(solved.x[of_count]).astype(np.int64)


def _assigned(lengths: Ints, bucket: Ints, counts: Ints, degrees: Sequence[int], cost: CostModel) -> Ints:
    """The group of each sequence: of a bucket's longest first, into the group with open places that ends first."""
    left = counts.copy()
    finish = np.array([cost.group_ms(d) for d in degrees])
    each = np.array([cost.sequence_ms(lengths, d) for d in degrees])  # (groups, n)
    chosen = np.empty(len(lengths), np.int64)
    for at in np.argsort(-lengths, kind="stable"):
        ends = np.where(left[bucket[at]] > 0, finish + each[:, at], np.inf)
        best = int(ends.argmin())
        chosen[at], finish[best] = best, ends[best]
        left[bucket[at], best] -= 1
    return chosen
