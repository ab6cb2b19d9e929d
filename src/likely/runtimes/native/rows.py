"""Rows of logits of the C++ library become what each piece of work wants, some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np

from likely.runtimes.protocol import FloatArray, IntArray, Output, Want
from likely.runtimes.rows import CallOutputs, match
from likely.runtimes.slots.layout import WorkPart


class Wanted(CallOutputs):
    """The Outputs of a call; logits, entropy, top, reduced: what the call must give for any piece of work."""

    def __init__(self, wants: Seq[Want], sizes: Seq[int], vocab_size: int):
        super().__init__(wants, sizes, vocab_size)
        self.logits = any(want.logits for want in wants)
        self.entropy = any(want.entropy for want in wants)
        self.top = min(max((want.top for want in wants), default=0), vocab_size)
        self.reduced = self.entropy or self.top > 0 or any(w.pairs is not None and len(w.pairs) for w in wants)
        self._kept: list[list[FloatArray]] = [[] for _ in wants]  # rows of logits, in the order of `head_rows`

    def add(
        self,
        item: int,
        rows: IntArray,
        logits: FloatArray,
        log_norm: np.ndarray,
        entropy: np.ndarray,
        top_ids: IntArray,
        top: FloatArray,
    ) -> None:
        """Rows (sorted numbers) of one piece of work: logits (R, V) and what was reduced from them."""
        want, fields, asked = self._wants[item], self._fields[item], self._asked[item]
        if want.logits:
            self._kept[item].append(logits)
        if want.pairs is not None and len(want.pairs):
            pairs = np.asarray(want.pairs)
            to, at = match(pairs[:, 0], rows)
            fields["logprobs"][to] = logits[at, pairs[to, 1]] - log_norm[at]
        if want.top or want.entropy:
            to, at = match(asked, rows)
            if want.top:
                fields["top_ids"][to] = top_ids[at, : want.top]
                fields["top_logprobs"][to] = top[at, : want.top] - log_norm[at, None]
            if want.entropy:
                fields["entropy"][to] = entropy[at]

    def outputs(self) -> list[Output]:
        for i, want in enumerate(self._wants):
            if want.logits:
                self._fields[i]["logits"] = self._logits(i)
        return super().outputs()

    def _logits(self, item: int) -> FloatArray:
        """The rows as asked; no copy where they are one run of what was computed."""
        kept, asked, head = self._kept[item], self._asked[item], self.head_rows[item]
        if not len(asked):
            return np.empty((0, self._vocab_size), np.float32)
        whole = kept[0] if len(kept) == 1 else np.concatenate(kept)
        if len(asked) == len(head) and (asked == head).all():
            return whole
        return whole[np.searchsorted(head, asked)]


class RowsOfWork(NamedTuple):
    """Whose some of a call's rows are: row numbers of one piece of work, sorted."""

    item: int
    first: int  # of the call's rows
    head: IntArray
    hidden: IntArray
    both: IntArray


def rows_of(parts: list[WorkPart], wanted: Wanted) -> tuple[np.ndarray, list[RowsOfWork]]:
    """Which rows of the call go on, and whose they are."""
    rows: list[IntArray] = []
    places: list[RowsOfWork] = []
    offset = at = 0
    for p in parts:
        head, hidden = wanted.of_part(p.item, p.start, p.stop)
        own = np.union1d(head, hidden) if len(hidden) else head
        if len(own):
            rows.append(own - p.start + offset)
            places.append(RowsOfWork(p.item, at, head, hidden, own))
            at += len(own)
        offset += p.stop - p.start
    joined = np.concatenate(rows) if rows else np.empty(0)
    return np.ascontiguousarray(joined, np.int32), places
