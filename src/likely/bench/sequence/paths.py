"""Pictures with two dots and dashed paths, read pixel by pixel: are the dots the ends of one path?

In the manner of Pathfinder and Path-X (Linsley et al. 2018; Tay et al. 2020), small enough to be drawn here.  Different
paths stay three cells apart, gaps of a dashed path are one cell, so that a picture has exactly one answer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.bench.sequence.examples import Examples, Split, TaskMeta, task_rng

DASH, DOT = 0.5, 1.0  # values of cells; others are 0
_APART = 3  # least distance of two paths, in cells along the longer axis
_STEPS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))

Cell = tuple[int, int]


def make_paths(
    n: int, seed: int, *, split: Split = "train", side: int = 16, steps: int = 12, distractors: int = 1
) -> Examples:
    """(n, side², 1) pictures, row by row; class 1 where the two dots are joined, 0 where they lie on two paths.

    steps        cells of each of the two long paths
    distractors  further paths of half that length, without dots
    Half of the pictures are of each class, and at every distance of the dots as many of one as of the other (but for
    one picture where n is odd), so that neither tells anything.  Path-X has side 128.
    """
    rng = task_rng("paths", n, seed, split, {"side": side, "steps": steps})
    if side < 8 or steps < 4 or distractors < 0:
        raise ValueError(
            f"paths: side must be >= 8, steps >= 4 and distractors >= 0, got {side}, {steps} and {distractors}"
        )
    lengths = [steps, steps, *[max(steps // 2, 2)] * distractors]
    waiting: dict[int, tuple[list[_Picture], list[_Picture]]] = defaultdict(lambda: ([], []))
    pairs: list[tuple[_Picture, _Picture]] = []
    while 2 * len(pairs) < n:
        picture = _Picture.draw(rng, side, lengths)
        same = waiting[picture.distance]
        same[picture.joined].append(picture)
        if same[0] and same[1]:
            pairs.append((same[0].pop(), same[1].pop()))
    flat = [picture for pair in pairs for picture in (pair if rng.random() < 0.5 else pair[::-1])][:n]
    chosen = [flat[i] for i in rng.permutation(n)]
    pixels = np.stack([picture.pixels(side) for picture in chosen])
    classes = np.array([picture.joined for picture in chosen], np.int64)
    return Examples(pixels, classes, TaskMeta("paths", "values", "class", 2, 0.5, channels=1))


@dataclass(frozen=True)
class _Picture:
    paths: list[list[Cell]]
    dots: tuple[Cell, Cell]
    joined: bool

    @property
    def distance(self) -> int:
        """Squared, of the dots."""
        (a, b), (c, d) = self.dots
        return (a - c) ** 2 + (b - d) ** 2

    @classmethod
    def draw(cls, rng: np.random.Generator, side: int, lengths: list[int]) -> _Picture:
        for _ in range(10_000):
            near: set[Cell] = set()
            paths: list[list[Cell]] = []
            for length in lengths:
                path = _walk(rng, side, length, near)
                if path is None:
                    break
                paths.append(path)
                near.update(
                    (x + i, y + j)
                    for x, y in path
                    for i in range(1 - _APART, _APART)
                    for j in range(1 - _APART, _APART)
                )
            else:
                first, second = (paths[i] for i in rng.permutation(2))
                joined = bool(rng.random() < 0.5)
                ends = rng.integers(0, 2, 2)
                dots = (first[0], first[-1]) if joined else (first[-ends[0]], second[-ends[1]])
                return cls(paths, dots, joined)
        raise ValueError(
            f"paths: {len(lengths)} paths of up to {max(lengths)} cells do not fit into side {side}: take fewer "
            f"distractors, fewer steps or a larger side"
        )

    def pixels(self, side: int) -> NDArray[np.float32]:
        grid = np.zeros((side, side, 1), np.float32)
        for path in self.paths:
            for place, cell in enumerate(path):
                if place % 3 != 2 or cell == path[-1]:  # both ends are drawn, so that a dot adds the same everywhere
                    grid[cell] = DASH
        for cell in self.dots:
            grid[cell] = DOT
        return grid.reshape(-1, 1)


def _walk(rng: np.random.Generator, side: int, length: int, near: set[Cell]) -> list[Cell] | None:
    """A self-avoiding path that mostly keeps its direction; None where no try of a few reaches the length."""
    for _ in range(8):
        x, y, heading, *drawn = rng.integers(0, (side, side, 8, *[1 << 30] * (length - 1))).tolist()
        path = [(x, y)]
        if path[0] in near:
            continue
        for number in drawn:
            turns = [
                (turn, cell)
                for turn in (-1, 0, 0, 0, 1)
                if _inside(cell := _next(path[-1], heading + turn), side) and cell not in near and cell not in path
            ]
            if not turns:
                break
            turn, cell = turns[number % len(turns)]
            heading += turn
            path.append(cell)
        else:
            return path
    return None


def _next(cell: Cell, heading: int) -> Cell:
    step = _STEPS[heading % 8]
    return cell[0] + step[0], cell[1] + step[1]


def _inside(cell: Cell, side: int) -> bool:
    return 0 <= cell[0] < side and 0 <= cell[1] < side
