"""log p of given tokens with gradients, on ids and masks: the numbers of `lm.score`.  torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 1024  # rows of logits whose float32 values exist at one time


@dataclass(frozen=True)
class SequenceScores:
    """Log-probabilities of N completions.

    token_logprobs  (N, T−1) log p(token t+1 | all before it), nats; 0 where `mask` is False
    mask            (N, T−1) which of them belong to the completion
    """

    token_logprobs: Tensor
    mask: Tensor

    @property
    def sum(self) -> Tensor:
        """(N,) log p(completion | prompt), nats."""
        return self.token_logprobs.sum(dim=1)

    @property
    def length(self) -> Tensor:
        """(N,) scored tokens, the end token included."""
        return self.mask.sum(dim=1)

    @property
    def mean(self) -> Tensor:
        """(N,) nats per token."""
        return self.sum / self.length


@dataclass(frozen=True)
class TokenBatch:
    """N texts of at most T tokens, padded on the right: input_ids (N, T), attention_mask and completion_mask (N, T)."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    @classmethod
    def of(
        cls, texts: Sequence[tuple[Sequence[int], Sequence[bool]]], *, device: torch.device | str = "cpu"
    ) -> TokenBatch:
        """Of (token ids, which of them are scored); padding is id 0, which no mask shows."""
        longest = max(len(tokens) for tokens, _ in texts)
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        seen, marked = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
        for i, (tokens, scored) in enumerate(texts):
            n = len(tokens)
            ids[i, :n], seen[i, :n], marked[i, :n] = torch.tensor(tokens), 1, torch.tensor(scored)
        return cls(ids.to(device), seen.to(device), marked.to(device))


def text_logprobs(
    module: torch.nn.Module, texts: Sequence[tuple[Sequence[int], Sequence[bool]]]
) -> SequenceScores:  # fmt: skip
    """`sequence_logprobs` of (token ids, which of them are scored), padded on the right, where a causal model does not
    look."""
    batch = TokenBatch.of(texts, device=next(module.parameters()).device)
    return sequence_logprobs(module, batch.input_ids, batch.attention_mask, batch.completion_mask)


def sequence_logprobs(
    module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
) -> SequenceScores:
    """log p of the tokens that `completion_mask` shows, each given all tokens before it.

    module           a causal language model of transformers, wrapped by peft or not; its mode (dropout) is left alone
    input_ids        (N, T);  attention_mask: (N, T), 0 for padding, on either side
    completion_mask  (N, T); the logits at position t score token t + 1, so that its first column must be 0
    Log-softmax is computed in float32 whatever the model computes in.  ValueError for a row without a scored token.
    """
    mask = completion_mask[:, 1:].bool()
    if completion_mask.shape != input_ids.shape or attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids, attention_mask and completion_mask must have one shape, got {tuple(input_ids.shape)}, "
            f"{tuple(attention_mask.shape)}, {tuple(completion_mask.shape)}"
        )
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"row {empty[0]}: the completion mask shows no token, so there is nothing to score")
    if bool((completion_mask.bool() & ~attention_mask.bool()).any()):
        raise ValueError("the completion mask shows padding: completion_mask must lie within attention_mask")
    first, last = _columns(mask)
    logits = _logits(module, input_ids, attention_mask, first, last)
    wanted = mask[:, first:last]
    values = SelectedLogprobs.apply(logits, input_ids[:, first + 1 : last + 1])
    values = torch.where(wanted, values, torch.zeros_like(values))
    before, after = first, mask.shape[1] - last
    return SequenceScores(torch.nn.functional.pad(values, (before, after)), mask)


class SelectedLogprobs(torch.autograd.Function):
    """log softmax(logits)[id] in float32, a few rows at a time: logits (N, R, V), ids (N, R) -> (N, R).

    Beside the logits and, backwards, their gradient, no third array of V columns exists.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        flat, places = logits.flatten(0, 1), ids.flatten()
        normalisers = torch.cat([part.float().logsumexp(dim=1) for part in flat.split(ROWS)])
        ctx.save_for_backward(logits, ids, normalisers)
        chosen = flat.gather(1, places[:, None]).squeeze(1).float()
        return (chosen - normalisers).view(ids.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, ids, normalisers = ctx.saved_tensors
        flat, places, scale = logits.flatten(0, 1), ids.flatten(), gradients[0].flatten()
        found = torch.empty_like(flat)
        for start in range(0, len(flat), ROWS):
            rows = slice(start, start + ROWS)
            part = (flat[rows].float() - normalisers[rows, None]).exp_().mul_(-scale[rows, None])
            part.scatter_add_(1, places[rows, None], scale[rows, None].to(part.dtype))
            found[rows] = part
        return found.view(logits.shape), None


def inner_module(module: torch.nn.Module) -> Any:
    """The module below an adapter's wrapper."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _columns(mask: Tensor) -> tuple[int, int]:
    """The first column that any row needs, and the one behind the last."""
    columns = mask.any(dim=0).nonzero().flatten()
    return int(columns[0]), int(columns[-1]) + 1


def _logits(module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, first: int, last: int) -> Tensor:
    """(N, last − first, V) at the positions first..last."""
    known = inspect.signature(inner_module(module).forward).parameters
    settings: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if "position_ids" in known and not bool(attention_mask[:, 0].all()):  # padded on the left
        settings["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    if "logits_to_keep" in known:
        rows = torch.arange(first, last, device=input_ids.device)
        return module(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=rows, **settings).logits
    return module(input_ids=input_ids, attention_mask=attention_mask, **settings).logits[:, first:last]
