"""Supervised fine-tuning: −log p of the tokens that a mask shows, averaged over those of the whole batch.  torch."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import torch

from likely.alignment.scores import Completion, PackedText, packed_rows, packed_scores, takes_masks
from likely.training.logprobs import SequenceScores, text_logprobs
from likely.training.loop import LossOutput

LossOn = Literal["completion", "assistant", "all"]
LOSS_ON = ("completion", "assistant", "all")


@dataclass(frozen=True)
class MaskedText:
    """Token ids and which of them are learned; the first token has no condition and is never one of them.

    row  where it stood in the user's file, from 1
    """

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]
    row: int = 0

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.scored):
            raise ValueError(f"one mark per token is needed: {len(self.tokens)} tokens, {len(self.scored)} marks")
        if not any(self.scored[1:]):
            raise ValueError("the mask shows no token that has a condition, so there is nothing to learn")

    @classmethod
    def of(cls, completion: Completion, *, whole: bool = False, row: int = 0) -> MaskedText:
        """The completion's tokens are learned; with `whole` the prompt's, too."""
        prompt = [whole] * len(completion.prompt)
        return cls((*completion.prompt, *completion.tokens), (*prompt, *[True] * len(completion.tokens)), row)

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return sum(self.scored[1:])

    def __len__(self) -> int:
        return len(self.tokens)


def text_scores(module: torch.nn.Module, texts: Seq[MaskedText]) -> SequenceScores:
    """Log-probabilities of the marked tokens, in one batch.

    Where the architecture allows it, and it saves padding, texts stand behind each other in one row: none sees another,
    and positions begin anew with each, so that the numbers are those of separate rows.
    """
    longest = max(map(len, texts))
    if takes_masks(module):
        rows = packed_rows([len(text) - 1 for text in texts])
        if len(rows) < len(texts):
            documents = [_document(i, text) for i, text in enumerate(texts)]
            return packed_scores(module, documents, rows, (len(texts), longest - 1))
    return text_logprobs(module, [(text.tokens, text.scored) for text in texts])


def _document(number: int, text: MaskedText) -> PackedText:
    size = len(text) - 1  # the last token predicts nothing
    scored = [(t, text.tokens[t + 1], number, t) for t in range(size) if text.scored[t + 1]]
    return PackedText(list(text.tokens[:-1]), list(range(size)), [0] * size, scored)


def sft_loss(module: torch.nn.Module) -> Callable[[Seq[MaskedText]], LossOutput]:
    """−Σ log p over the marked tokens of a piece; weigh texts by `targets`, so that the batch's mean is over tokens."""

    def loss(texts: Seq[MaskedText]) -> LossOutput:
        scores = text_scores(module, texts)
        total, tokens = -scores.sum.sum(), float(scores.length.sum())
        return LossOutput(total, {"nats_per_token": (total.item(), tokens)})

    return loss
