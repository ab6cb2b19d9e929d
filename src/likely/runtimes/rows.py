"""Rows of logits become the numbers a `Want` names; the torch and native runtimes reduce many rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
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


def entropy_of(row: FloatArray, norm: float) -> float:
    """Entropy in nats of softmax(row); norm: its logsumexp."""
    p_log = row - np.float32(norm)
    p = np.exp(p_log)
    return -float((p * np.where(p > 0, p_log, 0)).sum(dtype=np.float64))


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


class CallOutputs:
    """The Outputs of a call, filled from rows of logits that come in any order, each row once.

    wants, sizes             one per piece of work: what it wants, and how many tokens it has
    head_rows, hidden_rows   per piece of work: the sorted rows whose logits and hidden states are needed
    """

    def __init__(self, wants: Seq[Want], sizes: Seq[int], vocab_size: int):
        self._wants, self._vocab_size = list(wants), vocab_size
        self._asked = [want.row_numbers(n) for want, n in zip(wants, sizes, strict=True)]
        self.head_rows = [head_rows(want, n) for want, n in zip(wants, sizes, strict=True)]
        self.hidden_rows = [np.unique(a) if w.hidden else a[:0] for w, a in zip(wants, self._asked, strict=True)]
        self._fields = [_empty_fields(want, len(asked)) for want, asked in zip(wants, self._asked, strict=True)]

    def of_part(self, item: int, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """Which of the head_rows and hidden_rows of a piece of work are in start..stop."""
        found = self.head_rows[item], self.hidden_rows[item]
        head, hidden = (rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] for rows in found)
        return head, hidden

    def add_row(self, item: int, row: int, logits: FloatArray) -> None:
        """logits (V,) of one row of a piece of work; they are copied."""
        want, fields = self._wants[item], self._fields[item]
        at = np.flatnonzero(self._asked[item] == row)
        pairs = np.empty((0, 2), np.int64) if want.pairs is None else np.asarray(want.pairs).reshape(-1, 2)
        pairs_at = np.flatnonzero(pairs[:, 0] == row)
        reduced = len(at) and (want.top or want.entropy)
        norm = logsumexp(logits) if len(pairs_at) or reduced else 0.0
        if len(pairs_at):
            fields["logprobs"][pairs_at] = logits[pairs[pairs_at, 1]] - norm
        if want.logits and len(at):
            self._room_for("logits", item, len(logits))[at] = logits
        if want.top and len(at):
            ids = top_tokens(logits, want.top)
            fields["top_ids"][at] = ids
            fields["top_logprobs"][at] = logits[ids] - norm
        if want.entropy and len(at):
            fields["entropy"][at] = entropy_of(logits, norm)

    def add_hidden(self, item: int, rows: IntArray, values: FloatArray) -> None:
        """values (R, D): the final hidden states of these rows (sorted numbers) of one piece of work."""
        to, at = match(self._asked[item], rows)
        self._room_for("hidden", item, values.shape[1])[to] = values[at]

    def outputs(self) -> list[Output]:
        for i, want in enumerate(self._wants):
            if want.logits:
                self._room_for("logits", i, self._vocab_size)
        return [Output(**fields) for fields in self._fields]

    def _room_for(self, name: str, item: int, width: int) -> FloatArray:
        """(rows asked for, width), made where it is first needed."""
        fields = self._fields[item]
        if fields[name] is None:
            fields[name] = np.empty((len(self._asked[item]), width), np.float32)
        return fields[name]


def _empty_fields(want: Want, rows: int) -> dict[str, Any]:
    """Of an Output of so many rows; None: not wanted, or no row has come."""
    return {
        "logits": None,
        "hidden": None,
        "top_ids": np.empty((rows, want.top), np.int64) if want.top else None,
        "top_logprobs": np.empty((rows, want.top), np.float32) if want.top else None,
        "entropy": np.empty(rows, np.float32) if want.entropy else None,
        "logprobs": None if want.pairs is None else np.empty(len(want.pairs), np.float32),
    }


def reduce_rows(want: Want, n: int, row_of: Callable[[int], FloatArray], vocab_size: int = 0) -> Output:
    """The Output of a piece of work of n tokens; row_of(i): logits (V,) of row i, valid until the next call."""
    outputs = CallOutputs([want], [n], vocab_size)
    for row in outputs.head_rows[0].tolist():
        outputs.add_row(0, row, row_of(row))
    return outputs.outputs()[0]
