"""Who feeds whom in a decoder: the norms, matrices and heads of each block, whatever the architecture calls them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from likely.errors import CapabilityError, ModelError
from likely.formats.families import quant_method
from likely.formats.folder import read_json
from likely.models.load import resolve
from likely.runtimes.torch.gguf_module import load_gguf
from likely.runtimes.torch.pretrained import load_pretrained
from likely.tokenizers.gguf import tokenizer_from_gguf
from likely.tokenizers.huggingface import HFTokenizer
from likely.tokenizers.protocol import Tokenizer

_KNOWN = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM")
PARTS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, eq=False)
class DecoderBlock:
    """One layer: input_norm → q, k, v → attention → o → (+) → mlp_norm → gate, up → act(gate)·up → down → (+).

    after_attention, after_mlp  norms before the addition to the residual stream (Gemma), else None
    q_norm, k_norm              norms of each head's queries and keys (Qwen 3, Gemma 3), else None
    """

    number: int
    module: torch.nn.Module
    input_norm: torch.nn.Module
    q: torch.nn.Linear
    k: torch.nn.Linear
    v: torch.nn.Linear
    o: torch.nn.Linear
    mlp_norm: torch.nn.Module
    gate: torch.nn.Linear
    up: torch.nn.Linear
    down: torch.nn.Linear
    after_attention: torch.nn.Module | None = None
    after_mlp: torch.nn.Module | None = None
    q_norm: torch.nn.Module | None = None
    k_norm: torch.nn.Module | None = None

    def linears(self) -> dict[str, torch.nn.Linear]:
        """The seven matrices by part, in the order of `PARTS`."""
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True, eq=False)
class DecoderMap:
    """A causal language model by its parts.

    tied           the head is the embedding
    norm_adds_one  norms multiply by 1 + weight (Gemma), not by the weight
    """

    module: torch.nn.Module
    blocks: list[DecoderBlock]
    embedding: torch.nn.Embedding
    final_norm: torch.nn.Module
    head: torch.nn.Linear
    tied: bool
    heads: int
    kv_heads: int
    head_dim: int
    norm_adds_one: bool

    @classmethod
    def of(cls, module: torch.nn.Module) -> DecoderMap:
        """ModelError that names the module found and those known, for any other architecture."""
        name = type(module).__name__
        if name not in _KNOWN:
            raise ModelError(f"the parts of {name} are not known here (known: {', '.join(_KNOWN)})")
        inner: Any = module.model
        config: Any = module.config
        gemma = name.startswith("Gemma")
        heads = config.num_attention_heads
        head: Any = module.lm_head
        return cls(
            module=module,
            blocks=[_block(number, layer, gemma) for number, layer in enumerate(inner.layers)],
            embedding=inner.embed_tokens,
            final_norm=inner.norm,
            head=head,
            tied=head.weight is inner.embed_tokens.weight,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            norm_adds_one=gemma,
        )

    def linears(self) -> Iterator[tuple[str, DecoderBlock, str, torch.nn.Linear]]:
        """(name of the weight as in state_dict, block, part, matrix) of every matrix inside the blocks."""
        names = {id(child): name for name, child in self.module.named_modules()}
        for block in self.blocks:
            for part, linear in block.linears().items():
                yield f"{names[id(linear)]}.weight", block, part, linear

    def norm_scale(self, norm: torch.nn.Module) -> torch.Tensor:
        """What a norm multiplies by, (D,): its weight, or 1 + its weight."""
        weight: torch.Tensor = norm.weight
        return weight + 1 if self.norm_adds_one else weight

    def set_norm_scale(self, norm: torch.nn.Module, scale: torch.Tensor) -> None:
        with torch.no_grad():
            norm.weight.copy_(scale - 1 if self.norm_adds_one else scale)


def _block(number: int, layer: Any, gemma: bool) -> DecoderBlock:
    attention, mlp = layer.self_attn, layer.mlp
    return DecoderBlock(
        number=number,
        module=layer,
        input_norm=layer.input_layernorm,
        q=attention.q_proj,
        k=attention.k_proj,
        v=attention.v_proj,
        o=attention.o_proj,
        mlp_norm=layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm,
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
        after_attention=layer.post_attention_layernorm if gemma else None,
        after_mlp=layer.post_feedforward_layernorm if gemma else None,
        q_norm=getattr(attention, "q_norm", None),
        k_norm=getattr(attention, "k_norm", None),
    )


def open_module(model: str | Path) -> tuple[Path, torch.nn.Module, Tokenizer]:
    """Where a model lies, its weights as a transformers module in fp32, and its tokenizer."""
    kind, place = resolve(model)
    if kind == "hub":
        raise CapabilityError(f"{model} is a hub id: download it first, then give its folder")
    cpu, path = torch.device("cpu"), Path(place)
    if quant_method(read_json(path / "config.json")) == "mergequant":
        raise CapabilityError(f"{model} holds MergeQuant's codes, which only the native runtime runs")
    if kind == "gguf":
        return path, load_gguf(path, dtype=torch.float32, device=cpu), tokenizer_from_gguf(path)
    return path, load_pretrained(path, dtype=torch.float32, device=cpu).eval(), HFTokenizer.from_folder(path)
