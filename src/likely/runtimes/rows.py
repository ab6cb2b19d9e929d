"""Rows of logits become the numbers a `Want` names (numpy; the torch and native runtimes have their own forms)."""

from __future__ import annotations

from collections.abc import Callable

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
