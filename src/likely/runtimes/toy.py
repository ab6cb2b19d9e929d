"""An explicit model: a function from a token prefix to logits. Exact answers for tests and for understanding.

It knows nothing about neural networks; every rule of scoring and sampling can be checked on it by enumeration.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from likely.errors import KvFull
from likely.runtimes.protocol import (
    Capabilities,
    FloatArray,
    Limits,
    Output,
    Path,
    Sequence,
    Work,
    check_length,
    check_path,
    check_work,
)
from likely.runtimes.rows import reduce_rows
from likely.runtimes.turns import SharedByThreads, one_at_a_time

Prefix = tuple[int, ...]


@dataclass(eq=False)
class ToySequence(Sequence):
    tokens: list[int] = field(default_factory=list)  # kept
    nodes: list[int] = field(default_factory=list)  # pending


class ToyRuntime(SharedByThreads):
    """A Runtime over `logits_of(prefix) -> (V,)`; -inf is a legal logit."""

    capabilities = Capabilities(trees=True, fork=True, truncate=True)

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
        super().__init__()
        self._logits_of, self.vocab_size, self.context_length, self.revision = (
            logits_of,
            vocab_size,
            context_length,
            revision,
        )
        self.limits = Limits(
            sequences=sequences, leaves=sequences, tokens_held=tokens_held, tokens_per_call=tokens_held
        )
        self._open: set[ToySequence] = set()
        self.calls = 0
        self.tokens_computed = 0
        self.rows_computed = 0

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

    @one_at_a_time
    def open(self) -> ToySequence:
        self._check_sequences(1)
        sequence = ToySequence()
        self._open.add(sequence)
        return sequence

    @one_at_a_time
    def fork(self, sequence: Sequence, length: int | None = None) -> ToySequence:
        assert isinstance(sequence, ToySequence)
        length = sequence.length if length is None else length
        check_length(sequence, length)
        self._check_sequences(1)
        self._check_tokens(length)
        copy = ToySequence(length=length, tokens=sequence.tokens[:length])
        self._open.add(copy)
        return copy

    @one_at_a_time
    def forward(self, work: Seq[Work]) -> list[Output]:
        check_work(work, vocab_size=self.vocab_size, context_length=self.context_length, capabilities=self.capabilities)
        self._check_tokens(sum(len(item.tokens) for item in work))
        self.calls += 1
        self.tokens_computed += sum(len(item.tokens) for item in work)
        return [self._one(item) for item in work]

    def _one(self, item: Work) -> Output:
        sequence = item.sequence
        assert isinstance(sequence, ToySequence)
        tokens = [int(t) for t in item.tokens]
        if item.parents is None:
            start = sequence.length
            sequence.tokens += tokens
            sequence.length += len(tokens)
            prefixes = [tuple(sequence.tokens[: start + i + 1]) for i in range(len(tokens))]
        else:
            first = sequence.pending
            sequence.parents += [int(p) for p in item.parents]
            sequence.nodes += tokens
            prefixes = [
                (*sequence.tokens, *(sequence.nodes[v] for v in sequence.path(first + i))) for i in range(len(tokens))
            ]

        def row_of(row: int) -> FloatArray:
            self.rows_computed += 1
            return np.asarray(self._logits_of(prefixes[row]), np.float32)

        return reduce_rows(item.want, len(tokens), row_of, self.vocab_size)

    @one_at_a_time
    def commit(self, accepted: Iterable[tuple[Sequence, Path]]) -> None:
        accepted = list(accepted)
        for sequence, path in accepted:
            check_path(sequence, path)
        if len({id(sequence) for sequence, _ in accepted}) < len(accepted):
            raise ValueError("one commit may name a sequence only once")
        for sequence, path in accepted:
            assert isinstance(sequence, ToySequence)
            sequence.tokens += [sequence.nodes[node] for node in path]
            sequence.length += len(path)
            sequence.nodes, sequence.parents = [], []

    @one_at_a_time
    def truncate(self, sequence: Sequence, length: int) -> None:
        assert isinstance(sequence, ToySequence)
        check_length(sequence, length)
        sequence.tokens, sequence.length = sequence.tokens[:length], length
        sequence.nodes, sequence.parents = [], []

    @one_at_a_time
    def close(self, sequence: Sequence) -> None:
        assert isinstance(sequence, ToySequence)
        self._open.discard(sequence)
        sequence.closed = True

    @one_at_a_time
    def free_tokens(self) -> int:
        return self.limits.tokens_held - sum(s.length + s.pending for s in self._open)

    @one_at_a_time
    def shutdown(self) -> None:
        for sequence in list(self._open):
            self.close(sequence)

    def _check_sequences(self, needed: int) -> None:
        free = self.limits.sequences - len(self._open)
        if needed > free:
            raise KvFull(needed, free, "sequences")

    def _check_tokens(self, needed: int) -> None:
        if needed > self.free_tokens():
            raise KvFull(needed, self.free_tokens())


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
