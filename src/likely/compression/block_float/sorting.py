"""K-sort: an exact re-ordering of key channels, so that large ones share blocks with large ones.

Accurate Block Quantization in LLMs with Outliers, arXiv:2403.20137.  Queries and keys of a head are permuted alike, so
that q·k stays what it was; what changes is which channels share an exponent where keys are stored in blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from likely.compression.architecture import DecoderBlock, DecoderMap
from likely.compression.block_float.permutation import Order, check_order, partners
from likely.errors import CapabilityError

Layout = Literal["table", "gather", "pairs"]


@dataclass(frozen=True, eq=False)
class KSort:
    """One order of channels per layer and KV head.

    orders  per layer (H_kv, d)
    layout  "table": rows of W_q and W_k are permuted, and rotary embedding looks its partner up: no cost when running.
            "gather": weights stay, queries and keys are permuted after rotation.  "pairs": as table, orders keep pairs
    """

    orders: Sequence[Order]
    layout: Layout = "table"

    def apply(self, decoder: DecoderMap) -> None:
        """Change the module in place; its logits stay what they were.  CapabilityError where it was sorted before."""
        _check_rotary(decoder)
        if len(self.orders) != len(decoder.blocks):
            raise ValueError(f"orders of {len(self.orders)} layers do not fit {len(decoder.blocks)}")
        orders = [check_order(order, decoder.kv_heads, decoder.head_dim) for order in self.orders]
        for block, order in zip(decoder.blocks, orders, strict=True):
            attention: Any = block.module.self_attn
            tables: _Gathered | _Permuted
            if "forward" in attention.__dict__:
                raise CapabilityError("the keys of this model were sorted before: load it again")
            per_query = np.repeat(order, decoder.heads // decoder.kv_heads, axis=0)
            if self.layout == "gather":
                tables = _Gathered(_tensor(per_query, block), _tensor(order, block))
            else:
                _permute_rows(block.q, per_query)
                _permute_rows(block.k, order)
                tables = _Permuted.of(decoder, block, per_query, order)
            attention.forward = partial(_forward, attention, tables)


@dataclass(frozen=True, eq=False)
class VSort:
    """The same for values, which nothing rotates: rows of W_v and columns of W_o.  orders per layer (H_kv, d)."""

    orders: Sequence[Order]

    def apply(self, decoder: DecoderMap) -> None:
        """Change the module in place; its logits stay what they were."""
        if len(self.orders) != len(decoder.blocks):
            raise ValueError(f"orders of {len(self.orders)} layers do not fit {len(decoder.blocks)}")
        for block, order in zip(decoder.blocks, self.orders, strict=True):
            order = check_order(order, decoder.kv_heads, decoder.head_dim)
            _permute_rows(block.v, order)
            columns = _flat(np.repeat(order, decoder.heads // decoder.kv_heads, axis=0))
            with torch.no_grad():
                block.o.weight.copy_(block.o.weight[:, torch.from_numpy(columns).to(block.o.weight.device)])


@dataclass(frozen=True, eq=False)
class _Gathered:
    """Queries and keys in the usual rotation, then permuted."""

    query: torch.Tensor
    key: torch.Tensor

    def __call__(
        self, attention: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if getattr(attention, "q_norm", None) is not None:
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = _of_module(attention, "apply_rotary_pos_emb")(query, key, cos, sin)
        return _taken(query, self.query), _taken(key, self.key)


@dataclass(frozen=True, eq=False)
class _Permuted:
    """Rotation of queries and keys whose projections are permuted; with the heads' norms, where there are some.

    query, key  (H, d) order;  partner (H, d) and sign (H, 1, d) as in `partners`;  scale (H, 1, d) of a norm
    """

    query: _Rotation
    key: _Rotation

    @classmethod
    def of(cls, decoder: DecoderMap, block: DecoderBlock, per_query: Order, order: Order) -> _Permuted:
        return cls(
            _Rotation.of(decoder, block, per_query, block.q_norm), _Rotation.of(decoder, block, order, block.k_norm)
        )

    def __call__(
        self, attention: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.query(query, cos, sin), self.key(key, cos, sin)


@dataclass(frozen=True, eq=False)
class _Rotation:
    order: torch.Tensor
    partner: torch.Tensor
    sign: torch.Tensor
    scale: torch.Tensor | None = None
    eps: float = 0.0

    @classmethod
    def of(cls, decoder: DecoderMap, block: DecoderBlock, order: Order, norm: torch.nn.Module | None) -> _Rotation:
        partner, sign = partners(order)
        at = _tensor(order, block)
        found = cls(at, _tensor(partner, block), torch.from_numpy(sign).to(block.k.weight)[:, None])
        if norm is None:
            return found
        scale = decoder.norm_scale(norm).detach()[at][:, None]
        eps: float = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        return cls(at, found.partner, found.sign, scale, eps)

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x (B, H, T, d), permuted; cos, sin (B, T, d), usual."""
        if self.scale is not None:
            x = (
                torch.nn.functional.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
                .mul(self.scale.float())
                .to(x.dtype)
            )
        cos, sin = (table[..., self.order].transpose(1, 2) for table in (cos, sin))
        return x * cos + _taken(x, self.partner) * (self.sign * sin)


def _forward(
    attention: Any,
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    **others: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention of Llama, Qwen 2 and 3 and Gemma 3, with another rotation."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (projection(hidden_states).view(shape).transpose(1, 2) for projection in projections)
    query, key = rotate(attention, query, key, *position_embeddings)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, attention.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, _of_module(attention, "eager_attention_forward")
    )
    if hasattr(attention, "sliding_window"):
        others["sliding_window"] = attention.sliding_window
    dropout = attention.attention_dropout if attention.training else 0.0
    out, weights = attend(
        attention, query, key, value, attention_mask, dropout=dropout, scaling=attention.scaling, **others
    )
    return attention.o_proj(out.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


def _check_rotary(decoder: DecoderMap) -> None:
    """CapabilityError unless all channels of a head turn, in pairs (i, i + d/2)."""
    config: Any = decoder.module.config
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in parameters.values() if isinstance(part, dict)]
    share = min([float(part.get("partial_rotary_factor") or 1) for part in (parameters, *nested)])
    if share != 1 or decoder.head_dim % 2:
        raise CapabilityError(
            f"K-sort needs rotary embedding of whole heads in pairs (i, i + d/2); here {share:.0%} of "
            f"{decoder.head_dim} channels turn"
        )


def _of_module(attention: Any, name: str) -> Any:
    return getattr(sys.modules[type(attention).__module__], name)


def _taken(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, d) with channels order (H, d)."""
    return x.gather(-1, order[None, :, None].expand(x.shape))


def _flat(order: Order) -> Order:
    """Rows of a projection (H d,) for an order per head."""
    heads, width = order.shape
    return (order + np.arange(heads)[:, None] * width).ravel()


def _permute_rows(linear: torch.nn.Linear, order: Order) -> None:
    rows = torch.from_numpy(_flat(order)).to(linear.weight.device)
    with torch.no_grad():
        linear.weight.copy_(linear.weight[rows])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[rows])


def _tensor(order: Order, block: DecoderBlock) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(order)).to(block.k.weight.device)
