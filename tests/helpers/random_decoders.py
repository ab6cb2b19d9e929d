"""Tiny decoders whose norms and biases are not all ones and zeros, and windows for them."""

from __future__ import annotations

import numpy as np
import torch
from tiny_torch import VOCAB, tiny_module

from likely.compression.architecture import DecoderMap
from likely.compression.calibration_set import CalibrationSet

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")


def random_decoder(name: str = "llama", seed: int = 0) -> DecoderMap:
    module = tiny_module(name, seed=seed).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return DecoderMap.of(module)


def windows(count: int = 8, length: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCAB, (count, length))


def calibration(count: int = 8, length: int = 24, seed: int = 0) -> CalibrationSet:
    return CalibrationSet(windows(count, length, seed), "made up", "random ids", seed)
