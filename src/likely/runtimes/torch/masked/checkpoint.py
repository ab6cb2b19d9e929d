"""Masked language models in folders: LLaDA and Dream by the names of their tensors, and likely's own tiny ones.

The dimensions come from config.json, the weights from safetensors files; no code of the checkpoint is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from likely.errors import ModelError, check_choice
from likely.formats.folder import read_folder, read_json
from likely.formats.safetensors_file import floats_from
from likely.io.hashes import fingerprint, folder_sha256
from likely.io.whole_file import write_whole_file
from likely.runtimes.masked import MaskedRuntime
from likely.runtimes.torch.masked.network import MaskedShape, MaskedTransformer
from likely.runtimes.torch.masked.predictor import MaskedPredictor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OWN = "likely-masked"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class MaskedFamily:
    """How one family writes its models.

    shape    the content of config.json -> the dimensions
    names    our name of a tensor -> that of the checkpoint; {} stands for a layer
    refused  settings whose other values this network does not compute: name -> the value it must have
    """

    title: str
    shape: Callable[[Mapping[str, Any]], MaskedShape]
    names: Callable[[str], str]
    refused: Mapping[str, Any]


def _llada_shape(config: Mapping[str, Any]) -> MaskedShape:
    width, heads = _whole(config, "d_model"), _whole(config, "n_heads")
    return MaskedShape(
        vocab_size=_whole(config, "embedding_size", config.get("vocab_size")),
        mask_id=_whole(config, "mask_token_id"),
        width=width,
        layers=_whole(config, "n_layers"),
        heads=heads,
        kv_heads=_whole(config, "n_kv_heads", heads),
        hidden=_whole(config, "mlp_hidden_size", width * config.get("mlp_ratio", 4)),
        context=_whole(config, "max_sequence_length"),
        rotary_base=_number(config, "rope_theta", 10_000.0),
        norm_eps=_number(config, "rms_norm_eps", 1e-5),
        qkv_bias=bool(config.get("include_qkv_bias", False)),
        tied=bool(config.get("weight_tying", True)),
    )


def _dream_shape(config: Mapping[str, Any]) -> MaskedShape:
    heads = _whole(config, "num_attention_heads")
    return MaskedShape(
        vocab_size=_whole(config, "vocab_size"),
        mask_id=_whole(config, "mask_token_id"),
        width=_whole(config, "hidden_size"),
        layers=_whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        hidden=_whole(config, "intermediate_size"),
        context=_whole(config, "max_position_embeddings"),
        rotary_base=_number(config, "rope_theta", 10_000.0),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        qkv_bias=True,
        tied=bool(config.get("tie_word_embeddings", False)),
        shift=True,
    )


def _own_shape(config: Mapping[str, Any]) -> MaskedShape:
    known = {field.name for field in fields(MaskedShape)}
    try:
        return MaskedShape(**{name: value for name, value in config.items() if name in known})
    except TypeError as error:
        raise ModelError(f"config.json: {error}") from None


def _llama_shape(config: Mapping[str, Any]) -> MaskedShape:
    """A causal model of transformers as it is: mask_id 0 stands for none."""
    rotary = {"rope_theta": (config.get("rope_parameters") or config).get("rope_theta")}
    return replace(
        _dream_shape({"tie_word_embeddings": True, **rotary, **config, "mask_token_id": 0}),
        norm_eps=_number(config, "rms_norm_eps", 1e-6), qkv_bias=config.get("model_type") == "qwen2", shift=False,
    )  # fmt: skip


_LLADA_NAMES = {
    "model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out", "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
}  # fmt: skip


def _llada_name(name: str) -> str:
    """model.layers.3.mlp.gate_proj.weight -> model.transformer.blocks.3.ff_proj.weight"""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"model.transformer.{_LLADA_NAMES[stem]}.{kind}"
    _, _, number, part = stem.split(".", 3)
    return f"model.transformer.blocks.{number}.{_LLADA_NAMES[part]}.{kind}"


FAMILIES: Mapping[str, MaskedFamily] = {
    OWN: MaskedFamily("likely's tiny masked language models", _own_shape, str, {}),
    "llada": MaskedFamily(
        "LLaDA (Nie et al. 2025)", _llada_shape, _llada_name,
        {
            "block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True, "alibi": False,
            "include_bias": False, "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False,
            "bias_for_layer_norm": False,
        },
    ),
    "dream": MaskedFamily(
        "Dream (Ye et al. 2025)", _dream_shape, str,
        {"hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False},
    ),
}  # fmt: skip


def config_of(folder_or_id: str | Path) -> dict[str, Any]:
    """The content of config.json of a folder or a hub id; {} if there is none."""
    from likely.runtimes.torch.pretrained import read_from_hub

    folder = Path(folder_or_id)
    return read_json(folder / "config.json") if folder.is_dir() else read_from_hub(str(folder_or_id), "config.json")


CAUSAL = {
    name: MaskedFamily(name, _llama_shape, str, {"hidden_act": "silu", "rope_scaling": None, "attention_bias": False})
    for name in ("llama", "qwen2")
}


def family_of(config: Mapping[str, Any]) -> MaskedFamily | None:
    """The family that config.json names; None: it is no masked language model that is known here."""
    return FAMILIES.get(str(config.get("model_type", "")).lower())


def load_masked(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> MaskedTransformer:
    """The network of a folder with config.json and safetensors files; ModelError for what is missing or misshapen."""
    return _load(Path(folder), FAMILIES, "masked language model", dtype, device)


def open_masked(
    folder: str | Path,
    *,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> MaskedRuntime:
    """A folder that `load_masked` reads, as a runtime.  dtype: "float32" (the default), "bfloat16", "float16"."""
    check_choice("dtype", dtype or "float32", DTYPES)
    if threads is not None:
        torch.set_num_threads(threads)
    network = load_masked(folder, dtype=DTYPES[dtype or "float32"], device=device or "cpu")
    name = revision or fingerprint([folder_sha256(folder), dtype or "float32"])
    return MaskedRuntime(MaskedPredictor(network), dtype=network.lm_head.weight.dtype, revision=name)


def load_causal(folder: str | Path) -> MaskedTransformer:
    """A Llama or Qwen 2 as this network, for adaptation: it computes without a causal mask unless given one."""
    return _load(Path(folder), CAUSAL, "causal model", torch.float32, "cpu")


def _load(
    folder: Path, families: Mapping[str, MaskedFamily], what: str, dtype: torch.dtype, device: str | torch.device
) -> MaskedTransformer:
    config = read_json(folder / "config.json")
    family = families.get(str(config.get("model_type", "")).lower())
    if family is None:
        raise ModelError(
            f"{folder}: config.json names the model type {config.get('model_type')!r}, which is no {what} known here "
            f"({', '.join(families)})"
        )
    for name, wanted in family.refused.items():
        if (found := config.get(name, wanted)) not in (wanted, None):
            raise ModelError(f"{folder}: config.json: {name} is {found!r}; only {wanted!r} is computed here")
    shape = family.shape(config)
    with torch.device("meta"):
        network = MaskedTransformer(shape)
    entries = read_folder(folder)
    state: dict[str, torch.Tensor] = {}
    for name, parameter in network.state_dict().items():
        if shape.tied and name == "lm_head.weight":
            continue
        entry = entries.get(family.names(name))
        if entry is None:
            raise ModelError(f"{folder}: the tensor {family.names(name)} is missing")
        if entry.shape != tuple(parameter.shape):
            raise ModelError(
                f"{folder}: {family.names(name)} has shape {entry.shape}, config.json says {tuple(parameter.shape)}"
            )
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            values = floats_from(file.read(entry.end - entry.start), entry.dtype).reshape(entry.shape)
        if not np.isfinite(values).all():
            raise ModelError(f"{folder}: {family.names(name)} holds a number that is not finite")
        state[name] = torch.from_numpy(values).to(device, dtype)
    network.load_state_dict(state, strict=not shape.tied, assign=True)
    if shape.tied:
        network.lm_head.weight = network.model.embed_tokens.weight
    return network.requires_grad_(False).eval()


def save_masked(network: MaskedTransformer, folder: str | Path) -> None:
    """Write config.json and model.safetensors, as `load_masked` reads them; a tokenizer.json is the caller's."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if network.shape.tied:
        state.pop("lm_head.weight")
    write_whole_file(folder / WEIGHTS, save(state))
    config = {"model_type": OWN, **asdict(network.shape)}
    write_whole_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def _whole(config: Mapping[str, Any], name: str, default: Any = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"config.json: {name} must be a whole number, found {value!r}")
    return value


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelError(f"config.json: {name} must be a number > 0, found {value!r}")
    return float(value)
