"""Scales and orders of channels, moved from one matrix into the next: logits stay as they are.

All of these change the decoder's module in place, in its own precision, computed in fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch.nn import Linear

from likely.compression.architecture import DecoderBlock, DecoderMap
from likely.errors import ModelError
from likely.runtimes.protocol import IntArray

NORM_FED: dict[str, tuple[str, ...]] = {"attention": ("q", "k", "v"), "mlp": ("gate", "up")}
OutlierPlace = Literal["norms", "keys", "neurons"]


def norm_of(block: DecoderBlock, place: str) -> torch.nn.Module:
    """The norm whose output the matrices `NORM_FED[place]` of a block read."""
    return block.input_norm if place == "attention" else block.mlp_norm


@torch.no_grad()
def rewrite(linear: Linear, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace a weight (out, in) by a function of it, computed in fp64."""
    linear.weight.copy_(change(linear.weight.double()))


@torch.no_grad()
def scale_rows(linear: Linear, factors: torch.Tensor) -> None:
    """Multiply the outputs of a matrix by (out,) factors, bias included."""
    rewrite(linear, lambda w: w * factors[:, None].double())
    if linear.bias is not None:
        linear.bias.copy_(linear.bias.double() * factors.double())


def scale_columns(linear: Linear, factors: torch.Tensor) -> None:
    """Let a matrix expect its inputs divided by (in,) factors."""
    rewrite(linear, lambda w: w * factors.double())


def scale_norm(decoder: DecoderMap, norm: torch.nn.Module, consumers: Iterable[Linear], scale: torch.Tensor) -> None:
    """Divide a norm's output by scale (D,), and make up for it in everything that reads it."""
    decoder.set_norm_scale(norm, decoder.norm_scale(norm).double() / scale.double())
    for linear in consumers:
        scale_columns(linear, scale)


def scale_neurons(block: DecoderBlock, scale: torch.Tensor) -> None:
    """Divide the inputs of down by scale (neurons,): rows of up, columns of down."""
    scale_rows(block.up, 1 / scale)
    scale_columns(block.down, scale)


def scale_values(decoder: DecoderMap, block: DecoderBlock, scale: torch.Tensor) -> None:
    """Divide the values by scale (kv heads · head_dim,): rows of v; columns of o, equal for the heads of a group."""
    scale_rows(block.v, 1 / scale)
    scale_columns(block.o, repeat_heads(decoder, scale))


def repeat_heads(decoder: DecoderMap, values: torch.Tensor) -> torch.Tensor:
    """(heads · head_dim,) from (kv heads · head_dim,): every query head as its group's."""
    groups = decoder.heads // decoder.kv_heads
    return values.reshape(decoder.kv_heads, decoder.head_dim).repeat_interleave(groups, dim=0).reshape(-1)


def untie_head(decoder: DecoderMap) -> DecoderMap:
    """The same decoder with a head of its own, so that head and embedding can be changed apart."""
    if not decoder.tied:
        return decoder
    decoder.head.weight = torch.nn.Parameter(decoder.embedding.weight.detach().clone(), requires_grad=False)
    decoder.module.config.tie_word_embeddings = False
    return DecoderMap.of(decoder.module)


def fold_norms(decoder: DecoderMap) -> DecoderMap:
    """Move the scale of every norm into the matrices that read it: norms multiply by 1 afterwards, the head is untied.

    Norms behind attention or MLP (Gemma) and those of queries and keys stay as they are.
    """
    decoder = untie_head(decoder)
    for block in decoder.blocks:
        for place, parts in NORM_FED.items():
            norm = norm_of(block, place)
            scale_norm(decoder, norm, [block.linears()[p] for p in parts], decoder.norm_scale(norm).detach().clone())
    scale_norm(decoder, decoder.final_norm, [decoder.head], decoder.norm_scale(decoder.final_norm).detach().clone())
    return decoder


def permute_neurons(block: DecoderBlock, order: torch.Tensor) -> None:
    """Another order of the MLP's neurons: rows of gate and up, columns of down."""
    order = _permutation(order, block.down.in_features)
    for linear in (block.gate, block.up):
        _permute_rows(linear, order)
    rewrite(block.down, lambda w: w[:, order])


def permute_heads(decoder: DecoderMap, block: DecoderBlock, order: torch.Tensor) -> None:
    """Another order of the key-value groups, each with its query heads: rows of q, k, v, columns of o."""
    order = _permutation(order, decoder.kv_heads)
    size, groups = decoder.head_dim, decoder.heads // decoder.kv_heads

    def channels(width: int) -> torch.Tensor:
        return (order[:, None] * width + torch.arange(width)).reshape(-1)

    _permute_rows(block.q, channels(groups * size))
    for linear in (block.k, block.v):
        _permute_rows(linear, channels(size))
    rewrite(block.o, lambda w: w[:, channels(groups * size)])


def split_channels(weights: torch.Tensor, copies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (out, Σ m_j) with input j in m_j equal shares, and the index (Σ m_j,) of the input that each reads."""
    index = torch.arange(len(copies)).repeat_interleave(copies)
    return (weights / copies)[:, index], index


def inject_outliers(
    decoder: DecoderMap, *, channels: int = 6, beta: float = 50.0, seed: int = 0, layers: Iterable[int] | None = None,
    where: OutlierPlace = "norms", chosen: Mapping[int, IntArray] | None = None,
) -> dict[int, IntArray]:  # fmt: skip
    """Make some channels beta times as large, and what reads them as much smaller: outliers as old models have them.

    channels  of each layer, drawn with the seed;  chosen: layer -> channels instead
    where     "norms": outputs of both norms.  "keys": rotary pairs of each key head, then channels counts pairs.
              "neurons": inputs of down
    Returns the channels of each layer.
    """
    rng = np.random.default_rng(seed)
    widths = {"norms": decoder.embedding.embedding_dim, "keys": decoder.head_dim // 2,
              "neurons": decoder.blocks[0].down.in_features}  # fmt: skip
    found = {}
    for number in range(len(decoder.blocks)) if layers is None else layers:
        block = decoder.blocks[number]
        picks = rng.choice(widths[where], channels, replace=False) if chosen is None else np.asarray(chosen[number])
        factors = torch.ones(widths[where], dtype=torch.float64)
        factors[torch.from_numpy(picks)] = beta
        if where == "norms":
            for place, parts in NORM_FED.items():
                scale_norm(decoder, norm_of(block, place), [block.linears()[p] for p in parts], 1 / factors)
        elif where == "neurons":
            scale_neurons(block, 1 / factors)
        else:
            if block.k_norm is not None:
                raise ModelError("keys of this model are normalised: outliers in their rows would not last")
            pairs = torch.cat([factors, factors])  # channels i and i + head_dim/2 are rotated together
            scale_rows(block.k, pairs.repeat(decoder.kv_heads))
            scale_rows(block.q, 1 / pairs.repeat(decoder.heads))
        found[number] = np.sort(picks)
    return found


@torch.no_grad()
def logits_of(module: torch.nn.Module, ids: IntArray) -> torch.Tensor:
    """(N, T, V) logits of token ids (N, T), to `verify` a rewrite with."""
    rows: torch.Tensor = module(input_ids=torch.from_numpy(np.ascontiguousarray(ids)), use_cache=False).logits
    return rows.float()


def verify(before: torch.Tensor, after: torch.nn.Module, ids: IntArray, *, tolerance: float = 1e-4) -> float:
    """Largest difference of the logits, as a share of the largest of `before` (N, T, V); ModelError above tolerance."""
    found = float((logits_of(after, ids) - before).abs().max() / before.abs().max())
    if not found <= tolerance:
        raise ModelError(f"a rewrite changed the logits by {found:.2g} of their range (allowed: {tolerance:g})")
    return found


@torch.no_grad()
def _permute_rows(linear: Linear, order: torch.Tensor) -> None:
    rewrite(linear, lambda w: w[order])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[order])


def _permutation(order: torch.Tensor, width: int) -> torch.Tensor:
    if sorted(order.tolist()) != list(range(width)):
        raise ValueError(f"an order of {width} must hold each number below it once, got {len(order)} numbers")
    return order
