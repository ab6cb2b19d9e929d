"""A model of few tokens, several characters each, on which clauses can be checked by enumeration."""

from __future__ import annotations

import itertools

from byte_tokenizer import PieceTokenizer

from likely.guided.guide import Guide
from likely.guided.vocabulary import Vocabulary
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.queries.where.constraint import WhereCompiler
from likely.runtimes.toy import ToyRuntime

PIECES = ("a", "b", "ab", " ", ". ", "b.", "ba ", ".")  # every character by itself, so that each text can be spelt
END = len(PIECES)


def toy_model(pieces=PIECES, *, seed=0, order=2, context_length=400) -> Model:
    tokenizer = PieceTokenizer([p.encode() for p in pieces], control=["<end>"])
    runtime = ToyRuntime.random(tokenizer.vocab_size, seed=seed, order=order, context_length=context_length)
    return Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float32", "0", "pieces", template=False))


def compiler(pieces=PIECES) -> WhereCompiler:
    tokenizer = PieceTokenizer([p.encode() for p in pieces], control=["<end>"])
    guide = Guide(Vocabulary.of(tokenizer, tokenizer.vocab_size))
    return WhereCompiler(guide.vocabulary, lambda: guide.llguidance)


def token_strings(pieces, most):
    """Every sequence of at most `most` tokens."""
    for length in range(most + 1):
        yield from itertools.product(range(len(pieces)), repeat=length)
