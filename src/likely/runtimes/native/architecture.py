"""What the native runtime must know of an architecture: sizes, norms, rotations and windows, from a config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.errors import CapabilityError, ModelError
from likely.formats.families import (
    MOST_LAYERS,
    layer_types,
    llama3_factors,
    number,
    positive,
    quant_method,
    rope_of_config,
    setting,
)
from likely.runtimes.protocol import FloatArray

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}
MOST_HEAD_DIM = 1024
STATIC = ("all", "norms", "none")
_ELSEWHERE = "use runtime='torch'"


@dataclass(frozen=True)
class MergedCodes:
    """MergeQuant's folder: bits of the codes of weights and activations.

    static  which inputs are codes without a scale: "all"; "norms", those of o and down having a scale for each token;
            or "none" of them
    """

    weight_bits: int
    activation_bits: int
    static: str

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> MergedCodes | None:
        """None where the model is not one of MergeQuant's."""
        if quant_method(config) != "mergequant":
            return None
        said = config["quantization_config"]
        bits, inputs = said.get("weight_bits"), said.get("activation_bits")
        if not all(type(n) is int and 2 <= n <= 8 for n in (bits, inputs)) or said.get("static") not in STATIC:
            known = ", ".join(STATIC)
            raise ModelError(f"config.json: weight_bits and activation_bits must be 2 to 8, static {known}: {said!r}")
        return cls(bits, inputs, said["static"])

    @property
    def type_name(self) -> str:
        return "MQ4" if self.weight_bits <= 4 else "MQ8"


@dataclass(frozen=True, eq=False)
class Architecture:
    """A decoder: RMS norms, rotary attention over grouped heads, a gated feed-forward part.

    windows      per layer; 0: the layer sees everything
    frequencies  (head_dim / 2,) fp32 of the rotation: of layers without and with a window
    norm_offset  what is added to the norms' factors (1 for Gemma)
    """

    family: str  # as config.json names it
    vocab_size: int
    context_length: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    activation: str
    epsilon: float
    attention_scale: float
    embedding_scale: float
    logit_softcap: float  # 0: none; so is the next
    attention_softcap: float
    windows: tuple[int, ...]
    frequencies: tuple[FloatArray, FloatArray]
    tied: bool
    qkv_bias: bool
    query_key_norms: bool
    norms_after: bool
    norm_offset: float
    merged: MergedCodes | None = None

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Architecture:
        """From the content of a config.json; CapabilityError for what the native runtime does not compute."""
        family = str(config.get("model_type"))
        if family not in MODEL_TYPES:
            raise CapabilityError(f"the native runtime runs {', '.join(MODEL_TYPES)}, not {family}: {_ELSEWHERE}")
        gemma, gemma3 = family in ("gemma2", "gemma3_text"), family == "gemma3_text"
        activation = config.get("hidden_activation" if gemma else "hidden_act") or ("silu", "gelu_pytorch_tanh")[gemma]
        if str(activation) not in ACTIVATIONS:
            raise CapabilityError(f"the native runtime has no activation {activation}: {_ELSEWHERE}")
        merged = MergedCodes.of_config(config)
        for name in ("attn_logit_softcapping", "use_bidirectional_attention", "mlp_bias", "quantization_config"):
            is_codes = merged is not None and name == "quantization_config"
            if config.get(name) and not is_codes and (family, name) != ("gemma2", "attn_logit_softcapping"):
                raise CapabilityError(f"the native runtime has no {name}: {_ELSEWHERE}")
        if family == "qwen3" and config.get("attention_bias"):
            raise CapabilityError(f"the native runtime has no attention_bias for qwen3: {_ELSEWHERE}")
        hidden, heads = setting(config, "hidden_size"), setting(config, "num_attention_heads")
        layers = setting(config, "num_hidden_layers", most=MOST_LAYERS)
        head_dim = setting(config, "head_dim", hidden // heads)
        kv_heads = setting(config, "num_key_value_heads", heads)
        if head_dim > MOST_HEAD_DIM:
            raise CapabilityError(
                f"the native runtime has heads of at most {MOST_HEAD_DIM}, not {head_dim}: {_ELSEWHERE}"
            )
        if heads % kv_heads or head_dim % 2:
            raise ModelError(f"config.json: {heads} heads of width {head_dim} over {kv_heads} key heads cannot be")
        full = rope_of_config(config, "full_attention" if gemma3 else None, 1e6 if gemma3 else 1e4)
        local = rope_of_config(config, "sliding_attention", 1e4, "rope_local_base_freq") if gemma3 else full
        return cls(
            family=family,
            vocab_size=setting(config, "vocab_size"),
            context_length=setting(config, "max_position_embeddings"),
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            mlp=setting(config, "intermediate_size"),
            activation=activation,
            epsilon=positive(config, "rms_norm_eps", 1e-6),
            attention_scale=(positive(config, "query_pre_attn_scalar", 256) if gemma else head_dim) ** -0.5,
            embedding_scale=float(np.float32(hidden**0.5)) if gemma else 1.0,
            logit_softcap=_softcap(config, "final_logit_softcapping", 30.0 * (family == "gemma2")),
            attention_softcap=_softcap(config, "attn_logit_softcapping", 50.0 * (family == "gemma2")),
            windows=_windows(config, family, layers),
            frequencies=(_frequencies(full, head_dim), _frequencies(local, head_dim)),
            tied=bool(config.get("tie_word_embeddings", gemma)),
            qkv_bias=family == "qwen2" or bool(config.get("attention_bias")),
            query_key_norms=family in ("qwen3", "gemma3_text"),
            norms_after=gemma,
            norm_offset=float(gemma),
            merged=merged,
        )


def _softcap(config: dict[str, Any], name: str, default: float) -> float:
    """0 where the file says null."""
    return number(config, name, 0.0) if name in config else default


def _windows(config: dict[str, Any], family: str, layers: int) -> tuple[int, ...]:
    kinds = config.get("layer_types")
    if family == "mistral":
        config = {"sliding_window": 4096, **config}  # as transformers reads a missing key
        kinds = ["sliding_attention" if config["sliding_window"] else "full_attention"] * layers
    elif family == "gemma2":
        kinds = kinds or layer_types(layers, 2)
    elif family == "gemma3_text":
        pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
        kinds = kinds or layer_types(layers, setting({"sliding_window_pattern": pattern}, "sliding_window_pattern"))
    elif not config.get("use_sliding_window"):
        kinds = ["full_attention"] * layers
    if kinds is None:
        raise CapabilityError(f"the native runtime needs layer_types to know which layers have a window: {_ELSEWHERE}")
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ModelError(f"config.json: layer_types must be a list of names, found {kinds!r}")
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise CapabilityError(f"the native runtime has no layers of kind {', '.join(sorted(set(kinds)))}: {_ELSEWHERE}")
    if "sliding_attention" not in kinds:
        return (0,) * layers
    window = min(setting(config, "sliding_window"), setting(config, "max_position_embeddings"))  # more sees no more
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _frequencies(rope: dict[str, Any], head_dim: int) -> FloatArray:
    """1 / theta^(2i / D), rounded as transformers rounds it, and scaled as `rope` says."""
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CapabilityError(f"the native runtime rotates whole heads: {_ELSEWHERE}")
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1 / np.power(np.float32(rope["rope_theta"]), exponent)).astype(np.float32)
    match rope.get("rope_type", "default"):
        case "default":
            return plain
        case "linear":
            return (plain / np.float32(rope["factor"])).astype(np.float32)
        case "llama3":
            return (plain / llama3_factors(rope, rope["rope_theta"], head_dim)).astype(np.float32)
        case kind:
            raise CapabilityError(f'the native runtime has no rotary scaling of type "{kind}": {_ELSEWHERE}')
