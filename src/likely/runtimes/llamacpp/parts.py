"""One Output from the pieces of a work item that were computed in different calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from likely.runtimes.protocol import FloatArray, IntArray, Output, Want
from likely.runtimes.rows import reduce_rows


class Parts:
    """Collects what a Want names, range of rows by range of rows, because logits are gone after the next decode."""

    def __init__(self, want: Want, n: int):
        self._want, self._n = want, n
        self._asked = want.row_numbers(n)
        self._pairs = None if want.pairs is None else np.asarray(want.pairs, np.int64).reshape(-1, 2)
        self._whole: Output | None = None
        self._found: list[tuple[np.ndarray, np.ndarray, Output]] = []

    def add(self, low: int, high: int, row_of: Callable[[int], FloatArray]) -> None:
        """Rows low <= i < high are computed now; row_of(i) gives the logits (V,) of row i."""
        if low == 0 and high == self._n:
            self._whole = reduce_rows(self._want, self._n, row_of)
            return
        at = np.flatnonzero((self._asked >= low) & (self._asked < high))
        pairs_at = np.empty(0, np.int64)
        pairs: IntArray | None = None
        if self._pairs is not None:
            pairs_at = np.flatnonzero((self._pairs[:, 0] >= low) & (self._pairs[:, 0] < high))
            pairs = self._pairs[pairs_at] - np.array([low, 0])
        want = replace(self._want, rows=tuple((self._asked[at] - low).tolist()), pairs=pairs)
        self._found.append((at, pairs_at, reduce_rows(want, high - low, lambda row: row_of(low + row))))

    def output(self) -> Output:
        if self._whole is not None:
            return self._whole
        if not self._found:  # no row was wanted
            return reduce_rows(self._want, self._n, _no_row)
        return Output(
            logits=self._joined("logits"),
            top_ids=self._joined("top_ids"),
            top_logprobs=self._joined("top_logprobs"),
            entropy=self._joined("entropy"),
            logprobs=self._joined("logprobs", pairs=True),
        )

    def _joined(self, name: str, *, pairs: bool = False) -> np.ndarray | None:
        pieces = [(pairs_at if pairs else at, getattr(output, name)) for at, pairs_at, output in self._found]
        pieces = [(at, values) for at, values in pieces if values is not None and len(at)]
        rows = len(self._asked) if not pairs else 0 if self._pairs is None else len(self._pairs)
        if not pieces:
            nothing = replace(self._want, rows="none", pairs=None if self._pairs is None else self._pairs[:0])
            return None if rows else getattr(reduce_rows(nothing, self._n, _no_row), name)
        values = pieces[0][1]
        joined = np.empty((rows, *values.shape[1:]), values.dtype)
        for at, values in pieces:
            joined[at] = values
        return joined


def _no_row(row: int) -> FloatArray:
    raise AssertionError(f"row {row} was not asked for")
