"""Tasks of computation: running sums modulo k (parity for k = 2), and ListOps (Nangia and Bowman 2018).

A model whose state only decays with positive factors learns parity at one length and fails at others; the nested
operators of ListOps need a stack of some kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from likely.bench.sequence.examples import Examples, Split, TaskMeta, majority_share, task_rng

PAD, CLOSE = 0, 15
LISTOPS = ("pad", *map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]")  # text of each id
OPERATORS: Mapping[str, Callable[[Sequence[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(np.median(values)),  # of an even number: the mean of the middle two, rounded down
    "[SM": lambda values: sum(values) % 10,
}
_FIRST = 11  # id of the first operator


def make_modular_sum(n: int, seed: int, *, split: Split = "train", length: int = 64, modulus: int = 2) -> Examples:
    """Digits below `modulus`; the target at every place is the sum of all digits up to it, modulo `modulus`."""
    rng = task_rng("modular-sum", n, seed, split, {"length": length})
    if modulus < 2:
        raise ValueError(f"modulus must be >= 2, got {modulus}")
    inputs = rng.integers(0, modulus, (n, length))
    meta = TaskMeta("modular-sum", "tokens", "tokens", modulus, 1 / modulus, vocabulary=modulus)
    return Examples(inputs, np.cumsum(inputs, 1) % modulus, meta)


def make_listops(
    n: int, seed: int, *, split: Split = "train", depth: int = 5, arguments: int = 5, shortest: int = 30,
    longest: int = 150,
) -> Examples:  # fmt: skip
    """Nested lists of digits with an operator each, as in `[MAX 2 [SM 8 7 ] 4 ]`; the class is the value, 0 to 9.

    Above `depth` (the root has depth 1) a node is with probability 1/4 an operator with 2 to `arguments` children, else
    a digit; at `depth` it is a digit.  Trees of fewer than `shortest` or more than `longest` tokens are drawn again.
    One id per symbol (LISTOPS); rows are padded on the right with 0.  The Long Range Arena has depth 10, arguments 10,
    lengths 500 to 2000.
    chance: the share of the most frequent value among these examples (values are not equally frequent).
    """
    sizes = {"depth": depth, "shortest": shortest, "longest": longest}
    rng = task_rng("listops", n, seed, split, sizes)
    if depth < 2 or arguments < 2 or shortest > longest or longest < 4:
        raise ValueError(
            f"listops: depth and arguments must be >= 2 and shortest <= longest >= 4, got depth {depth}, arguments "
            f"{arguments}, lengths {shortest} to {longest}"
        )
    inputs, targets = np.full((n, longest), PAD, np.int64), np.zeros(n, np.int64)
    tree = _Tree(rng, depth, arguments, longest)
    tries = 0
    for row in range(n):
        while not max(shortest, 4) <= len(ids := tree.draw()) <= longest:
            tries += 1
            if tries > 20_000 * (row + 1):
                raise ValueError(
                    f"listops: trees of depth {depth} with {arguments} arguments almost never have {shortest} to "
                    f"{longest} tokens: give a smaller shortest, or more depth"
                )
        inputs[row, : len(ids)] = ids
        targets[row] = listops_value(ids)
    meta = TaskMeta(
        "listops", "tokens", "class", 10, majority_share(targets), vocabulary=len(LISTOPS), padding=PAD
    )  # fmt: skip
    return Examples(inputs, targets, meta)


class _Tree:
    """Draws trees as ids.  The root is an operator: a digit alone is shorter than any tree that is wanted."""

    def __init__(self, rng: np.random.Generator, depth: int, arguments: int, longest: int):
        self._rng, self._depth, self._arguments, self._longest = rng, depth, arguments, longest
        self._uniforms: list[float] = []  # drawn in blocks

    def draw(self) -> list[int]:
        ids: list[int] = []
        self._operator(1, ids)
        return ids

    def _operator(self, depth: int, ids: list[int]) -> None:
        ids.append(_FIRST + int(4 * self._uniform()))
        for _ in range(2 + int((self._arguments - 1) * self._uniform())):
            if len(ids) > self._longest:  # too long already: drawn again anyway
                return
            if depth + 1 < self._depth and self._uniform() < 0.25:
                self._operator(depth + 1, ids)
            else:
                ids.append(1 + int(10 * self._uniform()))
        ids.append(CLOSE)

    def _uniform(self) -> float:
        if not self._uniforms:
            self._uniforms = self._rng.random(4096).tolist()
        return self._uniforms.pop()


def listops_value(ids: Sequence[int]) -> int:
    """The value of an expression of ids, read from left to right with a stack."""
    stack: list[tuple[str, list[int]]] = [("", [])]
    for token in ids:
        if token == CLOSE and len(stack) > 1:
            name, values = stack.pop()
            stack[-1][1].append(OPERATORS[name](values))
        elif _FIRST <= token < CLOSE:
            stack.append((LISTOPS[token], []))
        elif 1 <= token <= 10:
            stack[-1][1].append(token - 1)
        else:
            raise ValueError(f"not an expression: id {token} has no place here")
    if len(stack) != 1 or len(stack[0][1]) != 1:
        raise ValueError("not an expression: brackets are not closed, or there are several values")
    return stack[0][1][0]
