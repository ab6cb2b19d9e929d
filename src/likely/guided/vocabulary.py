"""The tokens of a model as byte strings: what every constraint is compiled against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from likely.decoding.constraint import Constraint, Mask, mask_of, pack
from likely.errors import CapabilityError
from likely.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens of a model, by id.

    tokens   (V,) bytes that each token adds to a text; b"" for control tokens and ids that the tokenizer does not have.
             Several ids may have the same bytes: all of them count
    end_ids  tokens that end a text;  eos_id: the one to guess
    encode   text -> ids, as the model's tokenizer writes it (control tokens are not recognised)
    """

    tokens: tuple[bytes, ...]
    end_ids: frozenset[int]
    eos_id: int
    encode: Callable[[str], list[int]]
    _guesses: dict[bytes, list[int]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
        """Of a model whose rows of logits are `vocab_size` wide (they may be wider than the tokenizer)."""
        known = min(tokenizer.vocab_size, vocab_size)
        tokens = [tokenizer.token_bytes(i) for i in range(known)] + [b""] * (vocab_size - known)
        end_ids = frozenset(i for i in tokenizer.end_ids if i < vocab_size)
        if not end_ids:
            raise ValueError("a constraint needs a token that ends the text; this tokenizer names none")
        eos = tokenizer.eos_id
        for i in end_ids:
            tokens[i] = b""
        return cls(tuple(tokens), end_ids, eos if eos in end_ids else min(end_ids), tokenizer.encode)

    @property
    def size(self) -> int:
        return len(self.tokens)

    @cached_property
    def end_mask(self) -> Mask:
        return mask_of(self.end_ids, self.size)

    @cached_property
    def text_mask(self) -> Mask:
        """The tokens that write something."""
        return pack(np.fromiter(map(bool, self.tokens), np.bool_, self.size))

    @cached_property
    def ids_of(self) -> dict[bytes, tuple[int, ...]]:
        """Bytes -> every id that writes them."""
        out: dict[bytes, list[int]] = {}
        for i, text in enumerate(self.tokens):
            if text:
                out.setdefault(text, []).append(i)
        return {text: tuple(ids) for text, ids in out.items()}

    @cached_property
    def longest(self) -> int:
        return max(map(len, self.tokens))

    @cached_property
    def sorted_texts(self) -> list[bytes]:
        """The texts of tokens in byte order, each once: a trie as a list (the extensions of a prefix are one range)."""
        return sorted(self.ids_of)

    def text(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)

    def guess(self, text: bytes) -> list[int]:
        """`spell`, remembered: forced pieces of a form come again with every text.  [] where no tokens write it."""
        if text not in self._guesses:
            if len(self._guesses) >= 4096:
                self._guesses.clear()
            try:
                self._guesses[text] = self.spell(text) if text else []
            except ValueError:
                self._guesses[text] = []
        return self._guesses[text]

    def spell(self, text: bytes) -> list[int]:
        """Tokens that write exactly these bytes: the tokenizer's own for text, else the longest that fit."""
        try:
            ids = self.encode(text.decode())
        except UnicodeDecodeError:
            ids = []
        if self.text(ids) == text:
            return ids
        ids, at = [], 0
        while at < len(text):
            for end in range(min(len(text), at + self.longest), at, -1):
                if found := self.ids_of.get(text[at:end]):
                    ids.append(found[0])
                    at = end
                    break
            else:
                raise ValueError(f"no token writes the byte {text[at : at + 1]!r}")
        return ids


def byte_vocabulary() -> Vocabulary:
    """256 tokens of one byte each, and an end token."""
    return Vocabulary((*(bytes([b]) for b in range(256)), b""), frozenset({256}), 256, lambda text: list(text.encode()))


# --- parts of tokens, as the single bytes they are made of ------------------------------------------------------------


def check_bytes(vocabulary: Vocabulary) -> None:
    """CapabilityError unless every byte that occurs in a token is a token by itself."""
    lacking = {b for text in vocabulary.ids_of for b in text} - {t[0] for t in vocabulary.ids_of if len(t) == 1}
    if lacking:
        raise CapabilityError(
            f"tokens cannot be cut where one form ends inside them: no token writes byte {min(lacking)} alone"
        )


def after_bytes(constraint: Constraint, text: bytes, vocabulary: Vocabulary) -> Constraint | None:
    """A fork that has taken these bytes, None if they cannot follow.

    For constraints over bytes, to which all ways to cut a text into tokens are equal.
    """
    state = constraint.fork()
    if whole := vocabulary.ids_of.get(text):
        if not state.permits(whole[0]):
            return None
        state.advance(whole[0])
        return state
    for byte in text:
        token = vocabulary.ids_of[bytes([byte])][0]
        if not state.permits(token):
            return None
        state.advance(token)
    return state
