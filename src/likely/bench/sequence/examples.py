"""What every sequence task makes: inputs, targets, and what a guess without the inputs would score.

numpy only.  A task is a function `make_NAME(n, seed, *, split, ...)`; the same arguments give the same examples, and
the three splits draw from streams of their own, so that no seed of one is a seed of another.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from likely.errors import check_choice

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
IGNORED = -100  # a target that does not count; among real-valued targets it is NaN
Metric = Literal["accuracy", "normalised MSE", "bits per byte"]


@dataclass(frozen=True)
class TaskMeta:
    """How the arrays of a task are to be read.

    inputs      "tokens": (n, L) ids below `vocabulary`;  "values": (n, L, channels) float32
    targets     "tokens": (n, L) ids, -100 where ignored;  "class": (n,) of `outputs` classes;
                "values": (n, L, outputs) float32, NaN where ignored;  "last values": (n, outputs), at the last position
    outputs     classes, or numbers per position
    chance      the metric of the best answer that does not look at the inputs
    padding     the id that fills up short rows on the right; None where all rows are full
    """

    task: str
    inputs: Literal["tokens", "values"]
    targets: Literal["tokens", "class", "values", "last values"]
    outputs: int
    chance: float
    metric: Metric = "accuracy"
    vocabulary: int = 0
    channels: int = 0
    padding: int | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.metric == "accuracy"


class Examples(NamedTuple):
    inputs: NDArray[Any]
    targets: NDArray[Any]
    meta: TaskMeta

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(n, L), False where the input is padding."""
        if self.meta.padding is None:
            return np.ones(self.inputs.shape[:2], bool)
        return np.asarray(self.inputs != self.meta.padding)


def task_rng(task: str, n: int, seed: int, split: Split, sizes: Mapping[str, int]) -> np.random.Generator:
    """The task's own stream of random numbers for this split and seed, once n and all sizes are checked to be >= 1."""
    check_choice("split", split, SPLITS)
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    for name, value in {"n": n, **sizes}.items():
        if value < 1:
            raise ValueError(f"{task}: {name} must be >= 1, got {value}")
    return np.random.default_rng(np.random.SeedSequence([zlib.crc32(task.encode()), SPLITS.index(split), seed]))


def majority_share(classes: NDArray[Any]) -> float:
    """Share of the most frequent class: what a constant answer gets right."""
    return float(np.unique(classes, return_counts=True)[1].max() / len(classes))


def distinct(rng: np.random.Generator, n: int, choices: int, count: int) -> NDArray[np.int64]:
    """(n, count) numbers below `choices`, different within a row, in random order."""
    if 4 * count < choices:  # few of many: draw again where a row holds one twice
        drawn = rng.integers(0, choices, (n, count))
        while len(bad := np.flatnonzero((np.diff(np.sort(drawn, 1), axis=1) == 0).any(1))):
            drawn[bad] = rng.integers(0, choices, (len(bad), count))
        return drawn
    return rng.random((n, choices)).argsort(1)[:, :count]


def next_fast_size(length: int) -> int:
    """The least power of two that is at least `length`."""
    return 1 << math.ceil(math.log2(max(length, 1)))
