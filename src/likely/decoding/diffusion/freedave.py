"""FreeDave: the answers of static decoding from fewer calls, by drafts from the model's own present predictions.

"Free Draft-and-Verification", arXiv:2510.00294.  A draft is static decoding continued with predictions that are not
renewed; all drafts are predicted in one call, which static decoding needs anyway for the first of them.  What is kept
is on the path of static decoding: by induction, the answer is the same.  With keyed noise this holds for sampling too:
the draft of a later step uses the noise of that step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from likely.decoding.drafting.budget.acceptance import AcceptanceEstimate
from likely.decoding.drafting.budget.goodput import choose_length
from likely.errors import check_choice
from likely.runtimes.protocol import IntArray
from likely.runtimes.step_cost import StepCost

AgreementRule = Literal["exact", "subset"]
MOST = 16  # drafts of a row, where their number is chosen


def longest_agreement(drafts: IntArray, targets: IntArray, rule: AgreementRule, *, mask_id: int) -> int:
    """The place (from 0) of the last draft that is reached from the first one, which is right by definition.

    drafts   (K, L) states of an answer, each with more tokens than the one before
    targets  (K or K - 1, L) what one step of the decoder makes of each
    rule     "exact": from draft i the last j > i with drafts[j] = targets[i];  "subset": the last j > i of which every
             token stands in targets[i] too (for steps that may commit several tokens)
    """
    check_choice("rule", rule, ("exact", "subset"))
    if len(drafts) < 1 or len(targets) not in (len(drafts) - 1, len(drafts)) or drafts.shape[1:] != targets.shape[1:]:
        raise ValueError(f"expected drafts (K, L) and targets (K or K - 1, L), got {drafts.shape} and {targets.shape}")
    same = drafts[None] == targets[:, None]  # [i, j]
    if rule == "subset":
        same |= drafts[None] == mask_id
    reached = same.all(axis=2)
    at = 0
    while at < len(targets) and (later := np.flatnonzero(reached[at, at + 1 :])).size:
        at += 1 + int(later[-1])
    return at


@dataclass
class DraftLength:
    """How many drafts pay: expected steps of a call over its seconds, both as measured so far.

    Seconds of a call are a constant and a share for each canvas, fitted by least squares to the calls; before two sizes
    were seen, `first` is drafted, and one less than that once.  most: never more.
    """

    first: int = 4
    most: int = MOST
    acceptance: AcceptanceEstimate = field(default_factory=AcceptanceEstimate)
    _sums: np.ndarray = field(default_factory=lambda: np.zeros(5))  # n, b, b², s, b·s
    _calls: int = 0

    def observe(self, branches: int, seconds: float, runs: Sequence[tuple[int, int]]) -> None:
        self._sums = 0.98 * self._sums + [1, branches, branches**2, seconds, branches * seconds]
        self._calls += 1
        for proposed, accepted in runs:
            self.acceptance.update(proposed, accepted)

    @property
    def cost(self) -> StepCost | None:
        """Constant and share of a canvas in seconds, both >= 0; None while calls of one size were seen."""
        n, b, bb, s, bs = self._sums
        spread = n * bb - b * b
        if n == 0 or spread <= 1e-9 * bb * n:
            return None
        share = min(max(0.0, (n * bs - b * s) / spread), s / b)
        return StepCost(0.0, float(share), 0.0, max(0.0, float((s - share * b) / n)))  # s/b*b can be above s

    def choose(self, rows: int) -> int:
        cost = self.cost
        if cost is None:
            return max(1, self.first - self._calls % 2)
        rates = self.acceptance.by_position[: self.most - 1]
        return 1 + choose_length(rates, cost, sequences=rows, context=0, k_max=self.most - 1)


class FreeDave:
    """Accelerator of `diffusion_generate`: up to `draft_steps` steps of static decoding from one call.

    draft_steps    K >= 1, canvases of a row in one call; 1 is static decoding.  "auto": as many as pay, by the measured
                   seconds of calls and by acceptance
    branch_mode    "batch": every draft is a row of the call.  "tree": the drafts of a row share its kept states; needs
                   a cache, since without one those depend on the draft
    across_blocks  drafts go on in the next block, and a block needs no call of its own when it begins (cache="none")
    policy         of "auto"; one that has seen calls of this model before knows more

    With a ConfidenceThreshold as schedule (FreeDave++) drafts behind the first add one position each, and a draft is
    kept if the threshold's own step commits no less: the result is as good as threshold decoding's, but need not be the
    same.
    """

    def __init__(
        self,
        draft_steps: int | Literal["auto"] = 4,
        branch_mode: Literal["batch", "tree"] = "batch",
        across_blocks: bool = False,
        *,
        policy: DraftLength | None = None,
    ):
        if draft_steps != "auto" and not (isinstance(draft_steps, int | np.integer) and draft_steps >= 1):
            raise ValueError(f'draft_steps must be a whole number >= 1 or "auto", got {draft_steps!r}')
        if policy is not None and draft_steps != "auto":
            raise ValueError(f'a policy chooses draft_steps: give draft_steps="auto", not {draft_steps}')
        check_choice("branch_mode", branch_mode, ("batch", "tree"))
        self.draft_steps, self.across_blocks = draft_steps, across_blocks
        self.policy = (policy or DraftLength()) if draft_steps == "auto" else None
        self.tree = branch_mode == "tree"

    def length(self, rows: int) -> int:
        if self.policy is not None:
            return self.policy.choose(rows)
        return int(self.draft_steps)

    def observe(self, branches: int, seconds: float, runs: Sequence[tuple[int, int]]) -> None:
        if self.policy is not None:
            self.policy.observe(branches, seconds, runs)
