"""A GGUF file as a transformers module: weights dequantised one by one, straight to where they stay.

Architectures are those of `formats.families`, each compared with llama.cpp's logits on the same file.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from likely.errors import ModelError, missing_extra
from likely.formats.families import ROPE_FACTORS, FloatArray, config_from_header
from likely.formats.gguf import GgufHeader, read_header
from likely.formats.weights import Weight, weights_of_gguf
from likely.runtimes.machine import check_weights_fit

_ELSEWHERE = "use runtime='llamacpp'"


def load_gguf(path: str | Path, *, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The model of a GGUF file, in evaluation mode.

    Memory beside the weights: 16 MiB and one matrix. Raises ModelError for an architecture or a setting that would be
    read wrongly, and for tensors that do not fit.
    """
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "transformers", "torch") from None

    header = read_header(path)
    if device.type == "cpu":
        check_weights_fit(
            path, sum(math.prod(tensor.shape) for tensor in header.tensors) * dtype.itemsize,
            "a dtype of fewer bits, or runtime='native'",
        )  # fmt: skip
    try:
        return _load(header, Path(path), dtype, device)
    except ModelError as error:
        raise ModelError(f"{path}: {error}: {_ELSEWHERE}") from None


def _load(header: GgufHeader, path: Path, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    weights, factors = weights_of_gguf(path, header)
    config = AutoConfig.for_model(**config_from_header(header))
    with init_empty_weights(include_buffers=False):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    missing = dict(module.named_parameters())
    if config.tie_word_embeddings:
        missing.pop("lm_head.weight", None)
    for name, weight in weights.items():
        if (empty := missing.pop(name, None)) is None:
            raise ModelError(f'tensor "{name}" has no place in {type(module).__name__}')
        if weight.stored.shape != tuple(empty.shape):
            raise ModelError(f'tensor "{name}" has shape {weight.stored.shape}, expected {tuple(empty.shape)}')
        owner, leaf = name.rsplit(".", 1)
        setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(_read(weight, empty.dtype).to(device)))
    if missing:
        raise ModelError(f"the file has no weights for {', '.join(sorted(missing)[:3])}")
    if factors is not None:
        _divide_frequencies(module, factors)
    module.tie_weights()
    return module.to(device).eval()


def _read(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in `dtype`, dequantised a few rows at a time."""
    out, start = torch.empty(weight.stored.shape, dtype=dtype), 0
    flat = out.view(-1)
    for values in weight.values():
        flat[start : start + values.size] = torch.from_numpy(values)
        start += values.size
    return out


def _divide_frequencies(module: torch.nn.Module, factors: FloatArray) -> None:
    """As Llama 3.1 and later do; the file keeps what divides each rotary frequency, not the rule that gave it."""
    rotary = module.model.rotary_emb
    if factors.shape != tuple(rotary.inv_freq.shape):
        raise ModelError(f'tensor "{ROPE_FACTORS}" has shape {factors.shape}')
    for name in ("inv_freq", "original_inv_freq"):
        getattr(rotary, name).div_(torch.from_numpy(factors))
