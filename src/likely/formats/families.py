"""One model in two formats: GGUF metadata and tensor names, and the configuration and names of transformers.

Each family lists its names and settings; what differs in the numbers themselves is `Change`.  The torch runtime, the
native one and conversion all read GGUF files through this map.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import ModelError
from likely.formats.gguf import ArrayRef, GgufHeader
from likely.formats.writing import Typed, f32, u32

FloatArray = NDArray[np.float32]
Change = Callable[[FloatArray], FloatArray]
Metadata = dict[str, str | bool | Typed]

MOST_SIZE, MOST_LAYERS = 1 << 30, 1 << 16  # of what a configuration names
ROPE_NUMBERS = {  # what a rotation of this type must say
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_FACTORS = "rope_freqs.weight"
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Family:
    """One architecture in both formats. layer: GGUF part -> transformers part, inside a block."""

    gguf: str
    model_type: str
    class_name: str
    layer: dict[str, str]
    theta: float = 1e4  # of the rotation, where a file does not say it
    pairs_rotate: bool = False  # llama.cpp rotates neighbours here, transformers the two halves of a head
    norms_add_one: bool = False  # GGUF holds 1 + w, transformers w
    pattern: int = 0  # of so many layers the last one sees everything, the others slide; 0: all see everything
    wide_layers: int = (
        0  # the size, by its layers, whose queries are scaled by hidden_size / heads, not the head's width
    )


FAMILIES = (
    Family("llama", "llama", "LlamaForCausalLM", _LAYER, pairs_rotate=True),
    Family("qwen2", "qwen2", "Qwen2ForCausalLM", _LAYER),
    Family("qwen3", "qwen3", "Qwen3ForCausalLM", _LAYER | _QK_NORMS),
    Family(
        "gemma2", "gemma2", "Gemma2ForCausalLM", _LAYER | _GEMMA, norms_add_one=True, pattern=2, wide_layers=46
    ),
    Family(
        "gemma3", "gemma3_text", "Gemma3ForCausalLM", _LAYER | _QK_NORMS | _GEMMA, theta=1e6, norms_add_one=True,
        pattern=6, wide_layers=62,
    ),
)  # fmt: skip
_TO_GGUF = tuple(family for family in FAMILIES if family.gguf != "gemma2")


def family_of_header(header: GgufHeader) -> Family:
    for family in FAMILIES:
        if family.gguf == header.architecture:
            return family
    known = ", ".join(family.gguf for family in FAMILIES)
    raise ModelError(f'architecture "{header.architecture}" is known to llama.cpp alone (read here: {known})')


def family_of_config(config: dict[str, Any]) -> Family:
    for family in _TO_GGUF:
        if family.model_type == config.get("model_type"):
            return family
    known = ", ".join(family.model_type for family in _TO_GGUF)
    raise ModelError(f"model_type {config.get('model_type')!r} cannot become a GGUF file (can: {known})")


def folder_name(family: Family, name: str) -> str:
    """The transformers name of a GGUF tensor."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        block, part, kind = match.groups()
        if part in family.layer:
            return f"model.layers.{block}.{family.layer[part]}.{kind}"
    part, _, kind = name.rpartition(".")
    if part in _OUTER:
        return f"{_OUTER[part]}.{kind}"
    raise ModelError(f'tensor "{name}" has no counterpart in {family.class_name}')


def gguf_name(family: Family, name: str) -> str:
    """The GGUF name of a transformers tensor."""
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        block, part, kind = match.groups()
        for ours, theirs in family.layer.items():
            if theirs == part:
                return f"blk.{block}.{ours}.{kind}"
    part, _, kind = name.rpartition(".")
    for ours, theirs in _OUTER.items():
        if theirs == part:
            return f"{ours}.{kind}"
    raise ModelError(f'tensor "{name}" has no counterpart in the GGUF architecture "{family.gguf}"')


def change_to_folder(family: Family, name: str, heads: int, kv_heads: int) -> Change | None:
    """What turns the numbers of a GGUF tensor into those of the folder; None: nothing."""
    if family.norms_add_one and name.endswith("norm.weight"):
        return lambda w: w - np.float32(1)
    if family.pairs_rotate and (match := re.search(r"\.attn_([qk])\.", name)):
        return lambda w: _halves_from_pairs(w, heads if match[1] == "q" else kv_heads)
    return None


def change_to_gguf(family: Family, name: str, heads: int, kv_heads: int) -> Change | None:
    """The inverse of change_to_folder; `name` is the GGUF name."""
    if family.norms_add_one and name.endswith("norm.weight"):
        return lambda w: w + np.float32(1)
    if family.pairs_rotate and (match := re.search(r"\.attn_([qk])\.", name)):
        return lambda w: _pairs_from_halves(w, heads if match[1] == "q" else kv_heads)
    return None


def _halves_from_pairs(w: FloatArray, heads: int) -> FloatArray:
    """Rows (heads * D, ...) in the order 0, 2, 4 .. 1, 3, 5 .. of each head."""
    return w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def _pairs_from_halves(w: FloatArray, heads: int) -> FloatArray:
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


# --- settings: GGUF -> transformers ----------------------------------------------------------------------------------


def config_from_header(header: GgufHeader, rope_factors: FloatArray | None = None) -> dict[str, Any]:
    """The content of config.json, without dtype. rope_factors: the tensor rope_freqs.weight, if the file has one."""
    family = family_of_header(header)
    for key in ("expert_count", "attention.scale", "logit_scale", "embedding_scale", "residual_scale"):
        if header.hparam(key):
            raise ModelError(f"{header.architecture}.{key} has no counterpart in {family.class_name}")
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    if "token_embd.weight" not in shapes:
        raise ModelError('the tensor "token_embd.weight" is missing')
    (heads, kv_heads), hidden = head_counts(header), _int(header, "embedding_length")
    head_dim = header.hparam("attention.key_length") or hidden // heads
    if header.hparam("attention.value_length", head_dim) != head_dim:
        raise ModelError(f"{header.architecture}: keys and values of different width have no counterpart")
    if header.hparam("rope.dimension_count", head_dim) != head_dim:
        raise ModelError(f"{header.architecture}: heads that rotate only in part have no counterpart")
    theta = float(header.hparam("rope.freq_base", family.theta))
    scaling = _scaling_of_header(header, rope_factors, theta, head_dim)
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": _int(header, "feed_forward_length"),
        "num_hidden_layers": _layers(header),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": _int(header, "context_length"),
        "rms_norm_eps": shortest(header.hparam("attention.layer_norm_rms_epsilon", 1e-6)),
        "tie_word_embeddings": "output.weight" not in shapes,
        "hidden_act": "silu",
        "rope_theta": shortest(theta),
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": shortest(theta), **(scaling or {"rope_type": "default"})},
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": header.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    if family.gguf == "llama":
        config["attention_bias"] = any(name.endswith("attn_q.bias") for name in shapes)
    if family.pattern:
        config |= _gemma_config(family, header, config)
    if family.gguf == "gemma3":
        config |= _gemma3_config(header, config, scaling)
    return config


def _gemma_config(family: Family, header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    layers, name = config["num_hidden_layers"], "attention.sliding_window_pattern"
    slides = header.hparam(name)
    if isinstance(slides, ArrayRef):
        kinds = [_layer_type(bool(flag)) for flag in slides]
    else:
        kinds = layer_types(layers, _int(header, name, family.pattern))
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": _int(header, "attention.sliding_window", 4096 if family.gguf == "gemma2" else None),
        "layer_types": kinds,
        "query_pre_attn_scalar": _gemma_scalar(family, layers, config),
        "final_logit_softcapping": header.hparam("final_logit_softcapping", 30.0 if family.gguf == "gemma2" else None),
        "attn_logit_softcapping": header.hparam("attn_logit_softcapping", 50.0) if family.gguf == "gemma2" else None,
    }


def _gemma3_config(header: GgufHeader, config: dict[str, Any], scaling: dict[str, Any] | None) -> dict[str, Any]:
    local = shortest(header.hparam("rope.freq_base_swa", 1e4))
    pattern = header.hparam("attention.sliding_window_pattern", 6)
    return {
        "sliding_window_pattern": pattern if isinstance(pattern, int) else None,
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": {"rope_theta": config["rope_theta"], **(scaling or {"rope_type": "default"})},
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
    }


def layer_types(layers: int, pattern: int) -> list[str]:
    """Of every `pattern` layers the last one sees everything, the others slide."""
    return [_layer_type(bool((i + 1) % pattern)) for i in range(layers)]


def _layer_type(slides: bool) -> str:
    return "sliding_attention" if slides else "full_attention"


def _gemma_scalar(family: Family, layers: int, config: dict[str, Any]) -> int:
    """Queries are divided by its root."""
    if layers == family.wide_layers:
        return config["hidden_size"] // config["num_attention_heads"]
    return config["head_dim"]


def _scaling_of_header(
    header: GgufHeader, factors: FloatArray | None, theta: float, head_dim: int
) -> dict[str, Any] | None:
    if factors is not None:
        return _llama3_of_factors(factors, theta, head_dim)
    factor = header.hparam("rope.scaling.factor", header.hparam("rope.scale_linear", 1.0))
    kind = header.hparam("rope.scaling.type", "linear" if factor != 1 else "none")
    if kind == "none" or factor == 1:
        return None
    if kind != "linear":
        raise ModelError(f'rotary scaling of type "{kind}" is not converted (linear and llama3 are)')
    return {"rope_type": "linear", "factor": shortest(factor)}


def llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> FloatArray:
    """What divides each rotary frequency, (D/2,): 1 for short waves, `factor` for long ones, a ramp between.

    The rule of Llama 3.1's reference code; transformers calls it rope_type "llama3".
    """
    wave = 2 * np.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    old, low, high = (scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    smooth = np.clip((old / wave - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)


def _llama3_of_factors(factors: FloatArray, theta: float, head_dim: int) -> dict[str, Any] | None:
    """The settings that give these factors. The file keeps only the factors, so the published settings are tried."""
    if np.allclose(factors, 1):
        return None
    for factor in {8.0, 32.0, round(float(factors.max()), 3)}:
        settings = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        expected = llama3_factors(settings, theta, head_dim)
        if expected.shape == factors.shape and np.allclose(expected, factors, rtol=1e-5):
            return settings
    raise ModelError(f"{ROPE_FACTORS} follows no known rotary scaling (tried that of Llama 3.1 and 3.2)")


# --- settings: transformers -> GGUF ----------------------------------------------------------------------------------


def metadata_from_config(config: dict[str, Any]) -> tuple[Metadata, FloatArray | None]:
    """GGUF metadata of a config.json (without tokenizer), and the tensor rope_freqs.weight if it needs one."""
    family = family_of_config(config)
    hidden, heads = setting(config, "hidden_size"), setting(config, "num_attention_heads")
    layers = setting(config, "num_hidden_layers", most=MOST_LAYERS)
    head_dim = setting(config, "head_dim", hidden // heads)
    gemma = family.gguf == "gemma3"
    if config.get("use_sliding_window") or (not gemma and config.get("sliding_window") and family.gguf == "llama"):
        raise ModelError(f"sliding windows of {family.model_type} have no counterpart in GGUF")
    if not gemma and config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act {config['hidden_act']!r} has no counterpart in GGUF (silu has)")
    a = family.gguf
    metadata: Metadata = {
        "general.architecture": a,
        "general.type": "model",
        f"{a}.context_length": u32(setting(config, "max_position_embeddings")),
        f"{a}.embedding_length": u32(hidden),
        f"{a}.block_count": u32(layers),
        f"{a}.attention.layer_norm_rms_epsilon": f32(config.get("rms_norm_eps", 1e-6)),
        **block_sizes(config),
        f"{a}.vocab_size": u32(setting(config, "vocab_size")),
    }
    rope = rope_of_config(config, "full_attention" if gemma else None, family.theta)
    metadata[f"{a}.rope.freq_base"] = f32(rope["rope_theta"])
    factors = None
    match rope.get("rope_type", "default"):
        case "default":
            pass
        case "linear":
            metadata[f"{a}.rope.scaling.type"] = "linear"
            metadata[f"{a}.rope.scaling.factor"] = f32(rope["factor"])
        case "llama3":
            factors = llama3_factors(rope, rope["rope_theta"], head_dim)
        case kind:
            raise ModelError(f'rotary scaling of type "{kind}" is not converted (default, linear and llama3 are)')
    if gemma:
        metadata |= _gemma_metadata(config, layers, head_dim)
    return metadata, factors


def block_sizes(config: dict[str, Any]) -> Metadata:
    """How many heads and neurons a block has and how wide a head is: what pruning changes."""
    a, heads = family_of_config(config).gguf, setting(config, "num_attention_heads")
    head_dim = u32(setting(config, "head_dim", setting(config, "hidden_size") // heads))
    return {
        f"{a}.feed_forward_length": u32(setting(config, "intermediate_size")),
        f"{a}.attention.head_count": u32(heads),
        f"{a}.attention.head_count_kv": u32(setting(config, "num_key_value_heads", heads)),
        f"{a}.attention.key_length": head_dim,
        f"{a}.attention.value_length": head_dim,
        f"{a}.rope.dimension_count": head_dim,
    }


def _gemma_metadata(config: dict[str, Any], layers: int, head_dim: int) -> Metadata:
    family = family_of_config(config)
    if config.get("layer_types", usual := layer_types(layers, family.pattern)) != usual:
        raise ModelError("layer_types: llama.cpp takes only five sliding layers before each full one for Gemma 3")
    expected = _gemma_scalar(family, layers, config | {"head_dim": head_dim})
    if config.get("query_pre_attn_scalar", expected) != expected:
        raise ModelError(f"query_pre_attn_scalar must be {expected} in GGUF, got {config['query_pre_attn_scalar']}")
    if config.get("attn_logit_softcapping") or config.get("use_bidirectional_attention"):
        raise ModelError("attn_logit_softcapping and use_bidirectional_attention have no counterpart in GGUF")
    local = rope_of_config(config, "sliding_attention", 1e4, "rope_local_base_freq")
    if local.get("rope_type", "default") != "default":
        raise ModelError("rotary scaling of sliding layers has no counterpart in GGUF")
    found: Metadata = {
        "gemma3.attention.sliding_window": u32(setting(config, "sliding_window")),
        "gemma3.rope.freq_base_swa": f32(local["rope_theta"]),
    }
    if config.get("final_logit_softcapping"):
        found["gemma3.final_logit_softcapping"] = f32(config["final_logit_softcapping"])
    return found


def rope_of_config(
    config: dict[str, Any], layer_type: str | None, default: float, old_name: str = "rope_theta"
) -> dict[str, Any]:
    """Rotary settings in the words of transformers 5, from either generation's config."""
    rope = _object(config.get("rope_parameters"))
    if layer_type is not None:
        rope = _object(rope.get(layer_type))
    if not rope and layer_type != "sliding_attention":
        rope = _object(config.get("rope_scaling"))
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    theta = positive({"rope_theta": rope.get("rope_theta") or config.get(old_name)}, "rope_theta", default)
    for name in ROPE_NUMBERS.get(kind, ()):
        positive(rope, name, 0.0)
    return {**rope, "rope_type": kind, "rope_theta": theta}


def _object(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"config.json: the settings of the rotation must be an object, found {value!r}")
    return dict(value or {})


def head_counts(header: GgufHeader) -> tuple[int, int]:
    """Heads of queries, and of keys and values."""
    heads = _int(header, "attention.head_count")
    return heads, _int(header, "attention.head_count_kv", heads)


def _int(header: GgufHeader, name: str, default: int | None = None) -> int:
    value = header.hparam(name, default)
    if type(value) is not int or value < 1:
        raise ModelError(f"{header.architecture}.{name} must be a positive number, found {value!r}")
    return value


def _layers(header: GgufHeader) -> int:
    """Nothing is made for layers that the file cannot have: each has tensors of its own."""
    layers = _int(header, "block_count")
    if layers > len(header.tensors):
        raise ModelError(
            f"{header.architecture}.block_count is {layers}, and the file has {len(header.tensors)} tensors"
        )
    return layers


def quant_method(config: dict[str, Any]) -> str:
    """How config.json says that weights are quantised; "" for floats."""
    found = config.get("quantization_config")
    return str(found.get("quant_method", "")) if isinstance(found, dict) else ""


def setting(config: dict[str, Any], name: str, default: int | None = None, most: int = MOST_SIZE) -> int:
    """A size from the content of a config.json; default: where it is not there or null."""
    value = config.get(name)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise ModelError(f"config.json: {name} must be a positive number, found {value!r} (at most {most})")
    return value


def number(config: dict[str, Any], name: str, default: float) -> float:
    """A finite number from the content of a config.json; default: where it is not there or null."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"config.json: {name} must be a number, found {value!r}")
    return float(value)


def positive(config: dict[str, Any], name: str, default: float) -> float:
    found = number(config, name, default)
    if found <= 0:
        raise ModelError(f"config.json: {name} must be a positive number, found {config.get(name)!r}")
    return found


def shortest(value: float) -> float:
    """The fp32 number with the fewest digits: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))
