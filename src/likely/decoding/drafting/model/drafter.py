"""A smaller model that guesses for a larger one: its own cache, moved along with the text, and drafts of any shape.

Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.  All drafters of a batch advance level by
level, one call of the draft model per level.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np

from likely.decoding.drafting.layers.plans import check_plan
from likely.decoding.drafting.model.cross_tokenizer import CrossTokenizerModel
from likely.decoding.drafting.protocol import (
    Draft,
    DraftDistribution,
    Drafter,
    DraftSource,
    SamplingContext,
    check_rollback,
)
from likely.decoding.drafting.trees.growth import GrowingDraft, grow_together, log_q_of_row
from likely.decoding.drafting.trees.shapes import Chain, DraftShape
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError, KvFull
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import FloatArray, LayerPlan, Runtime, Sequence, Want, Work
from likely.tokenizers.protocol import Tokenizer


class TokenMap(Protocol):
    """Between the vocabularies of target and draft model: ids one way, rows of logits the other way."""

    def start(self, prompt: Seq[int]) -> Seq[int]: ...  # ids before those of the prompt
    def ids(self, token: int) -> Seq[int]: ...  # of a target token; exactly (id(token),) for one that can be drafted
    def id(self, token: int) -> int: ...  # of a drafted token
    def logits(self, row: FloatArray) -> FloatArray: ...  # (V_draft,) -> (V,), -inf where nothing can be drafted


class SameTokens:
    """TokenMap: both use one tokenizer; either model may have further rows that stand for no token."""

    def __init__(self, draft_size: int, target_size: int):
        self.draft_size, self.target_size = draft_size, target_size

    def start(self, prompt: Seq[int]) -> Seq[int]:
        return ()

    def ids(self, token: int) -> Seq[int]:
        return (token,) if token < self.draft_size else ()

    def id(self, token: int) -> int:
        return token

    def logits(self, row: FloatArray) -> FloatArray:
        if self.draft_size == self.target_size:
            return row
        out = np.full(self.target_size, -np.inf, np.float32)
        shared = min(self.draft_size, self.target_size)
        out[:shared] = row[:shared]
        return out


class DraftModel:
    """DraftSource: drafts of a shape from q, the draft model's distribution after the request's sampling settings.

    shape     how drafts grow
    sampling  settings for q instead of the request's own
    tokens    to and from the target's vocabulary, where it is not the draft's (`drafting.model.shared_vocabulary`)
    plan      by which layers drafted tokens are computed (EasySpec, arXiv:2502.02493); None: by the whole draft model.
              What such a draft computed is dropped, and the tokens of the text run through the whole model in the
              call that begins the next draft ("bonus calibration"): its first token is always the exact model's

    The draft's cache holds all tokens but those emitted since its last call.  Where it has no room, or the text is
    longer than its context, it has no guess.
    """

    free = False

    def __init__(
        self,
        runtime: Runtime,
        *,
        shape: DraftShape | None = None,
        sampling: Sampling | None = None,
        tokens: TokenMap | None = None,
        plan: LayerPlan | None = None,
        name: str = "draft model",
    ):
        able = runtime.capabilities
        if not (able.trees and able.truncate):
            raise CapabilityError(
                f"{name}: a draft model needs a runtime that can drop tokens again: {kinds_with('truncate')}"
            )
        if plan is not None:
            check_plan(runtime, plan, name)
        self.runtime, self.name, self.sampling, self.plan = runtime, name, sampling, plan
        self.shape: DraftShape = Chain() if shape is None else shape
        self.distributions: frozenset[DraftDistribution] = self.shape.distributions
        self.token_map: TokenMap = tokens or SameTokens(runtime.vocab_size, runtime.vocab_size)

    def begin(self, prompt: Seq[int], context: SamplingContext) -> ModelDrafter:
        return ModelDrafter(self, prompt, context)

    def propose_many(self, drafters: Seq[Drafter], budgets: Seq[int]) -> list[Draft]:
        """All drafters advance together, one call per level."""
        growing = []
        for drafter, budget in zip(drafters, budgets, strict=True):
            assert isinstance(drafter, ModelDrafter)
            growing.append(drafter.begin_draft(budget))
        return grow_together(self.runtime, growing)


class ModelDrafter:
    """The draft model's view of one text.

    Invariant: the sequence holds a beginning of the draft's ids (`_own`); what is pending grew from all of them.
    """

    def __init__(self, source: DraftModel, prompt: Seq[int], context: SamplingContext):
        self._source, self._context = source, context
        self._tokens: list[int] = []
        self._own = list(source.token_map.start(prompt))
        self._start = len(self._own)
        self._ends: list[int] = []  # length of _own after each token
        self._sequence: Sequence | None = None
        self._growing: GrowingDraft | None = None
        self._ended = False
        self._append(prompt)
        self._prompt = len(self._tokens)

    def _append(self, tokens: Seq[int]) -> None:
        for token in tokens:
            self._tokens.append(int(token))
            self._own += self._source.token_map.ids(int(token))
            self._ends.append(len(self._own))

    # --- drafting -------------------------------------------------------------------------------------------------

    def propose(self, budget: int) -> Draft:
        return self._source.propose_many([self], [budget])[0]

    def begin_draft(self, budget: int) -> GrowingDraft | None:
        """Where the next draft grows; None if there can be none."""
        source = self._source
        budget = min(budget, source.runtime.context_length - len(self._own))
        if budget <= 0 or not self._own or self._ended:
            return None
        try:
            sequence = self._sequence = self._sequence or source.runtime.open()
        except KvFull:
            return None
        self._drop_pending()
        if sequence.length >= len(self._own):  # asked twice, or after a rollback: the root's row is needed again
            source.runtime.truncate(sequence, len(self._own) - 1)
        growth = source.shape.grow(self._context, len(self._tokens), budget)
        first = self._own[sequence.length :]
        self._growing = GrowingDraft(
            sequence, growth, first, self._log_q, own_id=source.token_map.id, layers=source.plan
        )
        return self._growing

    def _log_q(self, logits: FloatArray, path: list[int]) -> FloatArray:
        target = self._context.sampling
        settings = self._source.sampling or target
        text = [*self._tokens, *path] if settings.has_penalties else ()
        return log_q_of_row(self._source.token_map.logits(logits), settings, target, text, self._prompt)

    # --- the text -------------------------------------------------------------------------------------------------

    def observe(self, tokens: Seq[int]) -> None:
        new = [int(token) for token in tokens]
        if not new:
            return
        if self._sequence is not None and self._growing is not None and self._sequence.pending:
            kept = self._growing.walk(new) if self._source.plan is None else []
            self._source.runtime.commit([(self._sequence, kept)])
        self._growing = None
        self._append(new)

    def rollback(self, n: int) -> None:
        check_rollback(n, len(self._tokens) - self._prompt)
        if n == 0:
            return
        before = self._ends[-n - 1] if len(self._ends) > n else self._start
        del self._tokens[-n:], self._ends[-n:], self._own[before:]
        if self._sequence is not None:
            self._drop_pending()
            if self._sequence.length > len(self._own):
                self._source.runtime.truncate(self._sequence, len(self._own))

    def fork(self, context: SamplingContext) -> ModelDrafter:
        """For another sample: the prompt is computed once, and what is computed is shared."""
        copy = ModelDrafter(self._source, (), context)
        copy._tokens, copy._own, copy._ends = self._tokens.copy(), self._own.copy(), self._ends.copy()
        copy._prompt, copy._start = self._prompt, self._start
        runtime = self._source.runtime
        if runtime.capabilities.fork and not self._ended:
            try:
                self._catch_up()
                copy._sequence = runtime.fork(self._sequence) if self._sequence is not None else None
            except KvFull:
                pass  # each computes it for itself when there is room
        return copy

    def _catch_up(self) -> None:
        """Compute everything but the last token, so that a fork need not."""
        runtime = self._source.runtime
        if len(self._own) > runtime.context_length:
            return
        sequence = self._sequence = self._sequence or runtime.open()
        missing = self._own[sequence.length : -1]
        if missing and not sequence.pending:
            runtime.forward([Work(sequence, np.array(missing), want=Want.NONE)])

    def _drop_pending(self) -> None:
        if self._sequence is not None and self._sequence.pending:
            self._source.runtime.commit([(self._sequence, [])])
        self._growing = None

    def end(self) -> None:
        self._ended = True
        if self._sequence is not None:
            self._source.runtime.close(self._sequence)
            self._sequence = self._growing = None


def first_difference(draft: Tokenizer, target: Tokenizer) -> str | None:
    """Where two tokenizers first differ, token by token; None if ids mean the same in both.

    Rows at the end of one that stand for no token count for nothing.
    """
    if draft.fingerprint == target.fingerprint:
        return None
    shared = min(draft.vocab_size, target.vocab_size)
    for token in range(shared):
        ours, theirs = draft.token_bytes(token), target.token_bytes(token)
        if ours != theirs:
            return f"id {token} is {ours!r} in the draft's and {theirs!r} in the model's"
    longer = draft if draft.vocab_size > shared else target
    for token in range(shared, longer.vocab_size):
        if longer.token_bytes(token):
            return f"{draft.vocab_size} against {target.vocab_size} tokens: only one knows id {token}"
    if draft.special_tokens != target.special_tokens:
        either = dict(draft.special_tokens) | dict(target.special_tokens)
        text = next(t for t in either if draft.special_tokens.get(t) != target.special_tokens.get(t))
        return (
            f"the control token {text!r} is id {draft.special_tokens.get(text)} in the draft's and "
            f"{target.special_tokens.get(text)} in the model's"
        )
    return None


def draft_model(
    runtime: Runtime,
    tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    *,
    name: str,
    vocab_size: int | None = None,
    shape: DraftShape | None = None,
    plan: LayerPlan | None = None,
) -> DraftSource:
    """A drafter over another model: token by token where both use one tokenizer, else by way of the text, in chains."""
    if first_difference(tokenizer, target_tokenizer) is None:
        tokens = SameTokens(runtime.vocab_size, vocab_size or target_tokenizer.vocab_size)
        return DraftModel(runtime, tokens=tokens, shape=shape, plan=plan, name=name)
    if plan is not None:
        raise CapabilityError(f"{name}: a draft model under a layer plan must use the target's tokenizer")
    if shape is None:
        return CrossTokenizerModel(runtime, tokenizer, target_tokenizer, name=name)
    if not isinstance(shape, Chain) or shape.confidence:
        raise CapabilityError(f"{name}: a model of another tokenizer drafts chains only; for other shapes take shared:")
    return CrossTokenizerModel(runtime, tokenizer, target_tokenizer, length=shape.length, name=name)
