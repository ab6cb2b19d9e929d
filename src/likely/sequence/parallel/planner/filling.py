"""Which sizes of groups, and which sequences in which group: every choice of sizes filled longest sequence first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from likely.metrics.checks import Ints
from likely.sequence.parallel.planner.cost import CostModel

MOST_CHOICES = 2500  # of sizes that are filled; more devices leave out the smallest ones


@dataclass(frozen=True)
class FilledGroup:
    """A group of `degree` devices and the positions of its sequences."""

    degree: int
    sequences: tuple[int, ...]


@dataclass(frozen=True)
class Filling:
    """One micro-batch: its groups that have sequences, and the time of the slowest."""

    groups: tuple[FilledGroup, ...]
    ms: float


def least_degrees(lengths: Ints, degrees: Sequence[int], capacity: int) -> Ints:
    """The smallest degree that holds each length, given the tokens that fit one device."""
    return np.asarray(degrees)[np.searchsorted(np.asarray(degrees) * capacity, lengths)]


def size_choices(n_devices: int, degrees: Sequence[int]) -> list[tuple[int, ...]]:
    """Every multiset of degrees that leaves fewer devices idle than the smallest has; falling degrees each.

    Where there are more than MOST_CHOICES, the small degrees are given only to choices of two sizes.
    """
    found = _counts(n_devices, tuple(sorted(degrees)))
    smallest = 0
    while len(found) > MOST_CHOICES:
        smallest += 1
        found = _counts(n_devices, tuple(sorted(degrees))[smallest:])
    pairs = []
    if smallest:
        for large in degrees:
            for small in (d for d in degrees if d <= large):
                for n in range(n_devices // large + 1):
                    left = n_devices - n * large
                    pairs.append((large,) * n + (small,) * (left // small))
    return list(dict.fromkeys(choice for choice in [*found, *pairs] if choice))


@lru_cache(maxsize=32)
def _counts(n_devices: int, degrees: tuple[int, ...]) -> list[tuple[int, ...]]:
    if not degrees:
        return []
    *smaller, largest = degrees
    if not smaller:
        return [(largest,) * (n_devices // largest)]
    found = []
    for n in range(n_devices // largest, -1, -1):
        for rest in _counts(n_devices - n * largest, tuple(smaller)):
            found.append((largest,) * n + rest)
            if len(found) > 10 * MOST_CHOICES:
                return found
    return found


def fill(
    lengths: Ints, choices: Sequence[tuple[int, ...]], cost: CostModel, capacity: int, *, keep: int = 1
) -> list[Filling]:
    """The best `keep` choices of sizes, each filled longest sequence first into the group that would finish first.

    lengths   (n,) of one micro-batch;  capacity: tokens that fit one device
    returns   fillings from the fastest on; empty where no choice holds all sequences
    """
    order = np.argsort(-lengths, kind="stable")
    degrees = sorted({d for choice in choices for d in choice})
    width = max(len(choice) for choice in choices)
    index = np.full((len(choices), width), -1)
    for row, choice in zip(index, choices, strict=True):
        row[: len(choice)] = np.searchsorted(degrees, choice)
    absent = index < 0
    room = np.where(absent, -1, np.asarray(degrees)[index] * capacity).astype(np.int64)
    finish = np.where(absent, np.inf, np.array([cost.group_ms(d) for d in degrees])[index])
    per_degree = np.array([cost.sequence_ms(lengths, d) for d in degrees])  # (degrees, n)
    chosen = np.empty((len(choices), len(lengths)), np.int64)
    alive = np.arange(len(choices))
    for sequence in order:
        ends = finish[alive] + per_degree[index[alive], sequence]
        ends[room[alive] < lengths[sequence]] = np.inf
        best = ends.argmin(1)
        value = ends[np.arange(len(alive)), best]
        held = np.isfinite(value)
        alive, best, value = alive[held], best[held], value[held]
        if not len(alive):
            return []
        finish[alive, best] = value
        room[alive, best] -= lengths[sequence]
        chosen[alive, sequence] = best
    slowest = finish[alive[:, None], chosen[alive]].max(1)  # of groups that have sequences
    best_rows = alive[np.argsort(slowest, kind="stable")[:keep]]
    return [filling_of(lengths, choices[row], chosen[row], cost) for row in best_rows]


def filling_of(lengths: Ints, degrees: Sequence[int], chosen: Ints, cost: CostModel) -> Filling:
    """From the group of each sequence, its time computed anew from the lengths."""
    groups, times = [], []
    for at, degree in enumerate(degrees):
        own = np.flatnonzero(chosen == at)
        if len(own):
            groups.append(FilledGroup(int(degree), tuple(own.tolist())))
            times.append(cost.time(lengths[own], int(degree)))
    return Filling(tuple(groups), max(times))
