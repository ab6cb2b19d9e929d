"""The decoder of masked diffusion models: one loop for static decoding, drafts that are verified, and stopping early.

Every row is always in a state that static decoding reaches, with predictions of that state.  A round drafts the next
steps of every row, computes predictions of all drafts in one call, and keeps those that static decoding confirms.
Static decoding is the round of one draft, which is right by definition.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from likely.decoding.diffusion.canvas import BoolArray, Canvas, Pins, new_canvas, open_positions
from likely.decoding.diffusion.freedave import longest_agreement
from likely.decoding.diffusion.predictor import (
    CachePolicy,
    FullForward,
    GuidedPredictor,
    Predictor,
    WindowForward,
)
from likely.decoding.diffusion.proposal import Confidence, ProposalRule
from likely.decoding.diffusion.schedule import SCHEDULES, ConfidenceThreshold, Counts, Ending, Transition, table_of
from likely.decoding.sampling import noise_of
from likely.errors import check_choice
from likely.metrics.checks import Floats
from likely.runtimes.protocol import FloatArray, IntArray

EndPolicy = Literal["allow", "last", "forbid"]


class Accelerator(Protocol):
    """How many steps a row drafts ahead, and how the drafts are predicted.

    tree           all drafts of a row stand in one row of the call, over its kept states
    across_blocks  drafts may go on in the next block
    """

    @property
    def tree(self) -> bool: ...
    @property
    def across_blocks(self) -> bool: ...
    def length(self, rows: int) -> int:
        """Most drafts of each of these many rows in the next call, >= 1."""

    def observe(self, branches: int, seconds: float, runs: Sequence[tuple[int, int]]) -> None:
        """After a call of that many canvases; runs: of each row, drafts behind the first and how many were kept."""


class EarlyStop(Protocol):
    """When a row fills all that is masked with the most likely tokens of its present predictions.

    commit  "all": the row is finished;  "block": only the current block is filled, the next one begins
    """

    @property
    def commit(self) -> Literal["all", "block"]: ...
    def decide(self, logits: FloatArray, canvas: Canvas, progress: Floats) -> BoolArray:
        """(B,) of states with predictions (B, L, V); progress (B,): number of this step, from 1, over all steps."""


@dataclass(frozen=True)
class DiffusionOutput:
    """B finished rows.

    ids            (B, T) prompts and answers, padded at the left to the longest prompt; answers (B, L)
    order          (B, L) step, from 0, in which each position was committed; -1 where it was pinned
    steps          (B,) steps of static decoding that were taken, one that stops early included
    forward_calls  calls of the predictor;  branch_calls: canvases in them, all together
    row_calls      (B,) calls that had a canvas of this row
    proposed, accepted   drafts behind the first of each round, and how many of them were kept
    stopped_at     (B,) step, from 1, at which the stop rule filled the row; 0 where it did not
    exact          False: predictions came from states that were kept, and depend on the cache policy
    """

    ids: IntArray
    answers: IntArray
    order: IntArray
    steps: IntArray
    forward_calls: int
    branch_calls: int
    row_calls: IntArray
    proposed: int
    accepted: int
    stopped_at: IntArray
    exact: bool


def diffusion_generate(
    predictor: Predictor, prompt_ids: Any, *, length: int, block_length: int | None = None, steps: int | None = None,
    proposal: Confidence = "probability", temperature: float = 0.0, position_temperature: float = 0.0,
    guidance: float = 0.0, schedule: str | Counts | ConfidenceThreshold = "linear", pinned: Pins | None = None,
    cache: CachePolicy = "none", end_id: int | None = None, end_policy: EndPolicy = "allow",
    accelerator: Accelerator | None = None, stop: EarlyStop | None = None, seed: int = 0,
) -> DiffusionOutput:  # fmt: skip
    """Answers of `length` tokens, committed by confidence over `steps` predictions.

    prompt_ids    one prompt, or several
    block_length  blocks are filled from left to right, by default one block;  length must be a multiple of it
    steps         of all blocks together, by default one token a step; a multiple of the number of blocks
    proposal, temperature, position_temperature   as in ProposalRule
    guidance      weight of classifier-free guidance; 0: none
    schedule      how many tokens each step of a block commits: "linear", "cosine", "ancestral", a function (masked,
                  steps) -> counts, or a ConfidenceThreshold, which takes as many steps as it takes
    pinned        position in the answer -> token that stands there from the beginning
    cache         see `likely.decoding.diffusion.predictor`; all but "none" need a predictor that keeps states, and
                  prompts of one length
    end_id        a block of nothing else ends its row;  end_policy: "last" commits it after all others
    accelerator   FreeDave: the same answers from fewer calls.  stop: Prophet
    seed          of the keyed noise: a row's answer depends on its prompt, settings and seed alone

    Errors: ValueError for settings that do not fit, CapabilityError where the predictor lacks what they need.
    """
    return begin_diffusion(
        predictor, prompt_ids, length=length, block_length=block_length, steps=steps, proposal=proposal,
        temperature=temperature, position_temperature=position_temperature, guidance=guidance, schedule=schedule,
        pinned=pinned, cache=cache, end_id=end_id, end_policy=end_policy, accelerator=accelerator, stop=stop, seed=seed,
    ).finish()  # fmt: skip


def begin_diffusion(
    predictor: Predictor, prompt_ids: Any, *, length: int, block_length: int | None = None, steps: int | None = None,
    proposal: Confidence = "probability", temperature: float = 0.0, position_temperature: float = 0.0,
    guidance: float = 0.0, schedule: str | Counts | ConfidenceThreshold = "linear", pinned: Pins | None = None,
    cache: CachePolicy = "none", end_id: int | None = None, end_policy: EndPolicy = "allow",
    accelerator: Accelerator | None = None, stop: EarlyStop | None = None, seed: int = 0,
) -> DiffusionRun:  # fmt: skip
    """The same, not decoded yet: for callers that do other work between the calls of the model."""
    block_length = length if block_length is None else block_length
    canvas = new_canvas(
        prompt_ids, length=length, block_length=block_length, mask_id=predictor.mask_id,
        vocab_size=predictor.vocab_size, pinned=pinned,
    )  # fmt: skip
    if end_id is not None and not (0 <= end_id < predictor.vocab_size and end_id != predictor.mask_id):
        raise ValueError(f"end_id must be a token of the vocabulary that is not the mask, got {end_id}")
    check_choice("end_policy", end_policy, ("allow", "last", "forbid"))
    rule = ProposalRule(proposal, temperature, position_temperature)
    transition, totals = _transition(canvas, rule, schedule, length if steps is None else steps, seed)
    if end_id is not None:
        transition = transition.ending_with(Ending(end_id, end_policy))
    one_length = len(np.unique(canvas.starts)) == 1
    if guidance:
        if not one_length or cache != "none":
            raise ValueError('guidance needs prompts of one length and cache="none"')
        predictor = GuidedPredictor(predictor, prompt_length=canvas.prompt_length, weight=guidance)
    tree = accelerator is not None and accelerator.tree
    if cache == "none":
        if tree:
            raise ValueError(
                "drafts of a tree share the states of what stands before the window, which in a bidirectional model "
                'without a cache depend on the window: use branch_mode="batch", or cache="prefix", "dual" or '
                '"block_causal"'
            )
        forward: FullForward | WindowForward = FullForward(predictor)
    else:
        if not one_length:
            raise ValueError(f'cache="{cache}" needs prompts of one length; decode them in groups, or use "none"')
        if accelerator is not None and accelerator.across_blocks:
            raise ValueError(f'across_blocks needs cache="none": cache="{cache}" keeps states of one block at a time')
        forward = WindowForward(predictor, cache, tree=tree)
    return DiffusionRun(canvas, transition, totals, forward, accelerator or _Static(), stop)


class _Static:
    """One draft a round: static decoding."""

    tree = across_blocks = False

    def length(self, rows: int) -> int:
        return 1

    def observe(self, branches: int, seconds: float, runs: Sequence[tuple[int, int]]) -> None:
        pass


def _transition(
    canvas: Canvas, rule: ProposalRule, schedule: str | Counts | ConfidenceThreshold, steps: int, seed: int
) -> tuple[Transition, IntArray]:
    """The static decoder's step, and how many each row takes."""
    blocks = canvas.blocks
    count = int(blocks[-1]) + 1
    if steps < count or steps % count:
        raise ValueError(f"steps must be a multiple of the number of blocks, {count}, got {steps}")
    first = np.stack([canvas.masked[:, blocks == block].sum(axis=1) for block in range(count)], axis=1)
    table, threshold = None, 1.0
    if isinstance(schedule, ConfidenceThreshold):
        threshold, totals = schedule.confidence, first.sum(axis=1)
    else:
        if isinstance(schedule, str):
            check_choice("schedule", schedule, SCHEDULES)
            schedule = SCHEDULES[schedule]
        table = table_of(schedule, int((blocks == 0).sum()), steps // count)
        totals = (table > 0).sum(axis=1)[first].sum(axis=1)
    noise = [
        noise_of(seed, row[start : canvas.prompt_length]) for row, start in zip(canvas.ids, canvas.starts, strict=True)
    ]
    return (
        Transition(rule, canvas.mask_id, blocks, first, noise, canvas.pinned.sum(axis=1), table, threshold),
        np.asarray(totals),
    )


class DiffusionRun:
    """The rows of one `diffusion_generate`, each with its present answer and predictions; made by `begin_diffusion`.

    answers (B, L), masked where nothing is committed yet;  blocks (L,) number of the block of each position
    """

    def __init__(
        self, canvas: Canvas, transition: Transition, totals: IntArray, forward: FullForward | WindowForward,
        accelerator: Accelerator, stop: EarlyStop | None,
    ):  # fmt: skip
        self.canvas, self.transition, self.forward, self.accelerator, self.stop = (
            canvas, transition, forward, accelerator, stop,
        )  # fmt: skip
        self.mask_id, self.blocks = canvas.mask_id, canvas.blocks
        self.answers = canvas.answers.copy()
        rows = len(self.answers)
        self.order = np.where(canvas.masked, 0, -1)
        self.logits: dict[int, FloatArray] = {}  # of rows whose present answer has predictions
        self.steps, self.totals = np.zeros(rows, np.int64), np.maximum(totals, 1)
        self.row_calls, self.stopped_at = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.proposed = self.accepted = 0

    def output(self) -> DiffusionOutput:
        ids = self.canvas.select(np.arange(len(self.answers)), self.answers).ids
        return DiffusionOutput(
            ids, self.answers, self.order, self.steps, self.forward.calls, self.forward.branches, self.row_calls,
            self.proposed, self.accepted, self.stopped_at, self.forward.exact,
        )  # fmt: skip

    def finish(self) -> DiffusionOutput:
        """Decode to the end."""
        while self.advance():
            pass
        return self.output()

    def advance(self) -> bool:
        """At most one call of the model; False once nothing is masked."""
        rows = np.flatnonzero((self.answers == self.mask_id).any(axis=1))
        ready = np.array([row for row in rows if row in self.logits], np.int64)
        waiting = np.array([row for row in rows if row not in self.logits], np.int64)
        if isinstance(self.forward, WindowForward):
            if len(waiting) and not len(ready):  # the next block begins for those that are furthest behind
                block = self._block(waiting)
                group = waiting[block == block.min()]
                canvas = self.canvas.select(group, self.answers[group])
                self._predicted(group, self.forward.freeze(canvas, int(block.min())))
                return True
            waiting = waiting[:0]
        if len(rows):
            self._round(ready, waiting)
        return len(rows) > 0

    def fill(self, row: int, token: int) -> None:
        """Give a row up: this token stands where it is masked, and the model is not asked about it any more."""
        self.answers[row][self.answers[row] == self.mask_id] = token
        self.logits.pop(row, None)

    def _block(self, rows: IntArray) -> IntArray:
        return np.asarray(self.blocks[(self.answers[rows] == self.mask_id).argmax(axis=1)])

    def _predicted(self, rows: IntArray, logits: FloatArray) -> None:
        """Rows whose present answers have got predictions."""
        self.row_calls[rows] += 1
        stops = self._decide(rows, self.answers[rows], logits, self.steps[rows])
        for row, found, stopped in zip(rows, logits, stops, strict=True):
            if stopped:
                self._fill(row, found)
            else:
                self.logits[row] = found

    def _round(self, ready: IntArray, waiting: IntArray) -> None:
        """Draft from the predictions of `ready` rows, predict the drafts and the `waiting` rows, keep what is right."""
        most = min(self.accelerator.length(len(ready) or 1), self.answers.shape[1])
        drafts, counts, closed = self._drafts(ready, most)
        judged = counts - closed  # a complete block needs no prediction
        at_end = judged == 0  # one step fills it: what comes behind it is predicted in this call
        for i in np.flatnonzero(at_end):
            self._advance(ready[i], drafts[i, 0])
            del self.logits[ready[i]]
        if at_end.any() and not isinstance(self.forward, WindowForward):
            begun = ready[at_end]
            waiting = np.concatenate([waiting, begun[(self.answers[begun] == self.mask_id).any(axis=1)]])
        ready, drafts, counts, judged = ready[~at_end], drafts[~at_end], counts[~at_end], judged[~at_end]
        where = np.arange(drafts.shape[1]) < judged[:, None]
        rows = np.concatenate([np.repeat(ready, judged), waiting])
        states = np.concatenate([drafts[where], self.answers[waiting]])
        logits: FloatArray = np.empty((0, 0, 0), np.float32)
        seconds = 0.0
        if len(rows):
            began = time.perf_counter()
            logits = self.forward.predict(self.canvas.select(rows, states))
            seconds = time.perf_counter() - began
        at = len(rows) - len(waiting)
        of_drafts = rows[:at], states[:at], logits[:at]
        targets = self.transition.step(*of_drafts[:2], self.transition.propose(*of_drafts)) if at else states[:0]
        ends = np.cumsum(judged)
        kept = np.ones(len(ready), np.int64)
        for i in np.flatnonzero(counts > 1):
            made = targets[ends[i] - judged[i] : ends[i]]
            rule = self.transition.rule_of_drafts
            kept[i] += longest_agreement(drafts[i, : counts[i]], made, rule, mask_id=self.mask_id)
        if len(rows):
            self.accelerator.observe(
                len(rows), seconds, [(int(n) - 1, int(k) - 1) for n, k in zip(counts, kept, strict=True)]
            )
        self.proposed += int((counts - 1).sum())
        self.accepted += int((kept - 1).sum())
        self.row_calls[ready] += 1
        number = np.arange(at) - np.repeat(ends - judged, judged)  # of each predicted draft in its row, from 0
        used = number < np.repeat(kept, judged)
        stops = np.zeros(at, np.bool_)
        stops[used] = self._decide(
            rows[:at][used], states[:at][used], logits[:at][used], self.steps[rows[:at]][used] + number[used] + 1
        )
        for n, row in enumerate(ready.tolist()):
            begin = int(ends[n] - judged[n])
            stopping = np.flatnonzero(stops[begin : ends[n]])
            last = int(stopping[0]) + 1 if len(stopping) else int(kept[n])
            for state in drafts[n, :last]:
                self._advance(row, state)
            del self.logits[row]
            if len(stopping):
                self._fill(row, logits[begin + last - 1])
            elif last <= judged[n]:
                self.logits[row] = logits[begin + last - 1]
        if len(waiting):
            self._predicted(waiting, logits[at:])

    def _drafts(self, rows: IntArray, most: int) -> tuple[IntArray, IntArray, BoolArray]:
        """Static decoding of each row with its present predictions: (n, K, L), how many, whether the last is complete.

        Complete: nothing is masked, in the whole answer or (unless drafts run across blocks) in the block.
        """
        now = self.answers[rows]
        drafts = np.zeros((len(rows), most, now.shape[1]), np.int64)
        counts, closed = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_)
        if not len(rows):
            return drafts, counts, closed
        logits = np.stack([self.logits[row] for row in rows])
        begun = open_positions(now == self.mask_id, self.blocks)
        again = self.transition.rule.needs_noise or self.accelerator.across_blocks
        proposal = self.transition.propose(rows, now, logits)
        for k in range(most):
            if k and again:
                proposal = self.transition.propose(rows, now, logits)
            if k and self.transition.table is None:
                after = self.transition.more(now, proposal)
            else:
                after = self.transition.step(rows, now, proposal)
            now = np.where(closed[:, None], now, after)
            drafts[:, k] = now
            counts += ~closed
            left = now == self.mask_id
            closed = ~(left if self.accelerator.across_blocks else left & begun).any(axis=1)
            if closed.all():
                break
        return drafts, counts, closed

    def _decide(self, rows: IntArray, answers: IntArray, logits: FloatArray, steps: IntArray) -> BoolArray:
        if self.stop is None or not len(rows):
            return np.zeros(len(rows), np.bool_)
        progress = (steps + 1) / self.totals[rows]
        return np.asarray(self.stop.decide(logits, self.canvas.select(rows, answers), progress), np.bool_)

    def _advance(self, row: int, state: IntArray) -> None:
        self.order[row, self.answers[row] != state] = self.steps[row]
        self.answers[row] = state
        self.steps[row] += 1

    def _fill(self, row: int, logits: FloatArray) -> None:
        whole = self.stop is not None and self.stop.commit == "all"
        filled = self.transition.fill(self.answers[[row]], logits[None], whole=whole)
        self._advance(row, filled[0])
        self.stopped_at[row] = self.stopped_at[row] or self.steps[row]
