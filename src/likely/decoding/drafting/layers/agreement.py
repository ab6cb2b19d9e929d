"""How near a model under a layer plan comes to the whole model, on a text and with the keys that a draft would have."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.decoding.drafting.layers.plans import check_plan
from likely.errors import CapabilityError, DataError
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import FloatArray, LayerPlan, Output, Runtime, Sequence, Want, Work
from likely.runtimes.rows import log_softmax

ROWS_BYTES = 64 << 20  # of rows of logits that exist at one time


@dataclass(frozen=True)
class Agreement:
    """Means over so many positions of a text.

    top1     share of positions where both have the same best token: acceptance of a greedy draft
    overlap  Σ_v min(p_v, q_v): acceptance of a sampled one (Leviathan et al. 2023, arXiv:2211.17192, eq. 8)
    """

    top1: float
    overlap: float
    positions: int


class PlanComparison:
    """The whole model's distributions p on one text; plans are compared with them, teacher-forced.

    tokens        the text;  start: so many of them are context, the n others count.  p takes n rows of the vocabulary
    draft_length  the text is cut into windows of so many tokens, each computed under the plan after exact keys and
                  values of all that stands before it, as after a calibration; None: all of it is one window, as if
                  nothing were ever calibrated
    """

    def __init__(self, runtime: Runtime, tokens: Seq[int], *, draft_length: int | None = 4, start: int = 0):
        if not runtime.capabilities.fork:
            raise CapabilityError(f"comparing plans needs a runtime that can fork: {kinds_with('fork')}")
        if draft_length is not None and draft_length < 1:
            raise ValueError(f"draft_length must be >= 1, got {draft_length}")
        if not 0 <= start < len(tokens):
            raise DataError(f"no tokens to compare plans on: {len(tokens)} in all, of which {start} are context")
        self.runtime, self._context = runtime, np.asarray(tokens[:start], np.int64)
        self._tokens = np.asarray(tokens[start:], np.int64)
        n, size = len(self._tokens), draft_length or len(self._tokens)
        self._windows = [(first, min(first + size, n)) for first in range(0, n, size)]
        self._most_rows = max(1, ROWS_BYTES // (4 * runtime.vocab_size))
        self._exact = np.empty((n, runtime.vocab_size), np.float32)
        self._sequence = runtime.open()
        if start:
            runtime.forward([Work(self._sequence, self._context, want=Want.NONE)])
        for first in range(0, n, self._most_rows):
            piece = slice(first, first + self._most_rows)
            [found] = runtime.forward([Work(self._sequence, self._tokens[piece], want=Want.ALL)])
            self._exact[piece] = np.exp(log_softmax(_logits(found)))

    def rows(self, plan: LayerPlan) -> tuple[NDArray[np.bool_], FloatArray]:
        """(n,) whether the best token is the whole model's, and (n,) the overlap, after each token that counts."""
        check_plan(self.runtime, plan, "this plan")
        same, overlap = np.zeros(len(self._tokens), bool), np.zeros(len(self._tokens), np.float32)
        longest = self._windows[0][1]
        together = max(1, self._most_rows // longest)
        for first in range(0, len(self._windows), together):
            self._compare(self._windows[first : first + together], plan, same, overlap)
        return same, overlap

    def agreement(self, plan: LayerPlan) -> Agreement:
        same, overlap = self.rows(plan)
        return Agreement(float(same.mean()), float(overlap.mean()), len(same))

    def _compare(
        self, windows: list[tuple[int, int]], plan: LayerPlan, same: NDArray[np.bool_], overlap: FloatArray
    ) -> None:
        """Fill in the rows of some windows, all in one call where their rows fit."""
        runtime = self.runtime
        forks: list[tuple[Sequence, int, int]] = []
        try:
            for start, stop in windows:
                forks.append((runtime.fork(self._sequence, len(self._context) + start), start, stop))
            for done in range(0, windows[0][1] - windows[0][0], self._most_rows):
                work, rows = [], []
                for fork, start, stop in forks:
                    rows.append(slice(start + done, min(stop, start + done + self._most_rows)))
                    own = self._tokens[rows[-1]]
                    parents = np.arange(done - 1, done - 1 + len(own))
                    work.append(Work(fork, own, parents, want=Want.ALL, layers=plan))
                for where, found in zip(rows, runtime.forward(work), strict=True):
                    q, p = np.exp(log_softmax(_logits(found))), self._exact[where]
                    same[where] = q.argmax(1) == p.argmax(1)
                    overlap[where] = np.minimum(p, q, out=q).sum(1)
        finally:
            for fork, _, _ in forks:
                runtime.close(fork)

    def close(self) -> None:
        """Free what the runtime holds of the text."""
        if not self._sequence.closed:
            self.runtime.close(self._sequence)

    def __enter__(self) -> PlanComparison:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fuzzy_agreement(runtime: Runtime, tokens: Seq[int], plan: LayerPlan, *, draft_length: int | None = 4) -> Agreement:
    """Of a plan with the whole model on one text: see `PlanComparison`."""
    with PlanComparison(runtime, tokens, draft_length=draft_length) as comparison:
        return comparison.agreement(plan)


def _logits(output: Output) -> FloatArray:
    assert output.logits is not None
    return output.logits
