"""A GGUF file as a transformers module: weights dequantised one by one, straight to where they stay.

Architectures are listed here once their logits have been compared with llama.cpp's on the same file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from likely.errors import ModelError, missing_extra
from likely.formats.gguf import GgufHeader, TensorInfo, read_header

_CHUNK_VALUES = 1 << 22  # values dequantised at one time: bounds the memory beside the weights

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1 and later: divides each rotary frequency


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
    try:
        return _load(header, Path(path), dtype, device)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _load(header: GgufHeader, path: Path, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = _config(header)
    with init_empty_weights(include_buffers=False):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    missing = dict(module.named_parameters())
    if config.tie_word_embeddings:
        missing.pop("lm_head.weight", None)
    with path.open("rb") as file:
        _fill(module, missing, header, config, file, device)
    if missing:
        raise ModelError(f"the file has no weights for {', '.join(sorted(missing)[:3])}: {_ELSEWHERE}")
    module.tie_weights()
    return module.to(device).eval()


def _fill(
    module: torch.nn.Module,
    missing: dict[str, torch.nn.Parameter],
    header: GgufHeader,
    config: Any,
    file: BinaryIO,
    device: torch.device,
) -> None:
    """Give the module its weights; what is found leaves `missing`."""
    for tensor in header.tensors:
        if tensor.name == ROPE_FACTORS:
            _divide_frequencies(module, _read(file, header, tensor, torch.float32, None))
            continue
        name = _parameter_name(tensor.name, header.architecture.startswith("gemma"))
        if name is None or name not in missing:
            raise ModelError(f'tensor "{tensor.name}" has no place in {type(module).__name__}: {_ELSEWHERE}')
        empty = missing.pop(name)
        if tensor.shape != tuple(empty.shape):
            raise ModelError(f'tensor "{tensor.name}" has shape {tensor.shape}, expected {tuple(empty.shape)}')
        values = _read(file, header, tensor, empty.dtype, _change(header, tensor.name, config))
        owner, leaf = name.rsplit(".", 1)
        setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(values.to(device)))


_ELSEWHERE = "use runtime='llamacpp'"


def _config(header: GgufHeader) -> Any:
    """The transformers configuration that the header describes."""
    architecture = header.architecture
    if architecture not in _CONFIGS:
        raise ModelError(
            f"architecture {architecture} is not read as a torch module ({', '.join(_CONFIGS)} are): {_ELSEWHERE}"
        )
    for key in ("expert_count", "attention.scale", "logit_scale"):
        if header.hparam(key):
            raise ModelError(f"{architecture}.{key} is not read as a torch module: {_ELSEWHERE}")
    try:
        return _CONFIGS[architecture](header)
    except KeyError as error:
        raise ModelError(f"the header has no {error.args[0]}") from None


def _needed(header: GgufHeader, name: str) -> Any:
    value = header.hparam(name)
    if value is None:
        raise KeyError(f"{header.architecture}.{name}")
    return value


def _shared_settings(header: GgufHeader) -> dict[str, Any]:
    heads = _needed(header, "attention.head_count")
    kv_heads = header.hparam("attention.head_count_kv", heads)
    if not isinstance(heads, int) or not isinstance(kv_heads, int):
        raise ModelError(f"{header.architecture}: a number of heads per layer is not read as a torch module")
    hidden = _needed(header, "embedding_length")
    names = {t.name: t.shape for t in header.tensors}
    if "token_embd.weight" not in names:
        raise KeyError("token_embd.weight")
    ids = {kind: header.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "padding")}
    return {
        "vocab_size": names["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": _needed(header, "feed_forward_length"),
        "num_hidden_layers": _needed(header, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": header.hparam("attention.key_length") or hidden // heads,
        "max_position_embeddings": _needed(header, "context_length"),
        "rms_norm_eps": _needed(header, "attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["padding"],
    }


def _rope(header: GgufHeader, head_dim: int, default_theta: float = 10000.0) -> dict[str, Any]:
    """Rotary parameters of the layers that see everything."""
    rotary = header.hparam("rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise ModelError(f"{header.architecture}: only {rotary} of {head_dim} dimensions rotate: {_ELSEWHERE}")
    theta = header.hparam("rope.freq_base", default_theta)
    factor = header.hparam("rope.scaling.factor", header.hparam("rope.scale_linear", 1.0))
    kind = header.hparam("rope.scaling.type", "linear" if factor != 1 else "none")
    if kind == "none" or (kind == "linear" and factor == 1):
        return {"rope_type": "default", "rope_theta": theta}
    if kind != "linear":
        raise ModelError(f"{header.architecture}: rotary scaling of type {kind} is not read here: {_ELSEWHERE}")
    return {"rope_type": "linear", "factor": factor, "rope_theta": theta}


def _llama(header: GgufHeader) -> Any:
    from transformers import LlamaConfig

    settings = _shared_settings(header)
    biased = any(t.name.endswith("attn_q.bias") for t in header.tensors)
    return LlamaConfig(**settings, rope_parameters=_rope(header, settings["head_dim"]), attention_bias=biased)


def _qwen2(header: GgufHeader) -> Any:
    from transformers import Qwen2Config

    settings = _shared_settings(header)
    return Qwen2Config(**settings, rope_parameters=_rope(header, settings["head_dim"]))


def _qwen3(header: GgufHeader) -> Any:
    from transformers import Qwen3Config

    settings = _shared_settings(header)
    return Qwen3Config(**settings, rope_parameters=_rope(header, settings["head_dim"]))


def _query_scalar(header: GgufHeader, settings: dict[str, Any], layers_of_27b: int) -> float:
    """Queries are divided by its root; the two 27B models alone scale by the mean width of a head."""
    if settings["num_hidden_layers"] == layers_of_27b:
        return settings["hidden_size"] / settings["num_attention_heads"]
    return settings["head_dim"]


def _gemma2(header: GgufHeader) -> Any:
    from transformers import Gemma2Config

    settings = _shared_settings(header)
    return Gemma2Config(
        **settings,
        rope_parameters=_rope(header, settings["head_dim"]),
        sliding_window=header.hparam("attention.sliding_window", 4096),
        query_pre_attn_scalar=_query_scalar(header, settings, 46),
        attn_logit_softcapping=header.hparam("attn_logit_softcapping", 50.0),
        final_logit_softcapping=header.hparam("final_logit_softcapping", 30.0),
    )


def _gemma3(header: GgufHeader) -> Any:
    from transformers import Gemma3TextConfig

    settings = _shared_settings(header)
    pattern = header.hparam("attention.sliding_window_pattern", 6)
    if isinstance(pattern, int):
        sliding = [bool((i + 1) % pattern) for i in range(settings["num_hidden_layers"])]
    else:
        sliding = [bool(flag) for flag in pattern]
    return Gemma3TextConfig(
        **settings,
        rope_parameters={
            "full_attention": _rope(header, settings["head_dim"], 1_000_000.0),
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": header.hparam("rope.freq_base_swa", 10000.0),
            },
        },
        layer_types=["sliding_attention" if s else "full_attention" for s in sliding],
        sliding_window=_needed(header, "attention.sliding_window"),
        query_pre_attn_scalar=_query_scalar(header, settings, 62),
        final_logit_softcapping=header.hparam("final_logit_softcapping"),
    )


_CONFIGS: dict[str, Callable[[GgufHeader], Any]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}


def _parameter_name(name: str, gemma: bool) -> str | None:
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        inner = (_GEMMA_LAYER if gemma else _LAYER).get(part)
        return None if inner is None else f"model.layers.{layer}.{inner}.{kind}"
    part, _, kind = name.rpartition(".")
    return f"{_OUTER[part]}.{kind}" if part in _OUTER else None


def _change(header: GgufHeader, name: str, config: Any) -> Callable[[np.ndarray], np.ndarray] | None:
    """What undoes the conversion to GGUF: Gemma's norms lose the 1 that was added, Llama's heads their interleaving."""
    if header.architecture.startswith("gemma"):
        return (lambda weights: weights - 1) if name.endswith("norm.weight") else None
    if header.architecture == "llama":
        if ".attn_q." in name:
            return lambda weights: _halves_from_pairs(weights, config.num_attention_heads)
        if ".attn_k." in name:
            return lambda weights: _halves_from_pairs(weights, config.num_key_value_heads)
    return None


def _halves_from_pairs(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * D, ...): llama.cpp rotates neighbours (0, 1), (2, 3) ..; transformers (0, D/2), (1, D/2 + 1) .."""
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _read(
    file: BinaryIO,
    header: GgufHeader,
    tensor: TensorInfo,
    dtype: torch.dtype,
    change: Callable[[np.ndarray], np.ndarray] | None,
) -> torch.Tensor:
    """A tensor in `dtype`; a change needs it whole, else it is dequantised a few rows at a time."""
    if change is not None:
        whole = np.concatenate(list(_chunks(file, header, tensor))).reshape(tensor.shape)
        return torch.from_numpy(np.ascontiguousarray(change(whole))).to(dtype)
    out = torch.empty(tensor.size, dtype=dtype)
    start = 0
    for chunk in _chunks(file, header, tensor):
        out[start : start + chunk.size] = torch.from_numpy(chunk)
        start += chunk.size
    return out.view(tensor.shape)


def _chunks(file: BinaryIO, header: GgufHeader, tensor: TensorInfo) -> Iterator[np.ndarray]:
    """The tensor's values in order, as flat fp32 arrays. The file is read, not mapped: mapped pages count as ours."""
    from gguf import GGMLQuantizationType, dequantize

    width = tensor.shape[-1]
    rows = tensor.size // width
    row_bytes = tensor.nbytes // rows
    step = max(1, _CHUNK_VALUES // width)
    file.seek(header.data_offset + tensor.offset)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        encoded = np.frombuffer(bytearray(file.read(count * row_bytes)), np.uint8).reshape(count, row_bytes)
        try:
            values = dequantize(encoded, GGMLQuantizationType[tensor.type])
        except (NotImplementedError, KeyError):
            raise ModelError(f'tensor "{tensor.name}" has type {tensor.type}, not read here: {_ELSEWHERE}') from None
        yield np.asarray(values, np.float32).reshape(-1)


def _divide_frequencies(module: torch.nn.Module, factors: torch.Tensor) -> None:
    rotary = module.model.rotary_emb
    if factors.shape != rotary.inv_freq.shape:
        raise ModelError(f'tensor "{ROPE_FACTORS}" has shape {tuple(factors.shape)}: {_ELSEWHERE}')
    for name in ("inv_freq", "original_inv_freq"):
        getattr(rotary, name).div_(factors)
