"""Rotations of the residual stream and of the values of each head (QuaRot, Ashkboos et al. 2024)."""

from __future__ import annotations

import torch

from likely.compression.architecture import DecoderBlock, DecoderMap
from likely.compression.transforms.scaling import rewrite
from likely.errors import CapabilityError

_TOLERANCE = 1e-6


def check_rotatable(decoder: DecoderMap) -> None:
    """CapabilityError where norms stand before the addition to the stream (Gemma): they do not commute with R."""
    if any(block.after_attention is not None or block.after_mlp is not None for block in decoder.blocks):
        raise CapabilityError(
            f"{type(decoder.module).__name__} has norms between its matrices and the residual stream, which do not "
            "commute with a rotation: choose a method without one (rtn, gptq, awq, smoothquant)"
        )


@torch.no_grad()
def rotate_residual(decoder: DecoderMap, rotation: torch.Tensor) -> None:
    """Every state x becomes Rᵀx, R (D, D) orthogonal: what reads it becomes W R, what writes it Rᵀ W.

    Norms must multiply by 1 (`fold_norms`), since only then do they commute with R.
    """
    check_rotatable(decoder)
    norms = [norm for block in decoder.blocks for norm in (block.input_norm, block.mlp_norm)]
    if any((decoder.norm_scale(norm) - 1).abs().max() > _TOLERANCE for norm in [*norms, decoder.final_norm]):
        raise ValueError("norms still have weights: fold_norms first")
    rotation = rotation.double()
    decoder.embedding.weight.copy_(decoder.embedding.weight.double() @ rotation)
    if not decoder.tied:
        rewrite(decoder.head, lambda w: w @ rotation)
    for block in decoder.blocks:
        for linear in (block.q, block.k, block.v, block.gate, block.up):
            rewrite(linear, lambda w: w @ rotation)
        for linear in (block.o, block.down):
            rewrite(linear, lambda w: rotation.T @ w)
            if linear.bias is not None:
                linear.bias.copy_(rotation.T @ linear.bias.double())


@torch.no_grad()
def rotate_values(decoder: DecoderMap, block: DecoderBlock, rotation: torch.Tensor) -> None:
    """The values of each head become Rᵀv, R (head_dim, head_dim) orthogonal: rows of v, columns of o."""
    rotation, size = rotation.double(), decoder.head_dim
    rewrite(block.v, lambda w: (rotation.T @ w.reshape(-1, size, w.shape[1])).reshape(w.shape))
    if block.v.bias is not None:
        block.v.bias.copy_((block.v.bias.double().reshape(-1, size) @ rotation).reshape(-1))
    rewrite(block.o, lambda w: (w.reshape(len(w), -1, size) @ rotation).reshape(w.shape))
