"""Forms for generation loops that are not ours: transformers' `generate` and llama-cpp-python's `Llama`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from likely.decoding.constraint import Constraint, ConstraintDeadEnd, ConstraintViolation, unpack
from likely.errors import LikelyError
from likely.guided.form import make_form
from likely.guided.guide import Guide
from likely.guided.settings import FORM_OPTIONS, FormOptions, FormSettings
from likely.guided.vocabulary import Vocabulary
from likely.runtimes.protocol import FloatArray, IntArray

AllowedTokens = NDArray[np.bool_]
TokenIds = tuple[int, ...]


@dataclass(eq=False)
class TrackedConstraint:
    """One constraint along many texts that another generation loop extends, copies and drops.

    The state of a text is looked up by the ids generated so far, so that batches, beams that change places and drafts
    that are rejected need no further notice.  Rows of another prompt than the last call's start from the beginning.
    """

    start: Constraint
    vocabulary: Vocabulary
    max_new_tokens: int | None = None
    _prompts: set[TokenIds] = field(default_factory=set)
    _length: int = 0  # of the prompts
    _last: int = 0  # columns of the call before
    _states: dict[TokenIds, Constraint | None] = field(default_factory=dict)

    def allowed(self, ids: IntArray) -> list[AllowedTokens | None]:
        """Per row of ids (B, T), prompts included (all equally long): what may follow (V,); None after its end.

        Nothing may follow a text that breaks the form: transformers fills up beams with such texts.
        """
        self._match_prompts(ids)
        texts = [tuple(row[self._length :].tolist()) for row in ids]
        states: dict[TokenIds, Constraint | None] = {}
        for text in texts:
            if text not in states:
                states[text] = self._state(text)
        self._states = {**{t: s for t, s in self._states.items() if len(t) == self._longest - 1}, **states}
        return [self._mask(text, states[text]) for text in texts]

    @property
    def _longest(self) -> int:
        return self._last - self._length

    def _match_prompts(self, ids: IntArray) -> None:
        """Keep the known prompts if these rows continue them; else the rows are new prompts."""
        columns = ids.shape[1]
        known = self._prompts and self._length <= columns <= self._last + 1
        if not known or {tuple(row[: self._length].tolist()) for row in ids} - self._prompts:
            self._prompts, self._length = {tuple(row.tolist()) for row in ids}, columns
            self._states = {}
        self._last = columns

    def _state(self, text: TokenIds) -> Constraint | None:
        """The constraint after a text, from the longest prefix that is known; None: the text breaks it."""
        if text in self._states:
            return self._states[text]
        at = next((n for n in range(len(text), -1, -1) if text[:n] in self._states), 0)
        before = self._states.get(text[:at], self.start)
        if before is None:
            return None
        state = before.fork()
        for token in text[at:]:
            if _ended(text[:at], self.vocabulary):
                break  # padding
            try:
                state.advance(token)
            except ConstraintViolation:
                return None
            at += 1
        return state

    def _mask(self, text: TokenIds, state: Constraint | None) -> AllowedTokens | None:
        if state is None:
            return np.zeros(self.vocabulary.size, np.bool_)
        if _ended(text, self.vocabulary):
            return None
        left = None if self.max_new_tokens is None else self.max_new_tokens - len(text)
        allowed = unpack(state.allowed(left), self.vocabulary.size)
        if not allowed.any():
            raise ConstraintDeadEnd(len(text), self.vocabulary.text(text).decode("utf-8", "replace"))
        return allowed


def _ended(text: TokenIds, vocabulary: Vocabulary) -> bool:
    return any(token in vocabulary.end_ids for token in text)


def widened(allowed: AllowedTokens, width: int) -> AllowedTokens:
    """The set over rows of logits that are wider than the vocabulary, which models pad."""
    out = np.zeros(width, np.bool_)
    out[: len(allowed)] = allowed[:width]
    return out


# --- transformers -----------------------------------------------------------------------------------------------------


class TransformersProcessor:
    """A logits processor of transformers: rows (B, T) and scores (B, V) in, scores out, -inf where the form forbids.

    Greedy, sampled, batched, with beams.  Its place among other processors is the last.
    """

    def __init__(self, tracked: TrackedConstraint):
        self.tracked = tracked

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        found = self.tracked.allowed(input_ids.cpu().numpy())
        forbidden = np.zeros(scores.shape, np.bool_)
        for i, allowed in enumerate(found):
            if allowed is not None:
                forbidden[i] = ~widened(allowed, scores.shape[1])
        return scores.masked_fill(scores.new_tensor(forbidden).bool(), -float("inf"))


def for_transformers(
    tokenizer: Any,
    *,
    end_ids: Iterable[int] = (),
    max_new_tokens: int | None = None,
    constraint: Constraint | None = None,
    **form: Unpack[FormOptions],
) -> TransformersProcessor:
    """A processor for `model.generate(..., logits_processor=[...])`.

    tokenizer       of transformers (a fast one)
    end_ids         tokens that end a text, beside the tokenizer's own; give model.generation_config.eos_token_id
    max_new_tokens  as given to `generate`: the text is then closed within it
    constraint      a constraint on the tokenizer's ids, in place of a form
    form            schema=, regex=, grammar= or choices=, and fields of `FormSettings`
    """
    from likely.tokenizers.huggingface import HFTokenizer

    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        ours = HFTokenizer.from_folder(folder)
    ours.end_ids |= frozenset([end_ids] if isinstance(end_ids, int) else end_ids)
    vocabulary = Vocabulary.of(ours, ours.vocab_size)
    return TransformersProcessor(
        TrackedConstraint(_constraint(vocabulary, constraint, form), vocabulary, max_new_tokens)
    )


# --- llama-cpp-python -------------------------------------------------------------------------------------------------


class LlamaCppProcessor:
    """A logits processor of llama-cpp-python: ids (T,) and scores (V,) in, scores out.

    error  what went wrong, None if nothing did: the engine cannot carry an exception, so the text is ended there
    """

    def __init__(self, tracked: TrackedConstraint):
        self.tracked = tracked
        self.error: LikelyError | None = None

    def __call__(self, input_ids: IntArray, scores: FloatArray) -> FloatArray:
        vocabulary = self.tracked.vocabulary
        try:
            [allowed] = self.tracked.allowed(np.asarray(input_ids)[None])
            self.error = None
        except LikelyError as error:
            self.error, allowed = error, None
        if allowed is None or not allowed.any():
            allowed = np.zeros(vocabulary.size, np.bool_)
            allowed[vocabulary.eos_id] = True
        scores = np.where(widened(allowed, len(scores)), scores, np.float32(-np.inf))
        if scores.max() == -np.inf:
            scores[vocabulary.eos_id] = 0
        return scores


def for_llama_cpp(
    llama: Any, *, max_tokens: int | None = None, constraint: Constraint | None = None, **form: Unpack[FormOptions]
) -> LlamaCppProcessor:
    """A processor for `llama.create_completion(..., logits_processor=LogitsProcessorList([...]))`.

    llama       a llama_cpp.Llama;  max_tokens: as given there, the text is then closed within it
    form        schema=, regex=, grammar= or choices=, and fields of `FormSettings`; or constraint=
    """
    from likely.formats.gguf import read_header
    from likely.runtimes.llamacpp.library import LlamaModel
    from likely.runtimes.llamacpp.tokenizer import LlamaCppTokenizer

    path = Path(llama.model_path)
    header = read_header(path)
    tokenizer = LlamaCppTokenizer(LlamaModel(path, header, vocab_only=True), header)
    vocabulary = Vocabulary.of(tokenizer, tokenizer.vocab_size)
    return LlamaCppProcessor(TrackedConstraint(_constraint(vocabulary, constraint, form), vocabulary, max_tokens))


def _constraint(vocabulary: Vocabulary, constraint: Constraint | None, form: FormOptions) -> Constraint:
    if constraint is not None:
        if form:
            raise ValueError(f"constraint= is a form by itself: drop {', '.join(form)}")
        if constraint.vocab_size != vocabulary.size:
            raise ValueError(
                f"the constraint was made for {constraint.vocab_size} tokens, this tokenizer has {vocabulary.size}"
            )
        return constraint
    options = cast(dict[str, Any], form)
    named = {name: options.pop(name) for name in FORM_OPTIONS if name in options}
    return Guide(vocabulary).constraint(make_form(**named, settings=FormSettings(**options)))
