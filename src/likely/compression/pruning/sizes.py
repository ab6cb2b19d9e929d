"""What a decoder can lose: groups of heads and neurons, how many there are, and what each of them weighs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from likely.compression.architecture import DecoderBlock, DecoderMap
from likely.errors import ModelError


@dataclass(frozen=True)
class BlockSizes:
    """Of every block.  A group: one key-value head with the `heads_per_group` query heads that read it.

    loadable        how many groups a file may have for the engines to load it, ascending
    group_weights   rows of q, k and v and columns of o, with their biases
    neuron_weights  a row of gate and of up and a column of down, with their biases
    """

    layers: int
    hidden: int
    groups: int
    heads_per_group: int
    head_dim: int
    neurons: int
    group_weights: int
    neuron_weights: int
    loadable: tuple[int, ...]

    @classmethod
    def of(cls, decoder: DecoderMap) -> BlockSizes:
        """ModelError where layers differ, or a matrix is no plain one of floats."""
        first = decoder.blocks[0]
        for name, block, part, linear in decoder.linears():
            if type(linear) is not torch.nn.Linear or not linear.weight.is_floating_point():
                raise ModelError(f"{name} is quantised ({type(linear).__name__}): prune first, then quantise")
            if linear.weight.shape != first.linears()[part].weight.shape:
                raise ModelError(
                    f"layer {block.number} has other sizes than layer 0 ({name}): export the pruned model and load it"
                )
        groups, neurons = decoder.kv_heads, first.gate.out_features
        in_group = sum(m.weight.numel() for m in (first.q, first.k, first.v, first.o))
        in_group += sum(m.bias.numel() for m in (first.q, first.k, first.v) if m.bias is not None)
        in_neuron = sum(m.weight.numel() for m in (first.gate, first.up, first.down))
        in_neuron += sum(m.bias.numel() for m in (first.gate, first.up) if m.bias is not None)
        return cls(
            layers=len(decoder.blocks),
            hidden=first.q.in_features,
            groups=groups,
            heads_per_group=decoder.heads // groups,
            head_dim=decoder.head_dim,
            neurons=neurons,
            group_weights=in_group // groups,
            neuron_weights=in_neuron // neurons,
            loadable=tuple(n for n in range(1, groups + 1) if n == groups or heads_fit(decoder, n)),
        )

    @property
    def attention(self) -> int:
        """Weights of a layer's q, k, v and o."""
        return self.groups * self.group_weights

    @property
    def mlp(self) -> int:
        """Weights of a layer's gate, up and down."""
        return self.neurons * self.neuron_weights

    @property
    def weights(self) -> int:
        """Of all blocks' matrices: what a sparsity is a share of."""
        return self.layers * (self.attention + self.mlp)

    def loadable_groups(self, least: int) -> int:
        """The smallest count >= least that files can have."""
        return next(count for count in self.loadable if count >= least)


def heads_fit(decoder: DecoderMap, groups: int) -> bool:
    """Whether the engines load a model with so many groups of heads in each layer.

    transformers: the heads of a Llama or a Gemma divide the hidden size.  llama.cpp: those of a Qwen 2 fill it, and
    where a Gemma scales queries by its own number that is the hidden size over the number of heads.
    """
    config: Any = decoder.module.config
    heads, hidden = groups * (decoder.heads // decoder.kv_heads), config.hidden_size
    match config.model_type:
        case "qwen2":
            return bool(heads * decoder.head_dim == hidden)
        case "llama":
            return hidden % heads == 0
        case "gemma3_text":
            scaled = config.query_pre_attn_scalar
            return hidden % heads == 0 and scaled in (decoder.head_dim, hidden // heads)
    return True


def by_unit(
    decoder: DecoderMap, of_weight: Callable[[torch.nn.Parameter], torch.Tensor], sizes: BlockSizes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of a value per weight over each unit's weights, fp64: of groups (L, G) and of neurons (L, M)."""
    groups, neurons = [], []
    for block in decoder.blocks:
        heads = [_over(linear, of_weight, rows=True) for linear in (block.q, block.k, block.v)]
        heads.append(_over(block.o, of_weight, rows=False))
        groups.append(torch.stack([values.reshape(sizes.groups, -1).sum(dim=1) for values in heads]).sum(dim=0))
        mlp = [_over(block.gate, of_weight, rows=True), _over(block.up, of_weight, rows=True)]
        neurons.append(torch.stack([*mlp, _over(block.down, of_weight, rows=False)]).sum(dim=0))
    return torch.stack(groups), torch.stack(neurons)


def _over(
    linear: torch.nn.Linear, of_weight: Callable[[torch.nn.Parameter], torch.Tensor], *, rows: bool
) -> torch.Tensor:
    """Sums over each row with its bias, or over each column."""
    with torch.no_grad():
        total = of_weight(linear.weight).sum(dim=1 if rows else 0, dtype=torch.float64)
        if rows and linear.bias is not None:
            total += of_weight(linear.bias).double()
    return total


def unit_parameters(decoder: DecoderMap) -> list[torch.nn.Parameter]:
    """Every weight and bias that belongs to a unit."""
    found = []
    for block in decoder.blocks:
        for part, linear in block.linears().items():
            found.append(linear.weight)
            if linear.bias is not None and part not in ("o", "down"):
                found.append(linear.bias)
    return found


def take(linear: torch.nn.Linear, rows: torch.Tensor | None, columns: torch.Tensor | None) -> None:
    """Keep only these output rows (with their biases) and input columns of a matrix."""
    with torch.no_grad():
        weight = linear.weight if rows is None else linear.weight[rows]
        weight = weight if columns is None else weight[:, columns]
        linear.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=linear.weight.requires_grad)
        if rows is not None and linear.bias is not None:
            linear.bias = torch.nn.Parameter(linear.bias[rows].contiguous(), requires_grad=linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape


def take_units(block: DecoderBlock, sizes: BlockSizes, groups: Sequence[int], neurons: Sequence[int]) -> None:
    """Keep only these units of a block."""
    device = block.q.weight.device
    if len(groups) < sizes.groups:
        kept = torch.tensor(groups, device=device)[:, None]
        keys = (kept * sizes.head_dim + torch.arange(sizes.head_dim, device=device)).flatten()
        width = sizes.heads_per_group * sizes.head_dim
        queries = (kept * width + torch.arange(width, device=device)).flatten()
        take(block.q, queries, None)
        take(block.k, keys, None)
        take(block.v, keys, None)
        take(block.o, None, queries)
    if len(neurons) < sizes.neurons:
        some = torch.tensor(neurons, device=device)
        take(block.gate, some, None)
        take(block.up, some, None)
        take(block.down, None, some)
