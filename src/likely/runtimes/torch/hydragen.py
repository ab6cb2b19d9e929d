"""Attention in parts that are merged exactly, so that keys which several sequences share are read once (Hydragen).

Softmax over all keys is a weighted mean of the softmax over parts of them; the weights are the exponentials of each
part's log-sum-exp (LSE). Keys that B sequences share then meet the queries of all B in one matrix product. Juravsky et
al. 2024, arXiv:2402.05099.

Shapes: B sequences, T queries and S keys of each, H query heads, H_kv key heads, a divisor of H, D and D_v head sizes.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import torch

AttentionKernel = Literal["auto", "flash", "matmul"]


def attention_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    method: AttentionKernel = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scores) value, and ln Σ exp(scores) over the keys that a query sees.

    query    (B, T, H, D);  key (B, S, H_kv, D);  value (B, S, H_kv, D_v)
    causal   the queries are those of the last T keys: query t sees keys up to S - T + t
    mask     (B, T, S) bool: which keys each query may see
    lengths  (B,) of the keys that count, the first ones; `causal` counts from their end
    window   with `causal`: a query sees the last `window` keys up to its own
    scale    of the scores; default: 1/√D         softcap  c tanh(scores / c)
    method   "flash": torch's operator for CPUs; "matmul": all scores in fp32, with gradients; "auto": flash if possible
    returns  (B, T, H, D_v) in the query's dtype, and the LSE (B, T, H) in fp32 (fp64 of fp64), natural logarithm of the
             scaled scores.  A query that sees no key gets 0 and -inf.  ValueError for shapes that do not fit
    """
    _check_attention(query, key, value, mask, lengths, window if causal else None)
    if window is not None and not causal:
        raise ValueError(f"window={window} counts from a query's own key: give causal=True, or a mask")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be > 0, got {softcap}")
    b, t, heads, width = query.shape
    s, h_kv = key.shape[1:3]
    scale = width**-0.5 if scale is None else scale
    if s == 0 or b == 0 or t == 0:  # the operator divides by these sizes
        lse = query.new_full((b, t, heads), -torch.inf, dtype=_precise(query.dtype))
        return query.new_zeros((b, t, heads, value.shape[-1])), lse
    visible = _visible(query, s, causal, mask, lengths, window)
    q, bias = fold_heads(query.transpose(1, 2), h_kv), None
    if visible is not None:
        visible = visible.repeat(1, heads // h_kv, 1)[:, None]  # (B, 1, share * T, S)
        bias = torch.zeros(visible.shape, dtype=query.dtype, device=query.device).masked_fill_(~visible, -torch.inf)
    out, lse = folded_attention(
        q, key.transpose(1, 2), value.transpose(1, 2), bias=bias, scale=scale, softcap=softcap, method=method
    )
    if visible is not None:
        blind = ~visible.any(-1)
        out, lse = out.masked_fill(blind[..., None], 0), lse.masked_fill(blind, -torch.inf)
    return unfold_heads(out, t).transpose(1, 2), unfold_heads(lse, t).transpose(1, 2)


def merge_attention(outs: Seq[torch.Tensor], lses: Seq[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over disjoint parts of the keys as attention over all of them.

    outs     each (..., D_v): softmax over one part times its values     lses  each (...): the part's LSE
    returns  o = Σ exp(ℓ_i) o_i / Σ exp(ℓ_i) and ℓ = ln Σ exp(ℓ_i), computed in fp32 at least, so that the result can be
             merged further, in any order and any tree.  A part that holds nothing has o_i = 0 and ℓ_i = -inf
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(
            f"attention is merged of one or more parts, each with its LSE; got {len(outs)} and {len(lses)}"
        )
    for n, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        if out.shape != outs[0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(
                f"part {n}: out {tuple(out.shape)} and LSE {tuple(lse.shape)} must be {tuple(outs[0].shape)} and the "
                "same without the last axis"
            )
    dtype = outs[0].dtype
    for out in outs[1:]:
        dtype = torch.promote_types(dtype, out.dtype)
    of_parts = torch.stack([lse.to(_precise(lse.dtype)) for lse in lses])
    total = of_parts.logsumexp(0)
    weights = of_parts.softmax(0).masked_fill(total == -torch.inf, 0)[..., None]
    merged = outs[0] * weights[0]
    for out, weight in zip(outs[1:], weights[1:], strict=True):
        merged = torch.addcmul(merged, out.to(merged.dtype), weight)
    return merged.to(dtype), total


@dataclass(frozen=True, eq=False)
class PrefixLevel:
    """Prefixes that all lie at one depth of a tree of texts: S of them, each read by the sequences below it.

    key      (S, P, H_kv, D), rotated at their own positions;  value (S, P, H_kv, D_v)
    parents  (B,) ints: below which of the S each sequence stands
    lengths  (S,) how many of the P keys count; None: all
    """

    key: torch.Tensor
    value: torch.Tensor
    parents: torch.Tensor
    lengths: torch.Tensor | None = None


def shared_prefix_attention(
    query: torch.Tensor,
    levels: Seq[PrefixLevel],
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of B sequences to their own keys and to the prefixes above them, each prefix read once.

    query (B, T, H, D);  key (B, S, H_kv, D), value (B, S, H_kv, D_v): the sequences' own, after all prefixes, with
    `lengths` and `causal` as in `attention_with_lse`.  Every query sees the whole of its prefixes: there is no window.
    Equals attention over the concatenation, see `merge_attention`; returns out (B, T, H, D_v) and the LSE (B, T, H).
    ValueError names the level that does not fit.
    """
    for n, level in enumerate(levels):
        _check_level(n, level, query)
    out, lse = attention_with_lse(query, key, value, causal=causal, lengths=lengths, scale=scale, softcap=softcap)
    t, heads, width = query.shape[1:]
    scale = width**-0.5 if scale is None else scale
    outs, lses = [out.to(_precise(out.dtype))], [lse]
    for level in levels:
        outs.append(torch.zeros_like(outs[0]))
        lses.append(torch.full_like(lse, -torch.inf))
        for n in range(len(level.key)):
            length = level.key.shape[1] if level.lengths is None else int(level.lengths[n])
            below = (level.parents == n).nonzero().flatten()
            if not length or not len(below):
                continue
            part, part_lse = attend_to_all(
                query[below].flatten(0, 1), level.key[n, :length], level.value[n, :length], scale=scale, softcap=softcap
            )
            outs[-1][below] = part.view(len(below), t, heads, -1).to(outs[0].dtype)
            lses[-1][below] = part_lse.view(len(below), t, heads)
    merged, lse = merge_attention(outs, lses)
    return merged.to(out.dtype), lse


def attend_to_all(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """query (N, H, D) sees all of key (P, H_kv, D) and value (P, H_kv, D_v), P > 0 -> (N, H, D_v), LSE (N, H)."""
    folded = fold_heads(query.transpose(0, 1)[None], key.shape[1])
    found = folded_attention(
        folded, key.transpose(0, 1)[None], value.transpose(0, 1)[None], scale=scale, softcap=softcap
    )
    out, lse = (unfold_heads(part, len(query))[0].transpose(0, 1) for part in found)
    return out, lse


def fold_heads(query: torch.Tensor, h_kv: int) -> torch.Tensor:
    """(B, H, T, D) -> (B, H_kv, share * T, D): heads that share a key head become further queries of it."""
    b, heads, t, width = query.shape
    return query.reshape(b, h_kv, heads // h_kv * t, width)


def unfold_heads(folded: torch.Tensor, t: int) -> torch.Tensor:
    """(B, H_kv, share * T, ...) -> (B, H, T, ...)."""
    b, h_kv, rows = folded.shape[:3]
    return folded.reshape(b, h_kv * rows // t, t, *folded.shape[3:])


def folded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    causal: bool = False,
    scale: float,
    softcap: float | None = None,
    method: AttentionKernel = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """query (B, H, T, D), key (B, H, S, D), value (B, H, S, D_v), bias (B, 1, T, S) -> (B, H, T, D_v), LSE (B, H, T).

    Nothing is checked: there are keys, and each query sees one.  causal: as of SDPA, which needs T = S here.
    """
    can = _flash_can(query, value, softcap)
    if method == "flash" and not can:
        raise ValueError(
            "the flash operator is for CPUs, without gradients, softcap or values of another width than keys: "
            'use method="auto"'
        )
    if can and method != "matmul":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse
    scores = torch.matmul(query, key.transpose(-1, -2)).to(_precise(query.dtype)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    return torch.matmul(weights.to(value.dtype), value), lse


def _flash_can(query: torch.Tensor, value: torch.Tensor, softcap: float | None) -> bool:
    return (
        query.device.type == "cpu"
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
        and softcap is None
        and query.shape[-1] == value.shape[-1]
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        and not (torch.is_grad_enabled() and (query.requires_grad or value.requires_grad))
    )


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _visible(
    query: torch.Tensor,
    s: int,
    causal: bool,
    mask: torch.Tensor | None,
    lengths: torch.Tensor | None,
    window: int | None,
) -> torch.Tensor | None:
    """(B, T, S) bool; None: everything is seen."""
    if not causal and mask is None and lengths is None:
        return None
    b, t = query.shape[:2]
    columns = torch.arange(s, device=query.device)
    ends = torch.full((b,), s, device=query.device) if lengths is None else lengths.to(query.device)
    seen = (columns < ends[:, None])[:, None].expand(b, t, s)
    if causal:
        own = ends[:, None] - t + torch.arange(t, device=query.device)  # (B, T) the key of each query
        seen = seen & (columns <= own[..., None])
        if window is not None:
            seen = seen & (columns > own[..., None] - window)
    return seen if mask is None else seen & mask


def _check_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor | None,
    window: int | None,
) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(f"attention needs (B, T, H, D), (B, S, H_kv, D) and (B, S, H_kv, D_v); got {shapes}")
    b, t, heads, width = query.shape
    if key.shape[0] != b or key.shape[3] != width or key.shape[:3] != value.shape[:3] or heads % key.shape[2]:
        raise ValueError(
            f"key and value must be (B, S, H_kv, D), B and D of the query, H_kv a divisor of H; got {shapes}"
        )
    if mask is not None and (mask.shape != (b, t, key.shape[1]) or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool (B, T, S) = {(b, t, key.shape[1])}, got {mask.dtype} {tuple(mask.shape)}")
    if lengths is not None:
        _check_lengths(lengths, b, key.shape[1], "")
    if window is not None and window < 1:
        raise ValueError(f"window must be 1 or more, got {window}")


def _check_lengths(lengths: torch.Tensor, n: int, most: int, where: str) -> None:
    if lengths.shape != (n,) or (n and (int(lengths.min()) < 0 or int(lengths.max()) > most)):
        raise ValueError(f"{where}lengths must be {n} numbers from 0 to {most}, got {lengths.tolist()}")


def _check_level(n: int, level: PrefixLevel, query: torch.Tensor) -> None:
    key, value, where = level.key, level.value, f"level {n}: "
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if key.dim() != 4 or value.dim() != 4 or query.dim() != 4 or key.shape[:3] != value.shape[:3]:
        raise ValueError(f"{where}key must be (S, P, H_kv, D) and value (S, P, H_kv, D_v); got {shapes}")
    if key.shape[3] != query.shape[3] or query.shape[2] % key.shape[2]:
        raise ValueError(f"{where}D must be that of the query, H_kv a divisor of H; got {shapes}")
    parents = level.parents
    known = parents.shape == query.shape[:1]
    if not known or (len(parents) and not 0 <= int(parents.min()) <= int(parents.max()) < len(key)):
        raise ValueError(
            f"{where}parents must be one of its {len(key)} prefixes for each of {len(query)} sequences, "
            f"got {parents.tolist()}"
        )
    if level.lengths is not None:
        _check_lengths(level.lengths, len(key), key.shape[1], where)
