"""How checkpoints of each family stand beside `SequenceLM`: settings, names of weights, and factors in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from likely.errors import CapabilityError, ModelError
from likely.sequence.backbone import SequenceConfig

LAYER = r"backbone\.layers\.(\d+)\."
Settings = Mapping[str, Any]
Factors = Callable[[Settings], dict[str, Tensor | float]]  # last names of weights -> what they are multiplied by


@dataclass(frozen=True)
class CheckpointFamily:
    """names: (their prefix, our prefix) of weights, with {n} for the number of a layer, the longest first.

    config   our configuration of theirs;  factors: what its weights are multiplied by
    fits     whether a configuration of ours can be written as this family;  back: theirs of ours
    """

    names: tuple[tuple[str, str], ...]
    config: Callable[[Settings], SequenceConfig]
    factors: Factors
    fits: Callable[[SequenceConfig], bool]
    back: Callable[[SequenceConfig], transformers.PreTrainedConfig]

    def weights(self, config: Settings, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Ours, in float32."""
        factors = self.factors(config)
        for name, tensor in weights.items():
            own = _renamed(name, self.names)
            tensor = tensor.float()
            for end, factor in factors.items():
                if own.endswith(end):
                    tensor = tensor * (factor if isinstance(factor, float) or tensor.dim() < 2 else factor[:, None])
            yield own, tensor

    def their_name(self, name: str) -> str:
        return _renamed(name, tuple((ours, theirs) for theirs, ours in self.names))


def _renamed(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for before, after in names:
        pattern = re.escape(before).replace(r"\{n\}", r"(?P<n>\d+)")
        if found := re.match(pattern, name):
            number = found.groupdict().get("n", "")
            return after.replace("{n}", number) + name[found.end() :]
    return name


def family_of(config: Settings, where: object) -> CheckpointFamily:
    """The family of a configuration; ModelError with those that are known."""
    kind = config.get("model_type")
    if kind is None and {"d_model", "n_layer"} <= config.keys():
        return ORIGINAL
    if kind not in FAMILIES:
        raise ModelError(f'{where}: model_type "{kind}" is none of {", ".join(FAMILIES)}')
    return FAMILIES[kind]


def _require(config: Settings, family: str, **values: Any) -> None:
    """CapabilityError unless these settings, where they are given, have these values."""
    for name, value in values.items():
        if config.get(name, value) != value:
            raise CapabilityError(
                f"{family} with {name}={config[name]!r} is not computed by likely's layers (they have {value!r}): "
                f'use runtime="torch"'
            )


# --- Mamba and Mamba-2 of transformers --------------------------------------------------------------------------------

HF_NAMES = (("backbone.embeddings.", "backbone.embed_tokens."), ("backbone.norm_f.", "backbone.norm."))


def _mamba_config(theirs: Settings) -> SequenceConfig:
    config = transformers.MambaConfig(**theirs)
    _require(theirs, "Mamba", hidden_act="silu")
    settings = {
        "d_state": config.state_size, "d_conv": config.conv_kernel, "expand": config.expand,
        "rank": int(config.time_step_rank), "bias": config.use_bias, "conv_bias": config.use_conv_bias,
    }  # fmt: skip
    return SequenceConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, layers=["mamba"] * config.num_hidden_layers,
        mixers={"mamba": settings}, norm_eps=config.layer_norm_epsilon, tie_word_embeddings=config.tie_word_embeddings,
    )  # fmt: skip


def _mamba2_config(theirs: Settings) -> SequenceConfig:
    config = transformers.Mamba2Config(**theirs)
    _require(theirs, "Mamba-2", hidden_act="silu")
    settings = {
        "d_state": config.state_size, "head_dim": config.head_dim, "heads": config.num_heads,
        "groups": config.n_groups, "d_conv": config.conv_kernel, "bias": config.use_bias,
        "conv_bias": config.use_conv_bias, "eps": config.layer_norm_epsilon, **_dt_limit(config.time_step_limit),
    }  # fmt: skip
    return SequenceConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, layers=["mamba2"] * config.num_hidden_layers,
        mixers={"mamba2": settings}, norm_eps=config.layer_norm_epsilon, tie_word_embeddings=config.tie_word_embeddings,
    )  # fmt: skip


def _dt_limit(limit: Any) -> dict[str, Any]:
    low, high = limit or (0.0, math.inf)
    return {} if (low, high) == (0.0, math.inf) else {"dt_limit": [float(low), float(high)]}


def _only(config: SequenceConfig, name: str) -> bool:
    """Whether all layers are this mixer, without feed-forward parts or factors."""
    plain = (config.embedding_multiplier, config.logits_multiplier, config.padded_ids) == (1, 1, 0)
    return set(config.layers or ()) == {name} and not config.mlp_size and plain


def _settings(config: SequenceConfig, name: str) -> dict[str, Any]:
    return (config.mixers or {}).get(name, {})


def _mamba_back(config: SequenceConfig) -> transformers.PreTrainedConfig:
    own = _settings(config, "mamba")
    return transformers.MambaConfig(
        **_sizes(config), layer_norm_epsilon=config.norm_eps, state_size=own.get("d_state", 16),
        conv_kernel=own.get("d_conv", 4), expand=own.get("expand", 2), time_step_rank=own.get("rank") or "auto",
        use_bias=own.get("bias", False), use_conv_bias=own.get("conv_bias", True),
    )  # fmt: skip


def _mamba2_fits(config: SequenceConfig) -> bool:
    """transformers has one epsilon, the gate before the norm, and heads that make twice the width."""
    own = _settings(config, "mamba2")
    return (
        _only(config, "mamba2")
        and own.get("norm", "gate_first") == "gate_first"
        and own.get("eps", 1e-5) == config.norm_eps
        and not {"scales", "in_scale"} & own.keys()
    )


def _mamba2_back(config: SequenceConfig) -> transformers.PreTrainedConfig:
    own = _settings(config, "mamba2")
    head_dim = own.get("head_dim", 64)
    heads = own.get("heads") or own.get("expand", 2) * config.hidden_size // head_dim
    return transformers.Mamba2Config(
        **_sizes(config), layer_norm_epsilon=config.norm_eps, state_size=own.get("d_state", 64), head_dim=head_dim,
        num_heads=heads, expand=heads * head_dim // config.hidden_size, n_groups=own.get("groups", 1),
        conv_kernel=own.get("d_conv", 4), use_bias=own.get("bias", False), use_conv_bias=own.get("conv_bias", True),
        chunk_size=64, time_step_limit=tuple(own.get("dt_limit", (0.0, math.inf))),
    )  # fmt: skip


def _sizes(config: SequenceConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.layers or ()),
        "tie_word_embeddings": config.tie_word_embeddings,
    }


# --- the original files -----------------------------------------------------------------------------------------------

ORIGINAL_NAMES = (("backbone.embedding.", "backbone.embed_tokens."), ("backbone.norm_f.", "backbone.norm."))


def _original_config(theirs: Settings) -> SequenceConfig:
    """state-spaces/mamba: d_model, n_layer, ssm_cfg; the vocabulary is filled up to a multiple of 8 with no tokens."""
    _require(theirs, "an original checkpoint", rms_norm=True, d_intermediate=0, attn_layer_idx=[])
    own = dict(theirs.get("ssm_cfg") or {})
    kind = {"Mamba1": "mamba", "Mamba2": "mamba2"}.get(own.pop("layer", "Mamba1"))
    renamed = {"headdim": "head_dim", "ngroups": "groups", "dt_rank": "rank"}
    known = {"d_state", "d_conv", "expand", "headdim", "ngroups", "bias", "conv_bias", "dt_rank"}
    speed = {"chunk_size", "use_mem_eff_path", "use_fast_path"}  # change no number
    if kind is None or own.keys() - known - speed:
        raise CapabilityError(f"an original checkpoint with ssm_cfg={theirs['ssm_cfg']!r} is not known to likely")
    settings = {renamed.get(name, name): value for name, value in own.items() if name in known and value != "auto"}
    if kind == "mamba2":
        settings = {"d_state": 128, **settings}
    tokens, multiple = int(theirs["vocab_size"]), int(theirs.get("pad_vocab_size_multiple", 8))
    padded = -tokens % multiple
    return SequenceConfig(
        vocab_size=tokens + padded, padded_ids=padded, hidden_size=theirs["d_model"],
        layers=[kind] * theirs["n_layer"], mixers={kind: settings}, norm_eps=1e-5,
        tie_word_embeddings=theirs.get("tie_embeddings", True),
    )  # fmt: skip


# --- Falcon-H1 --------------------------------------------------------------------------------------------------------

HYBRID, BRANCHES = "parallel", ["mamba2", "attention"]
FALCON_NAMES = (
    ("model.layers.{n}.input_layernorm.", "backbone.layers.{n}.norm."),
    ("model.layers.{n}.pre_ff_layernorm.", "backbone.layers.{n}.mlp_norm."),
    ("model.layers.{n}.feed_forward.", "backbone.layers.{n}.mlp."),
    ("model.layers.{n}.mamba.", "backbone.layers.{n}.mixer.branches.0."),
    ("model.layers.{n}.self_attn.", "backbone.layers.{n}.mixer.branches.1."),
    ("model.final_layernorm.", "backbone.norm."),
    ("model.embed_tokens.", "backbone.embed_tokens."),
)


def _falcon_config(theirs: Settings) -> SequenceConfig:
    config = transformers.FalconH1Config(**theirs)
    rope = config.rope_parameters or {}
    _require(theirs, "Falcon-H1", hidden_act="silu")
    _require(rope, "Falcon-H1", rope_type="default")
    if config.projectors_bias != config.mamba_proj_bias:
        raise CapabilityError("Falcon-H1 with a bias in one of the Mamba projections only is not known to likely")
    norm = "none"
    if config.mamba_rms_norm:
        norm = "norm_first" if config.mamba_norm_before_gate else "gate_first"
    mamba2 = {
        "d_state": config.mamba_d_state, "head_dim": config.mamba_d_head, "heads": config.mamba_n_heads,
        "groups": config.mamba_n_groups, "d_conv": config.mamba_d_conv, "bias": config.mamba_proj_bias,
        "conv_bias": config.mamba_conv_bias, "norm": norm, "eps": config.rms_norm_eps,
        **_dt_limit(config.time_step_limit),
    }  # fmt: skip
    attention = {
        "heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope_theta": float(rope.get("rope_theta", 10_000.0)), "bias": config.attention_bias,
    }  # fmt: skip
    return SequenceConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, layers=[HYBRID] * config.num_hidden_layers,
        mixers={HYBRID: {"branches": BRANCHES, "settings": [mamba2, attention]}}, mlp_size=config.intermediate_size,
        mlp_bias=config.mlp_bias, norm_eps=config.rms_norm_eps, tie_word_embeddings=config.tie_word_embeddings,
        max_position_embeddings=config.max_position_embeddings, embedding_multiplier=config.embedding_multiplier,
        logits_multiplier=config.lm_head_multiplier,
    )  # fmt: skip


def _falcon_factors(theirs: Settings) -> dict[str, Tensor | float]:
    """The multipliers inside the layers.  Biases of a projection do not see what its input is multiplied by."""
    config = transformers.FalconH1Config(**theirs)
    inner = config.mamba_n_heads * config.mamba_d_head
    group = config.mamba_n_groups * config.mamba_d_state
    parts = zip((inner, inner, group, group, config.mamba_n_heads), config.ssm_multipliers, strict=True)
    rows = torch.cat([torch.full((size,), float(factor)) for size, factor in parts])  # z, x, B, C, Δ
    gate, down = config.mlp_multipliers
    heard = config.attention_in_multiplier
    factors = {
        "branches.0.in_proj.weight": rows * config.ssm_in_multiplier, "branches.0.in_proj.bias": rows,
        "branches.1.q_proj.weight": heard, "branches.1.v_proj.weight": heard,
        "branches.1.k_proj.weight": heard * config.key_multiplier, "branches.1.k_proj.bias": config.key_multiplier,
        "mlp.gate_proj.weight": gate, "mlp.gate_proj.bias": gate,
    }  # fmt: skip
    for name, factor in (
        ("branches.0.out_proj", config.ssm_out_multiplier),
        ("branches.1.o_proj", config.attention_out_multiplier),
        ("mlp.down_proj", down),
    ):
        factors |= {f"{name}.weight": factor, f"{name}.bias": factor}
    return {f".{name}": float(f) if isinstance(f, int) else f for name, f in factors.items()}


def _falcon_fits(config: SequenceConfig) -> bool:
    hybrid = _settings(config, HYBRID)
    if set(config.layers or ()) != {HYBRID} or hybrid.get("branches") != BRANCHES or not config.mlp_size:
        return False
    own, attention = hybrid.get("settings") or ({}, {})
    plain = not {"scales", "in_scale"} & own.keys() and not {"in_scales", "out_scales"} & hybrid.keys()
    rotary = attention.get("rope_theta", 1e4) is not None and "key_scale" not in attention
    return bool(plain and rotary and not config.padded_ids and own.get("eps", 1e-5) == config.norm_eps)


def _falcon_back(config: SequenceConfig) -> transformers.PreTrainedConfig:
    """With all multipliers inside the layers 1: they are part of the weights."""
    own, attention = _settings(config, HYBRID).get("settings") or ({}, {})
    head_dim, bias = own.get("head_dim", 64), own.get("bias", False)
    heads = own.get("heads") or own.get("expand", 2) * config.hidden_size // head_dim
    norm = own.get("norm", "gate_first")
    queries = attention.get("heads", 4)
    found = transformers.FalconH1Config(
        **_sizes(config), rms_norm_eps=config.norm_eps, intermediate_size=config.mlp_size, mlp_bias=config.mlp_bias,
        max_position_embeddings=config.max_position_embeddings, num_attention_heads=queries,
        num_key_value_heads=attention.get("kv_heads") or queries, attention_bias=attention.get("bias", False),
        rope_parameters={"rope_type": "default", "rope_theta": attention.get("rope_theta", 1e4)},
        mamba_d_ssm=heads * head_dim, mamba_n_heads=heads, mamba_d_head=head_dim,
        mamba_n_groups=own.get("groups", 1), mamba_d_state=own.get("d_state", 64), mamba_d_conv=own.get("d_conv", 4),
        mamba_conv_bias=own.get("conv_bias", True), mamba_proj_bias=bias, projectors_bias=bias,
        mamba_rms_norm=norm != "none", mamba_norm_before_gate=norm != "gate_first",
        time_step_limit=tuple(own.get("dt_limit", (0.0, math.inf))), mamba_chunk_size=64,
        embedding_multiplier=config.embedding_multiplier, lm_head_multiplier=config.logits_multiplier,
    )  # fmt: skip
    found.head_dim = attention.get("head_dim") or config.hidden_size // queries
    return found


def _no_factors(theirs: Settings) -> dict[str, Tensor | float]:
    return {}


FAMILIES = {
    "mamba": CheckpointFamily(HF_NAMES, _mamba_config, _no_factors, lambda c: _only(c, "mamba"), _mamba_back),
    "mamba2": CheckpointFamily(HF_NAMES, _mamba2_config, _no_factors, _mamba2_fits, _mamba2_back),
    "falcon_h1": CheckpointFamily(FALCON_NAMES, _falcon_config, _falcon_factors, _falcon_fits, _falcon_back),
}
ORIGINAL = CheckpointFamily(ORIGINAL_NAMES, _original_config, _no_factors, lambda _: False, _mamba_back)
