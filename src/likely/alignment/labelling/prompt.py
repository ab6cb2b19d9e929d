"""Prompts with demonstrations, as token ids with the targets of each training loss.

  ### Instruction: ... ### Options: person, location          (only with an instruction)
  ### Sentence: WORDS
  ### Response: SPANS<end>
  ### Sentence: WORDS
  ### Response:

Every block is turned into tokens by itself, so that a prompt with fewer demonstrations is made of the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np

from likely.alignment.labelling.codec import SpanCodec
from likely.alignment.labelling.sentences import Sentence
from likely.errors import DataError, ModelError, check_choice
from likely.prompting.selection.bm25 import BM25
from likely.tokenizers.protocol import Tokenizer, begin, decode

Strategy = Literal["mrc", "src", "vanilla"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
LEAD = " "  # in front of every response; its first token may hold it
SENTENCE, RESPONSE = "### Sentence:", "### Response:"
TASK = "Name the labelled spans of the sentence, in order, each with its label."


@dataclass(frozen=True)
class PromptWithTargets:
    """Token ids, which of them the loss is on, and how many demonstrations fitted."""

    tokens: tuple[int, ...]
    targets: tuple[bool, ...]
    demonstrations: int


@dataclass(eq=False)
class SpanPrompt:
    """Makes prompts for one model and one set of labels.

    instruction  what the task is; None: prompts begin with the first sentence
    context      most tokens of prompt and response together
    """

    codec: SpanCodec
    tokenizer: Tokenizer
    context: int
    instruction: str | None = None
    _ids: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @property
    def end(self) -> int:
        """The token after every response."""
        if self.tokenizer.eos_id is None:
            raise ModelError("labelling needs a token that ends a text; this model's tokenizer names none")
        return self.tokenizer.eos_id

    def build(
        self, query: Sentence, demonstrations: Sequence[Sentence] = (), *, strategy: Strategy = "mrc",
        answered: bool = True, reserve: int = 0,
    ) -> PromptWithTargets:  # fmt: skip
        """The prompt of a sentence after its demonstrations.

        strategy  what the loss is on.  mrc (multi-response completion): the responses of all blocks, each with its end;
                  src (single-response): that of the query;  vanilla: every token
        answered  whether the query's response is part of it (to train), or is to be written
        reserve   tokens that must stay free for a response
        Where all do not fit, the first demonstrations are left out whole; DataError if the query does not fit alone.
        Summed over tokens, mrc with K demonstrations is the sum over k = 0..K of src with the first k of them, block
        k + 1 being the query: causal attention does not see what follows.
        """
        check_choice("strategy", strategy, STRATEGIES)
        head = self._head()
        last = self._block(query, answered)
        room = self.context - reserve - len(head) - len(last[0])
        if room < 0:
            raise DataError(
                f"{query.where or 'the sentence'}: {self.context - room} tokens are needed for it alone, the model's "
                f"context is {self.context}: cut the sentence, or load the model with a larger context="
            )
        newline = self._encode("\n")
        blocks: list[tuple[tuple[int, ...], int]] = []
        for one in reversed(demonstrations):
            block = self._block(one, True)
            room -= len(block[0]) + len(newline)
            if room < 0:
                break
            blocks.append(block)
        blocks = [*reversed(blocks), last]
        tokens, targets = list(head), [strategy == "vanilla"] * len(head)
        for number, (ids, response) in enumerate(blocks):
            if number:
                tokens += newline
                targets += [strategy == "vanilla"] * len(newline)
            on = strategy == "mrc" or (strategy == "src" and number == len(blocks) - 1)
            tokens += ids
            targets += [strategy == "vanilla" or (on and at >= response) for at in range(len(ids))]
        targets[0] = False  # nothing stands before it
        return PromptWithTargets(tuple(tokens), tuple(targets), len(blocks) - 1)

    def _head(self) -> list[int]:
        text = ""
        if self.instruction is not None:
            text = f"### Instruction: {self.instruction} ### Options: {', '.join(self.codec.options)}\n"
        return begin(self.tokenizer, list(self._encode(text)) if text else [])

    def _block(self, sentence: Sentence, answered: bool) -> tuple[tuple[int, ...], int]:
        """(tokens, where the response begins; past the last one where there is none)"""
        ids = list(self._encode(f"{SENTENCE} {' '.join(sentence.tokens)}\n{RESPONSE}"))
        start = len(ids)
        if answered:
            ids += [*self._encode(LEAD + self.response(sentence)), self.end]
        return tuple(ids), start

    def response(self, sentence: Sentence) -> str:
        """What is to be written for a labelled sentence; DataError names the row of one that cannot be written."""
        if sentence.spans is None:
            raise DataError(f"{sentence.where or 'the sentence'}: no tags, so it is no demonstration")
        try:
            return self.codec.encode_spans(sentence.tokens, sentence.spans)
        except ValueError as error:
            raise DataError(f"{sentence.where or 'the sentence'}: {error}") from None

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            ids = tuple(self.tokenizer.encode(text))
            if decode(self.tokenizer, ids) != text:
                raise ModelError(f"this model's tokenizer does not write {text[:60]!r} exactly: use another model")
            self._ids[text] = ids
        return self._ids[text]


# --- which demonstrations ---------------------------------------------------------------------------------------------


class DemonstrationSelector(Protocol):
    """Chooses demonstrations for a sentence by their numbers in the pool, never one of the same words."""

    def select(self, query: Sentence, pool: Sequence[Sentence], k: int) -> list[int]: ...


def _others(query: Sentence, pool: Sequence[Sentence], k: int) -> list[int]:
    found = [i for i, one in enumerate(pool) if one.tokens != query.tokens]
    if k < 0 or k > len(found):
        raise ValueError(f"k must lie in 0..{len(found)}, the sentences with other words than the query's, got {k}")
    return found


@dataclass(frozen=True)
class RandomDemonstrations:
    """The same k sentences for every query, drawn with the seed, so that they are computed once; a query among them is
    replaced by the next one."""

    seed: int = 0

    def select(self, query: Sentence, pool: Sequence[Sentence], k: int) -> list[int]:
        others = set(_others(query, pool, k))
        order = np.random.default_rng(self.seed).permutation(len(pool)).tolist()
        return [i for i in order if i in others][:k]


@dataclass(eq=False)
class NearestDemonstrations:
    """The k sentences that share the rarest words with the query, the nearest one last.

    `BM25` over lower-cased words, ties by order.
    """

    k1: float = 1.2
    b: float = 0.75
    _pool: Sequence[Sentence] | None = field(default=None, repr=False)
    _index: BM25 | None = field(default=None, repr=False)

    def select(self, query: Sentence, pool: Sequence[Sentence], k: int) -> list[int]:
        if self._index is None or pool is not self._pool:
            words = ([word.lower() for word in one.tokens] for one in pool)
            self._pool, self._index = pool, BM25(words, k1=self.k1, b=self.b)
        scores = self._index.scores([word.lower() for word in query.tokens])
        return sorted(_others(query, pool, k), key=lambda i: (-scores[i], i))[:k][::-1]
