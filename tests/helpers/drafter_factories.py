"""One factory per drafter under test: name -> how to make it for a vocabulary, and on what it can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, product

import numpy as np

from likely.decoding.drafting.protocol import DraftSource
from likely.runtimes.protocol import Runtime
from likely.runtimes.toy import ToyRuntime

CORPUS = [np.random.default_rng(seed).integers(0, 8, 200).tolist() for seed in range(3)]


@dataclass(frozen=True)
class Made:
    """build(target) -> the source; `runtimes` on which it works; `tree`: whether its drafts branch."""

    build: Callable[[Runtime], DraftSource]
    runtimes: tuple[str, ...] = ("toy", "torch", "llamacpp", "native")
    tree: bool = False
    note: str = ""


def _lookup(target):
    from likely.decoding.drafting.lookup import PromptLookup

    return PromptLookup()


def _copy(target):
    from likely.decoding.drafting.lookup import CopySource

    return CopySource(gram=2)


def _suffix(target, *, tree=False):
    from likely.decoding.drafting.suffix.drafter import SuffixMemory

    return SuffixMemory(tree=tree, spec_factor=2.0)


def _trigram(target):
    from likely.decoding.drafting.trigram.drafter import TrigramMemory

    return TrigramMemory.from_texts(CORPUS)


def _ngram(target):
    from likely.decoding.drafting.ngram.drafter import NgramModel

    return NgramModel(target.vocab_size)


def draft_runtime(vocab_size: int) -> Runtime:
    """A smaller model of the same tokens: it knows one token less of the past."""
    return ToyRuntime.random(vocab_size, seed=3, order=2, context_length=512, tokens_held=1 << 16, sequences=64)


def _model(target, shape=None):
    from likely.decoding.drafting.model.drafter import DraftModel

    shapes = {} if shape is None else {"shape": shape}
    return DraftModel(draft_runtime(target.vocab_size), **shapes)


def _branching(target):
    from likely.decoding.drafting.trees.shapes import ConstantBranching

    return _model(target, ConstantBranching((2, 2, 1)))


def _beam(target):
    from likely.decoding.drafting.trees.shapes import StochasticBeam

    return _model(target, StochasticBeam(width=3, depth=3))


def _iid(target):
    from likely.decoding.drafting.trees.shapes import ConstantBranching

    return _model(target, ConstantBranching((2, 2), independent=True))


def _skip(target):
    from likely.decoding.drafting.layers import layer_skip

    return layer_skip("1", target)


def _layer_parallel(target):
    """Two attentions of the target side by side: far from the target itself where weights are random."""
    from likely.decoding.drafting.layers import layer_parallel

    return layer_parallel("0-1", target)


def _copy_then_model(target):
    from likely.decoding.drafting.composite import FirstOf

    return FirstOf(_copy(target), _model(target))


def _tokenizers(target):
    """A tokenizer of the target's size, with pieces of several letters, and one of eight letters."""
    from byte_tokenizer import PieceTokenizer

    letters = [bytes([97 + i]) for i in range(8)]
    longer = (b"".join(parts) for n in (2, 3) for parts in product(letters, repeat=n))
    ours = PieceTokenizer([*letters, *islice(longer, target.vocab_size - len(letters))])
    return PieceTokenizer(letters), ours


def _by_text(target):
    from likely.decoding.drafting.model.cross_tokenizer import CrossTokenizerModel

    return CrossTokenizerModel(draft_runtime(8), *_tokenizers(target))


def _shared(target):
    from likely.decoding.drafting.model.shared_vocabulary import shared_vocabulary_model

    return shared_vocabulary_model(draft_runtime(8), *_tokenizers(target), vocab_size=target.vocab_size, name="shared")


MADE: dict[str, Made] = {
    "lookup": Made(_lookup),
    "copy": Made(_copy),
    "suffix": Made(_suffix),
    "suffix, trees": Made(lambda target: _suffix(target, tree=True), tree=True),
    "trigram": Made(_trigram, tree=True),
    "ngram": Made(_ngram),
    "model, chain": Made(_model),
    "model, RSD-C": Made(_branching, tree=True),
    "model, RSD-S": Made(_beam, tree=True),
    "model, independent": Made(_iid, tree=True, note="SpecInfer, SpecTr"),
    "other tokenizer, by text": Made(_by_text),
    "other tokenizer, shared tokens": Made(_shared),
    "copy + model": Made(_copy_then_model),
    "skip": Made(_skip, runtimes=("torch", "native")),
    "layer_parallel": Made(_layer_parallel, runtimes=("torch",)),
}
