"""Rows of logits become the numbers a `Want` names (numpy; the torch and native runtimes have their own forms)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from likely.runtimes.protocol import FloatArray, IntArray, Output, Want


def logsumexp(row: FloatArray) -> float:
    """log Σ exp over one row (V,), summed in fp64; -inf entries are legal, NaN is an error."""
    peak = float(row.max())
    if np.isnan(peak):
        raise FloatingPointError("a row of logits contains NaN")
    if np.isinf(peak):
        return peak
    shifted = row - np.float32(peak)
    return peak + float(np.log(np.exp(shifted, out=shifted).sum(dtype=np.float64)))


def log_softmax(logits: FloatArray) -> FloatArray:
    """Row-wise log-softmax in fp32 of (..., V)."""
    flat = np.asarray(logits, np.float32).reshape(-1, logits.shape[-1])
    return np.stack([row - np.float32(logsumexp(row)) for row in flat]).reshape(logits.shape)


def top_tokens(row: FloatArray, k: int) -> IntArray:
    """The k largest entries of a row, largest first; ties go to the smaller id."""
    k = min(k, row.shape[-1])
    if k == 0:
        return np.empty(0, np.int64)
    if k == 1:  # plain greedy decoding; the first of equals is the smaller id
        return np.array([row.argmax()], np.int64)
    if k < row.shape[-1]:
        cut = np.partition(row, -k)[-k]
        candidates = np.flatnonzero(row >= cut)  # every tie at the cut, so that the smaller id wins
    else:
        candidates = np.arange(row.shape[-1])
    order = np.lexsort((candidates, -row[candidates]))
    return candidates[order[:k]].astype(np.int64)


def wanted_rows(want: Want, n: int) -> IntArray:
    """Sorted numbers of the rows whose logits must be computed for this want."""
    rows = want.row_numbers(n) if (want.logits or want.top or want.entropy or want.hidden) else np.empty(0, np.int64)
    if want.pairs is not None and len(want.pairs):
        rows = np.concatenate([rows, np.asarray(want.pairs)[:, 0]])
    return np.unique(rows)


def head_rows(want: Want, n: int) -> IntArray:
    """The same for a runtime that gives hidden states: those alone need no logits."""
    if want.hidden and not (want.logits or want.top or want.entropy):
        return wanted_rows(Want(rows="none", pairs=want.pairs), n)
    return wanted_rows(want, n)


def match(asked: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """(i, j) with asked[i] == rows[j], for sorted unique `rows`; every i that has a partner."""
    if not len(rows) or not len(asked):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(rows, asked), len(rows) - 1)
    to = np.flatnonzero(rows[at] == asked)
    return to, at[to]


def empty_fields(want: Want, rows: int) -> dict[str, Any]:
    """Room for what is reduced from `rows` rows of logits; None: not wanted."""
    return {
        "top_ids": np.empty((rows, want.top), np.int64) if want.top else None,
        "top_logprobs": np.empty((rows, want.top), np.float32) if want.top else None,
        "entropy": np.empty(rows, np.float32) if want.entropy else None,
        "logprobs": None if want.pairs is None else np.empty(len(want.pairs), np.float32),
    }


def reduce_rows(want: Want, n: int, row_of: Callable[[int], FloatArray]) -> Output:
    """The Output of a piece of work of n tokens; row_of(i): logits (V,) of row i, valid until the next call."""
    asked = want.row_numbers(n)
    position = {int(row): i for i, row in reversed(list(enumerate(asked)))}
    pairs = np.empty((0, 2), np.int64) if want.pairs is None else np.asarray(want.pairs)
    by_row: dict[int, list[int]] = {}
    for i, row in enumerate(pairs[:, 0].tolist()):
        by_row.setdefault(row, []).append(i)

    logprobs = np.empty(len(pairs), np.float32)
    logits, top_ids, top_logprobs, entropy = {}, {}, {}, {}
    for row in wanted_rows(want, n).tolist():
        values = row_of(row)
        in_rows = row in position
        norm = logsumexp(values) if row in by_row or (in_rows and (want.top or want.entropy)) else 0.0
        if row in by_row:
            where = by_row[row]
            logprobs[where] = values[pairs[where, 1]] - norm
        if not in_rows:
            continue
        if want.logits:
            logits[row] = np.array(values, np.float32)
        if want.top:
            top_ids[row] = top_tokens(values, want.top)
            top_logprobs[row] = (values[top_ids[row]] - norm).astype(np.float32)
        if want.entropy:
            p_log = values - np.float32(norm)
            p = np.exp(p_log)
            entropy[row] = -float((p * np.where(p > 0, p_log, 0)).sum(dtype=np.float64))

    def stack(found: dict, wanted: bool, width: int | None, dtype: type) -> np.ndarray | None:
        if not wanted:
            return None
        if not len(asked):
            return np.empty((0,) if width is None else (0, width), dtype)
        return np.stack([np.asarray(found[int(row)], dtype) for row in asked])

    width = 0 if not logits else next(iter(logits.values())).shape[0]
    return Output(
        logits=stack(logits, want.logits, width, np.float32),
        top_ids=stack(top_ids, want.top > 0, want.top, np.int64),
        top_logprobs=stack(top_logprobs, want.top > 0, want.top, np.float32),
        entropy=stack(entropy, want.entropy, None, np.float32),
        logprobs=None if want.pairs is None else logprobs,
    )


class OutputParts:
    """One Output of a piece of work that is computed in several calls: what a `Want` names, range of rows by range."""

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
