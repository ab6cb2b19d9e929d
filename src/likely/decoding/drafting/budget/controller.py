"""How many drafted tokens to verify: as many as pay, by what calls cost and drafts achieved on this machine.

Both factors of goodput are learned while running; whatever is chosen, the text is the same.  Where a drafter costs
next to nothing its drafts are seen before the choice, as one of all requests of the step; where it runs a model the
lengths are chosen before it is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from likely.decoding.drafting.budget.acceptance import LIMIT, AcceptanceEstimate, SourceRecord, match_class
from likely.decoding.drafting.budget.call_costs import TRIES, CallCosts
from likely.decoding.drafting.budget.goodput import StepShape, draft_lengths
from likely.decoding.drafting.protocol import Draft
from likely.metrics.checks import Floats
from likely.runtimes.cost_curve import CostCurve
from likely.runtimes.protocol import IntArray
from likely.runtimes.step_cost import StepCost

MARGIN = 1.05  # a predicted gain below this is noise
ANY = 0  # the class of drafts whose size is decided before they are seen
TRIALS, TRIAL_SIZE = 6, 4  # of a drafter that is not free, before it is judged
TRIAL_SHARE = 0.02  # of the time may go to trials of a drafter that does not pay at present


@dataclass
class PlannedCall:
    """What the next call holds so far.

    positions, emitted  of decoding: tokens that it computes, and that it emits by expectation: one per text, and what
                        drafts add
    room, leaves        how many more tokens and leaves of trees fit
    sequences, context  texts that decode, and the tokens that they keep, all together
    prefill, others     tokens of prompts that are read beside, and texts that do not decode yet
    """

    positions: int
    emitted: float
    room: int
    leaves: int
    sequences: int = 1
    context: int = 0
    prefill: int = 0
    others: int = 0

    def add(self, nodes: int) -> None:
        self.room, self.positions = self.room - nodes, self.positions + nodes


@dataclass(frozen=True)
class Candidate:
    """A draft of a free source: how many of its nodes to verify?

    trust  of this text's drafts, beside what is usual
    """

    source: str
    draft: Draft
    limit: int
    trust: float = 1.0


class Controller:
    """What one model has learned about calls and drafters; shared by its loops.

    curve, step  what is known of calls before the first one
    granularity  "request": each text gets as many drafted tokens as its own drafts are worth;  "batch": all texts of a
                 step whose drafter costs time get one number
    """

    def __init__(
        self,
        curve: CostCurve | None = None,
        *,
        step: StepCost | None = None,
        granularity: Literal["request", "batch"] = "request",
    ):
        if granularity not in ("request", "batch"):
            raise ValueError(f'granularity must be "request" or "batch", got {granularity!r}')
        self.costs, self.granularity = CallCosts(curve, step=step), granularity
        self._by_source: dict[str, SourceRecord] = {}
        self._lock = threading.Lock()

    def of(self, source: str) -> SourceRecord:
        with self._lock:
            return self._by_source.setdefault(source, SourceRecord())

    def seconds(self, call: PlannedCall, drafted: IntArray, *, prefill: int = 0) -> Floats:
        """Predicted seconds of the call's decoding with these numbers of further drafted tokens."""
        return self.costs.seconds(call.positions + prefill + drafted, sequences=call.sequences, context=call.context)

    def _shape(self, call: PlannedCall) -> StepShape:
        if not call.prefill:
            return StepShape(lambda n: self.seconds(call, n), call.emitted)
        return StepShape(
            lambda n: self.seconds(call, n),
            call.emitted,
            lambda n: self.seconds(call, n, prefill=call.prefill),
            call.others,
        )

    def verify(self, candidates: Sequence[Candidate], call: PlannedCall) -> tuple[list[int], float]:
        """(how many nodes of each free draft to verify, how many of them will be kept by expectation)."""
        nothing = [0] * len(candidates), 0.0
        if not candidates or not self.costs.known:
            return nothing
        gains = []
        for each in candidates:
            most = max(min(len(each.draft), each.limit, LIMIT), 0)
            expected = self.of(each.source).expected(match_class(each.draft))[: most + 1]
            gains.append(each.trust * np.diff(expected))
        lengths, kept = draft_lengths(gains, self._shape(call), room=call.room, margin=MARGIN)
        if kept:
            return lengths, kept
        for i, gain in enumerate(gains):  # a promising draft of a size whose cost is hardly known is tried a few times
            total = np.concatenate([[0.0], np.cumsum(gain)])[: call.room + 1]
            promising = np.flatnonzero(total >= np.maximum(0.6 * np.arange(len(total)), 2.0))
            if len(promising) and self.costs.tries(call.positions + int(promising[-1])) < TRIES:
                lengths[i] = int(promising[-1])
                return lengths, float(total[lengths[i]])
        return nothing

    def draft(
        self,
        source: str,
        limits: Sequence[int],
        call: PlannedCall,
        *,
        runs: Sequence[AcceptanceEstimate] | None = None,
    ) -> tuple[list[int], float]:
        """As `verify`, for texts whose drafter costs time: how many tokens it shall draft for each.

        limits  most tokens per text;  runs: what is known of each text's drafts, beside those of all texts
        """
        record = self.of(source)
        lengths, kept = [0] * len(limits), 0.0
        if not self.costs.known or max(limits, default=0) <= 0:
            return lengths, kept
        plain_s = float(self.seconds(call, np.zeros(1, np.int64))[0])
        judged = record.trials >= TRIALS and record.levels.known
        if judged:
            of_all = record.gains
            gains = [
                (of_all if runs is None or record.trees else run.gains)[: max(min(limit, LIMIT), 0)]
                for limit, run in zip(limits, runs or [record.runs] * len(limits), strict=True)
            ]
            lengths, kept = draft_lengths(
                gains,
                self._shape(call),
                room=call.room,
                level_seconds=record.level_seconds,
                margin=MARGIN,
                uniform=self.granularity == "batch",
            )
            record.credit_s = min(record.credit_s + TRIAL_SHARE * plain_s, 10 * plain_s)
        idle = [i for i, (n, limit) in enumerate(zip(lengths, limits, strict=True)) if not n and limit > 0]
        if not idle or call.room <= sum(lengths):
            return lengths, kept
        tried = idle[record.trials % len(idle)]
        size = min(TRIAL_SIZE, limits[tried], call.room - sum(lengths))
        if judged:  # texts that are left out would never be judged anew
            more = float(self.seconds(call, np.array([size]))[0]) - plain_s
            cost_s = size * float(record.level_seconds(np.ones(1))[0]) + more
            if record.credit_s < cost_s:
                return lengths, kept
            record.credit_s -= cost_s
        record.trials += 1
        lengths[tried] = size
        return lengths, kept
