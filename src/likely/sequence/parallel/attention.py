"""Softmax attention over several processes: all keys and values gathered, handed around a ring, or heads exchanged.

LASP-2H gathers: with grouped heads few keys travel, and every process does its own queries in one call.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from likely.errors import CapabilityError
from likely.sequence.layers.attention import SoftmaxAttention
from likely.sequence.parallel.collectives import all_gather, all_to_all, tie
from likely.sequence.parallel.group import SequenceGroup
from likely.sequence.parallel.layout import ShardLayout

AttentionSharing = Literal["allgather", "ring", "ulysses"]
METHODS = ("allgather", "ring", "ulysses")


def check_attention(mixer: SoftmaxAttention, layout: ShardLayout, method: AttentionSharing, *, packed: bool) -> None:
    """ValueError or CapabilityError for what a method cannot do, before any message is sent."""
    if method == "ulysses" and mixer.heads % layout.size:
        raise ValueError(
            f"attention by exchange of heads needs a number of processes that divides the {mixer.heads} heads, "
            f"got {layout.size}; use allgather"
        )
    if method == "ring" and packed:
        raise CapabilityError("ring attention takes one document a row; use allgather for packed ones")


def mix_attention(
    mixer: SoftmaxAttention, x: Tensor, layout: ShardLayout, group: SequenceGroup, *, seq_idx: Tensor | None,
    positions: Tensor | None, method: AttentionSharing,
) -> Tensor:  # fmt: skip
    """Outputs (B, tokens held, D).  Padding at the ends of rows is seen by no real token, and needs no mask.

    positions  of the tokens in their sequence (default: as the layout says): rotations are relative to one another
    """
    check_attention(mixer, layout, method, packed=seq_idx is not None)
    columns = layout.columns(group.rank).to(x.device)
    q, k, v = mixer.queries_keys_values(x, columns.expand(len(x), -1) if positions is None else positions)
    if method == "ring":
        y = _ring(q, k, v, layout, group)
    elif method == "ulysses":
        y = _heads_exchanged(mixer, q, k, v, seq_idx, layout, group)
    else:
        y = _gathered(mixer, q, k, v, seq_idx, layout, group)
    return mixer.o_proj(y.flatten(2))


def _gathered(
    mixer: SoftmaxAttention, q: Tensor, k: Tensor, v: Tensor, seq_idx: Tensor | None, layout: ShardLayout,
    group: SequenceGroup,
) -> Tensor:  # fmt: skip
    sent = torch.cat([k, v], -1).flatten(2)
    if seq_idx is not None:
        sent = torch.cat([sent, seq_idx[..., None].to(sent.dtype)], -1)
    received = all_gather(_padded(sent, layout), group)  # (W, B, most, numbers)
    columns = layout.columns(group.rank).to(q.device)
    whole = received.transpose(0, 1).flatten(1, 2)[:, layout.order_of_gathered().to(q.device)]
    whole = whole[:, : int(columns.max()) + 1]
    keys, values = whole[..., : k.shape[2] * 2 * k.shape[3]].unflatten(-1, (k.shape[2], -1)).chunk(2, -1)
    visible = (torch.arange(whole.shape[1], device=q.device) <= columns[:, None])[None, None]
    if seq_idx is not None:
        visible = visible & (whole[..., -1].detach()[:, None, None] == seq_idx.to(whole.dtype)[:, None, :, None])
    return tie(mixer.attend(q, keys, values, visible), received)


def _heads_exchanged(
    mixer: SoftmaxAttention, q: Tensor, k: Tensor, v: Tensor, seq_idx: Tensor | None, layout: ShardLayout,
    group: SequenceGroup,
) -> Tensor:  # fmt: skip
    """Ulysses: each process gets all tokens of its heads, attends, and sends the outputs back."""
    size = layout.size
    if k.shape[2] % size:
        k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], 2) for t in (k, v))
    parts = [t.unflatten(2, (size, -1)) for t in (q, k, v)]  # (B, n, W, heads of one, d)
    widths = [t.shape[3] for t in parts]
    sent = torch.cat(parts, 3).permute(2, 0, 1, 3, 4)  # (W, B, n, heads, d)
    received = all_to_all(_padded(sent, layout, 2), group)
    order = layout.order_of_gathered().to(q.device)
    whole = received.transpose(0, 1).flatten(1, 2)[:, order]
    visible = None
    if seq_idx is not None:
        ids = all_gather(_padded(seq_idx.to(q.dtype), layout, 1), group).transpose(0, 1).flatten(1, 2)[:, order]
        causal = torch.ones(layout.length, layout.length, dtype=torch.bool, device=q.device).tril()
        visible = (causal & (ids[:, :, None] == ids[:, None, :]))[:, None]
    queries, keys, values = whole.split(widths, 2)
    y = mixer.attend(queries, keys, values, visible)
    back = [y[:, layout.columns(rank).to(q.device)] for rank in range(size)]
    returned = all_to_all(torch.stack([_padded(t, layout, 1) for t in back]), group)
    own = returned[:, :, : q.shape[1]]  # (W, B, n, heads of one, d)
    return tie(own.permute(1, 2, 0, 3, 4).flatten(2, 3), received, returned)


def _padded(t: Tensor, layout: ShardLayout, dim: int = 1) -> Tensor:
    """Filled up along `dim` to the most tokens that a process holds."""
    missing = layout.most_tokens - t.shape[dim]
    return pad(t, (*(0, 0) * (t.ndim - 1 - dim), 0, missing)) if missing else t


def _ring(q: Tensor, k: Tensor, v: Tensor, layout: ShardLayout, group: SequenceGroup) -> Tensor:
    shared = q.shape[2] // k.shape[2]
    y: Tensor = _RingAttention.apply(
        q.unflatten(2, (k.shape[2], shared)), _padded(k, layout), _padded(v, layout), layout, group
    )
    return y.flatten(2, 3)


class _RingAttention(torch.autograd.Function):
    """Keys and values go around; every process adds what it sees of each block to a running softmax.

    q (B, n, kv heads, shared, d);  k, v (B, most tokens, kv heads, d).  Liu et al. 2023 (arXiv:2310.01889).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: ShardLayout, group: SequenceGroup) -> Tensor:
        highest = q.new_full((*q.shape[:-1],), -torch.inf)
        total, y = torch.zeros_like(highest), torch.zeros_like(q)
        block = torch.stack([k, v])
        for step in range(group.size):
            scores = _scores(q, block[0], layout, group, step)  # (B, n, kv, shared, most)
            raised = torch.maximum(highest, scores.amax(-1))
            kept = torch.exp(highest - raised).nan_to_num(0.0)
            weights = torch.exp(scores - raised[..., None]).nan_to_num(0.0)
            total = total * kept + weights.sum(-1)
            y = y * kept[..., None] + torch.einsum("bnkst,btkd->bnksd", weights, block[1])
            highest = raised
            if step + 1 < group.size:
                block = group.shift(block)
        y = y / total[..., None]
        ctx.layout, ctx.group = layout, group
        ctx.save_for_backward(q, k, v, y, highest + total.log())
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, y, level = ctx.saved_tensors
        group = ctx.group
        scale = 1 / math.sqrt(q.shape[-1])
        along = (gradient * y).sum(-1)
        for_q, block = torch.zeros_like(q), torch.stack([k, v, torch.zeros_like(k), torch.zeros_like(v)])
        for step in range(group.size):
            weights = torch.exp(_scores(q, block[0], ctx.layout, group, step) - level[..., None])
            slope = weights * (torch.einsum("bnksd,btkd->bnkst", gradient, block[1]) - along[..., None]) * scale
            for_q = for_q + torch.einsum("bnkst,btkd->bnksd", slope, block[0])
            for_k = block[2] + torch.einsum("bnkst,bnksd->btkd", slope, q)
            for_v = block[3] + torch.einsum("bnkst,bnksd->btkd", weights, gradient)
            block = torch.stack([block[0], block[1], for_k, for_v])
            if step + 1 < group.size:
                block = group.shift(block)
        for_k, for_v = group.shift(block[2:])  # home again
        return for_q, for_k, for_v, None, None


def _scores(q: Tensor, k: Tensor, layout: ShardLayout, group: SequenceGroup, step: int) -> Tensor:
    """q·k/√d with the block that has come `step` places around, −∞ where a key is later or none."""
    origin = (group.rank - step) % group.size
    own, other = layout.columns(group.rank).to(q.device), layout.columns(origin).to(q.device)
    seen = pad(other <= own[:, None], (0, layout.most_tokens - len(other)))  # (n, most)
    scores = torch.einsum("bnksd,btkd->bnkst", q, k) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~seen[None, :, None, None], -torch.inf)
