"""An explicit model: a function from a token prefix to logits. Exact answers for tests and for understanding.

It knows nothing about neural networks; every rule of scoring and sampling can be checked on it by enumeration.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq

import numpy as np

from likely.runtimes.protocol import Capabilities, FloatArray, IntArray, Limits, Output, Work
from likely.runtimes.rows import reduce_rows
from likely.runtimes.slots.runtime import SlotRuntime, SlotSequence
from likely.runtimes.slots.table import TokenCount

Prefix = tuple[int, ...]


class ToyRuntime(SlotRuntime):
    """A Runtime over `logits_of(prefix) -> (V,)`; -inf is a legal logit. Its sequences hold their token ids."""

    def __init__(
        self,
        logits_of: Callable[[Prefix], FloatArray],
        *,
        vocab_size: int,
        context_length: int = 64,
        tokens_held: int = 4096,
        sequences: int = 256,
        revision: str = "toy",
    ):
        super().__init__(
            vocab_size=vocab_size,
            context_length=context_length,
            capabilities=Capabilities(trees=True, fork=True, truncate=True),
            limits=Limits(sequences, sequences, tokens_held, tokens_held),
            revision=revision,
        )
        self._logits_of = logits_of
        self.calls = self.tokens_computed = self.rows_computed = 0

    @classmethod
    def random(cls, vocab_size: int, *, seed: int, order: int = 2, scale: float = 2.0, **limits: int) -> ToyRuntime:
        """Logits sampled from N(0, scale²): one row per value of the last `order` tokens and parity of the length."""

        def logits_of(prefix: Prefix) -> FloatArray:
            context = (*prefix[-order:], len(prefix) % 2, len(prefix) < order)
            digest = hashlib.sha256(repr((seed, context)).encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
            return (scale * rng.standard_normal(vocab_size)).astype(np.float32)

        return cls(
            logits_of, vocab_size=vocab_size, revision=f"toy-random-{vocab_size}-{order}-{scale}-{seed}", **limits
        )

    def _new_table(self, limit: int) -> TokenCount:
        return TokenCount(limit)

    def _compute(
        self, sequences: list[SlotSequence], work: list[Work], tokens: list[IntArray], slots: list[IntArray]
    ) -> list[Output]:
        self.calls += 1
        self.tokens_computed += sum(map(len, tokens))
        slots[:] = tokens
        return [self._one(*of) for of in zip(sequences, work, tokens, strict=True)]

    def _one(self, sequence: SlotSequence, item: Work, tokens: IntArray) -> Output:
        text = sequence.held.tolist()
        ends = [(*text, *tokens[: i + 1].tolist()) for i in range(len(tokens))]
        if item.parents is not None:
            below: list[Prefix] = []  # of every pending node
            nodes = [*sequence.nodes, *tokens.tolist()]
            for node, parent in zip(nodes, [*sequence.parents, *item.parents], strict=True):
                below.append((*(below[parent] if parent >= 0 else text), node))
            ends = below[sequence.pending :]

        def row_of(row: int) -> FloatArray:
            self.rows_computed += 1
            return np.asarray(self._logits_of(ends[row]), np.float32)

        return reduce_rows(item.want, len(tokens), row_of, self.vocab_size)


class CharTokenizer:
    """One token per character of `alphabet`; the last ids are <bos> and <end>. For toy models."""

    chat_template = None

    def __init__(self, alphabet: str, *, add_bos: bool = False):
        self._alphabet = alphabet
        self.bos_id, self.eos_id = len(alphabet), len(alphabet) + 1
        self.vocab_size = len(alphabet) + 2
        self.end_ids = frozenset({self.eos_id})
        self.add_bos = add_bos
        self.special_tokens: Mapping[str, int] = {"<bos>": self.bos_id, "<end>": self.eos_id}
        self.fingerprint = f"chars:{alphabet}"

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        try:
            return [self._alphabet.index(c) for c in text]
        except ValueError:
            raise ValueError(f"text has characters outside {self._alphabet!r}") from None

    def token_bytes(self, token: int) -> bytes:
        return self._alphabet[token].encode() if token < len(self._alphabet) else b""

    def token_text(self, token: int) -> str:
        return (*self._alphabet, "<bos>", "<end>")[token]


def all_strings(vocab_size: int, length: int) -> Iterable[Prefix]:
    """Every token string of the given length, in lexicographic order."""
    return itertools.product(range(vocab_size), repeat=length)


def exact_logprob(runtime: ToyRuntime, tokens: Seq[int], *, given: Seq[int] = ()) -> float:
    """log p(tokens | given) from the table, the slow obvious way, in fp64."""
    total, prefix = 0.0, tuple(given)
    for token in tokens:
        row = np.asarray(runtime._logits_of(prefix), np.float64)
        total += float(row[token] - np.logaddexp.reduce(row))
        prefix += (int(token),)
    return total
