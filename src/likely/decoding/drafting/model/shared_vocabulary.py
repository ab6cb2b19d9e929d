"""Draft with a model of another tokenizer by the tokens that both have: q lives in the target's vocabulary.

Token-level intersection (TLI), Timor et al. 2025, arXiv:2502.05202: q is the draft's distribution restricted to the
tokens whose strings both vocabularies hold, and renormalised; rules R and K are exact for it, as for any q.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from likely.decoding.drafting.model.cross_tokenizer import encode_exactly
from likely.decoding.drafting.model.drafter import DraftModel
from likely.decoding.drafting.trees.shapes import DraftShape
from likely.decoding.sampling import Sampling
from likely.errors import ModelError
from likely.runtimes.protocol import FloatArray, IntArray, Runtime
from likely.tokenizers.protocol import Tokenizer


def shared_ids(draft: Tokenizer, target: Tokenizer) -> tuple[IntArray, IntArray]:
    """(ids in the draft's vocabulary, the same strings' ids in the target's), each (S,), no id twice.

    Strings are the raw bytes of a token, so that "Ġthe" of one and "▁the" of another are the same.  Control tokens take
    no part.  Of several ids with the same bytes the one that `encode` uses counts, else the first.
    """
    ours, theirs = _by_bytes(draft), _by_bytes(target)
    both = sorted(theirs[text] for text in theirs.keys() & ours.keys())
    of = {token: text for text, token in theirs.items()}
    return np.array([ours[of[token]] for token in both], np.int64), np.array(both, np.int64)


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for token in range(tokenizer.vocab_size):
        if not (raw := tokenizer.token_bytes(token)):
            continue
        if raw in found:
            try:
                if tokenizer.encode(raw.decode()) != [token]:
                    continue
            except UnicodeDecodeError:
                continue
        found[raw] = token
    return found


class SharedVocabulary:
    """TokenMap: the draft writes the tokens that both vocabularies have, and reads all of the target's.

    Tokens that only the target has are spelled with several of the draft's.  The pieces of a character that is cut by
    token borders are spelled byte by byte where the draft has the bytes, else left out.
    """

    def __init__(self, draft: Tokenizer, target: Tokenizer, *, draft_size: int, target_size: int):
        """draft_size, target_size: columns of the logits of the two models."""
        self._draft, self._target, self._target_size = draft, target, target_size
        ours, theirs = shared_ids(draft, target)
        fits = (ours < draft_size) & (theirs < target_size)
        self._ours, self._theirs = ours[fits], theirs[fits]
        if not len(self._ours):
            raise ModelError("the two tokenizers share no token; draft by way of the text instead: model:NAME")
        self._id = dict(zip(self._theirs.tolist(), self._ours.tolist(), strict=True))
        self._named = {token: text for text, token in target.special_tokens.items()}
        self._spelled: dict[int, list[int]] = {}
        self._singles: dict[int, int] | None = None  # byte -> id of the draft

    def __len__(self) -> int:
        """How many tokens can be drafted."""
        return len(self._ours)

    def start(self, prompt: Seq[int]) -> Seq[int]:
        bos = self._draft.bos_id
        if bos is None or not self._draft.add_bos or (prompt and list(self.ids(prompt[0])) == [bos]):
            return ()
        return (bos,)

    def ids(self, token: int) -> Seq[int]:
        if token in self._id:
            return (self._id[token],)
        if token not in self._spelled:
            self._spelled[token] = self._spell(token)
        return self._spelled[token]

    def _spell(self, token: int) -> list[int]:
        draft = self._draft
        if token in self._named:
            name = self._named[token]
            if name in draft.special_tokens:
                return [draft.special_tokens[name]]
            if token == self._target.bos_id and draft.bos_id is not None:
                return [draft.bos_id]
            return draft.encode(name)
        raw = self._target.token_bytes(token)
        if (ids := encode_exactly(draft, raw)) is not None:
            return ids
        if self._singles is None:
            pieces = ((draft.token_bytes(i), i) for i in range(draft.vocab_size))
            self._singles = {piece[0]: i for piece, i in pieces if len(piece) == 1}
        return [self._singles[b] for b in raw if b in self._singles]

    def id(self, token: int) -> int:
        return self._id[token]

    def logits(self, row: FloatArray) -> FloatArray:
        """(V_draft,) -> (V,): the draft's logits of shared tokens, -inf elsewhere; a softmax renormalises."""
        out = np.full(self._target_size, -np.inf, np.float32)
        out[self._theirs] = row[self._ours]
        return out


def shared_vocabulary_model(
    runtime: Runtime,
    tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    *,
    vocab_size: int | None = None,
    shape: DraftShape | None = None,
    sampling: Sampling | None = None,
    name: str = "shared vocabulary",
) -> DraftModel:
    """DraftSource over a model of another tokenizer, of any shape and under any rule.

    vocab_size  columns of the target's logits; default: the size of its tokenizer
    """
    tokens = SharedVocabulary(
        tokenizer,
        target_tokenizer,
        draft_size=runtime.vocab_size,
        target_size=vocab_size or target_tokenizer.vocab_size,
    )
    return DraftModel(runtime, shape=shape, sampling=sampling, tokens=tokens, name=name)
