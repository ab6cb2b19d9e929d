"""A smaller model that guesses for a larger one: its own cache, moved along with the text, and drafts of any shape.

Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.  All drafters of a batch advance level by
level, one call of the draft model per level.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np

from likely.decoding.drafting.model.growing import Seat, grow_together
from likely.decoding.drafting.model.trees import Chain, Shape
from likely.decoding.drafting.protocol import NO_DRAFT, Draft, DraftDistribution, Drafter, DraftSource, SamplingContext
from likely.decoding.sampling import Sampling, processed_logprobs, transform
from likely.errors import CapabilityError, KvFull, ModelError
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import FloatArray, Runtime, Sequence, Want, Work
from likely.runtimes.rows import log_softmax
from likely.tokenizers.protocol import Tokenizer


class Vocabulary(Protocol):
    """How the target's tokens are told to the draft model, and its rows to the target."""

    def start(self, prompt: Seq[int]) -> Seq[int]: ...  # ids before those of the prompt
    def ids(self, token: int) -> Seq[int]: ...  # of a target token; exactly (id(token),) for one that can be drafted
    def id(self, token: int) -> int: ...  # of a drafted token
    def logits(self, row: FloatArray) -> FloatArray: ...  # (V_draft,) -> (V,), -inf where nothing can be drafted


class SameVocabulary:
    """Both use one tokenizer; either model may have further rows that stand for no token."""

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
    """DraftSource: drafts of a shape from q, the draft model's law after the request's sampling settings.

    shape       how drafts grow; its laws are the source's
    sampling    settings for q instead of the request's own
    vocabulary  of the target, where it is not the draft's (`likely.decoding.drafting.model.shared_vocabulary`)

    The draft's cache holds all tokens but those emitted since its last call.  Where it has no room, or the text is
    longer than its context, it has no guess.
    """

    free = False

    def __init__(
        self,
        runtime: Runtime,
        *,
        shape: Shape | None = None,
        sampling: Sampling | None = None,
        vocabulary: Vocabulary | None = None,
        name: str = "draft model",
    ):
        able = runtime.capabilities
        if not (able.trees and able.truncate):
            raise CapabilityError(
                f"{name}: a draft model needs a runtime that can drop tokens again: {kinds_with('truncate')}"
            )
        self.runtime, self.name, self.sampling = runtime, name, sampling
        self.shape: Shape = Chain() if shape is None else shape
        self.laws: frozenset[DraftDistribution] = self.shape.laws
        self.vocabulary: Vocabulary = vocabulary or SameVocabulary(runtime.vocab_size, runtime.vocab_size)

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        vocab_size: int | None = None,
        shape: Shape | None = None,
        sampling: Sampling | None = None,
        name: str = "draft model",
    ) -> DraftModel:
        """Checked: ModelError that names the first id at which the two tokenizers differ.

        vocab_size  columns of the target's logits; default: the size of its tokenizer
        """
        if difference := first_difference(tokenizer, target_tokenizer):
            raise ModelError(
                f"{name}: draft model and model use different tokenizers ({difference}); choose a draft model of the "
                f"same family, or a drafter that works on the model's own tokens: lookup, suffix, trigram"
            )
        vocabulary = SameVocabulary(runtime.vocab_size, vocab_size or target_tokenizer.vocab_size)
        return cls(runtime, shape=shape, sampling=sampling, vocabulary=vocabulary, name=name)

    def begin(self, prompt: Seq[int], draw: SamplingContext) -> ModelDrafter:
        return ModelDrafter(self, prompt, draw)

    def propose_many(self, drafters: Seq[Drafter], budgets: Seq[int]) -> list[Draft]:
        """All drafters advance together, one call per level."""
        drafts = [NO_DRAFT] * len(drafters)
        seats: dict[int, Seat] = {}
        for i, (drafter, budget) in enumerate(zip(drafters, budgets, strict=True)):
            assert isinstance(drafter, ModelDrafter)
            if (seat := drafter.take_seat(budget)) is not None:
                seats[i] = seat
        for i, draft in zip(seats, grow_together(self.runtime, list(seats.values())), strict=True):
            drafts[i] = draft
        return drafts


class ModelDrafter:
    """The draft model's view of one text.

    Invariant: the sequence holds a beginning of the draft's ids (`_own`); what is pending grew from all of them.
    """

    def __init__(self, source: DraftModel, prompt: Seq[int], draw: SamplingContext):
        self._source, self._draw = source, draw
        self._tokens: list[int] = []
        self._own = list(source.vocabulary.start(prompt))
        self._start = len(self._own)
        self._ends: list[int] = []  # length of _own after each token
        self._sequence: Sequence | None = None
        self._seat: Seat | None = None
        self._ended = False
        self._append(prompt)
        self._prompt = len(self._tokens)

    def _append(self, tokens: Seq[int]) -> None:
        for token in tokens:
            self._tokens.append(int(token))
            self._own += self._source.vocabulary.ids(int(token))
            self._ends.append(len(self._own))

    # --- drafting -------------------------------------------------------------------------------------------------

    def propose(self, budget: int) -> Draft:
        return self._source.propose_many([self], [budget])[0]

    def take_seat(self, budget: int) -> Seat | None:
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
        growth = source.shape.grow(self._draw, len(self._tokens), budget)
        first = self._own[sequence.length :]
        self._seat = Seat(sequence, growth, first, self._law, own_id=source.vocabulary.id)
        return self._seat

    def _law(self, logits: FloatArray, path: list[int]) -> FloatArray:
        """log q (V,) after the path; raw where the target is greedy, since its best token is all that counts."""
        settings = self._source.sampling or self._draw.sampling
        row = self._source.vocabulary.logits(logits)
        output = [*self._tokens[self._prompt :], *path] if settings.has_penalties else ()
        row = transform(row, settings, self._tokens[: self._prompt] if settings.has_penalties else (), output)
        if settings.greedy and self._draw.sampling.greedy:
            return log_softmax(row)
        return processed_logprobs(row, settings)

    # --- the text -------------------------------------------------------------------------------------------------

    def observe(self, tokens: Seq[int]) -> None:
        new = [int(token) for token in tokens]
        if not new:
            return
        if self._sequence is not None and self._seat is not None and self._sequence.pending:
            self._source.runtime.commit([(self._sequence, self._seat.walk(new))])
        self._seat = None
        self._append(new)

    def rollback(self, n: int) -> None:
        if not 0 <= n <= len(self._tokens) - self._prompt:
            raise ValueError(f"cannot forget {n} tokens, {len(self._tokens) - self._prompt} were observed")
        if n == 0:
            return
        before = self._ends[-n - 1] if len(self._ends) > n else self._start
        del self._tokens[-n:], self._ends[-n:], self._own[before:]
        if self._sequence is not None:
            self._drop_pending()
            if self._sequence.length > len(self._own):
                self._source.runtime.truncate(self._sequence, len(self._own))

    def fork(self, draw: SamplingContext) -> ModelDrafter:
        """For another sample: the prompt is computed once, and what is computed is shared."""
        copy = ModelDrafter(self._source, (), draw)
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
        self._seat = None

    def end(self) -> None:
        self._ended = True
        if self._sequence is not None:
            self._source.runtime.close(self._sequence)
            self._sequence = self._seat = None


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
    runtime: Runtime, tokenizer: Tokenizer, target_tokenizer: Tokenizer, *, name: str, vocab_size: int | None = None
) -> DraftSource:
    """A drafter over another model: token by token where both use one tokenizer, else by way of the text."""
    if first_difference(tokenizer, target_tokenizer) is None:
        return DraftModel.of(runtime, tokenizer, target_tokenizer, vocab_size=vocab_size, name=name)
    from likely.decoding.drafting.model.cross_tokenizer import Retokenised

    return Retokenised(runtime, tokenizer, target_tokenizer, name=name)
