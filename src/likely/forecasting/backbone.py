"""A small language model as a frozen backbone: vectors in, hidden states out; and texts as vectors.  torch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from likely.errors import ModelError, needs
from likely.forecasting.prompts import Vectors
from likely.tokenizers.protocol import begin
from likely.training.lora import ATTENTION, HasRuntime, trainable

BackboneKind = Literal["frozen", "lora", "random", "none"]
BACKBONES = ("frozen", "lora", "random", "none")
_LISTS = ("layers", "h", "blocks")
_TEXTS = 32  # read together


class LMBackbone:
    """The first layers of a causal language model and its final norm, without embeddings of tokens and without head.

    kind    "frozen": the model's own weights, never changed; "lora": beside them factors of the attention's matrices
            are trained; "random": the same architecture with random frozen weights; "none": vectors pass unchanged (a
            patch then sees itself alone)
    layers  how many of its layers; None: all
    width   D, of its vectors;  revision: names weights and layers
    Texts are read by the same layers, without LoRA's factors.  The model that was given keeps its weights.
    """

    def __init__(
        self, model: HasRuntime | str | Path, *, kind: BackboneKind = "frozen", layers: int | None = None,
        rank: int = 8, seed: int = 0,
    ):  # fmt: skip
        lm = trainable(model)
        self.kind, self.tokenizer = kind, lm.tokenizer
        self.model_revision: str = lm.runtime.revision
        decoder = _first_layers(lm.runtime.module, layers)
        if kind == "random":
            decoder = _reinitialised(decoder, seed)
        self._reader = decoder
        self.decoder = _with_factors(copy.deepcopy(decoder), rank, seed) if kind == "lora" else decoder
        self.layers: int = decoder.config.num_hidden_layers
        self.width: int = decoder.config.hidden_size
        random = f"+random-{seed}" if kind == "random" else ""
        self.revision = f"{self.model_revision}{random}+layers-{self.layers}"

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those that are trained: LoRA's factors."""
        return {name: p for name, p in self.decoder.named_parameters() if ".lora_" in name}

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, n, D) -> (B, n, D); position i sees positions up to i."""
        if self.kind == "none":
            return vectors
        dtype = next(self.decoder.parameters()).dtype
        states: torch.Tensor = self.decoder(inputs_embeds=vectors.to(dtype), use_cache=False).last_hidden_state
        return states.float()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Only LoRA's factors ask for gradients within; afterwards each parameter asks as before."""
        asked = {name: p.requires_grad for name, p in self.decoder.named_parameters()}
        for name, parameter in self.decoder.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        try:
            yield
        finally:
            for name, parameter in self.decoder.named_parameters():
                parameter.requires_grad_(asked[name])

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(N, D) the last token's final hidden state of each text."""
        ids = [begin(self.tokenizer, self.tokenizer.encode(text)) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = np.empty((len(ids), self.width), np.float32)
        for start in range(0, len(order), _TEXTS):
            part = order[start : start + _TEXTS]
            longest = max(len(ids[i]) for i in part)
            tokens = torch.zeros(len(part), longest, dtype=torch.long)
            seen = torch.zeros_like(tokens)
            for row, i in enumerate(part):  # padded on the right, where a causal model does not look
                tokens[row, : len(ids[i])], seen[row, : len(ids[i])] = torch.tensor(ids[i]), 1
            last = seen.sum(1) - 1
            with torch.no_grad():
                states = self._reader(
                    input_ids=tokens.to(self.device), attention_mask=seen.to(self.device), use_cache=False
                ).last_hidden_state
            out[part] = states[torch.arange(len(part)), last].float().cpu().numpy()
        return out


def _first_layers(module: Any, layers: int | None) -> Any:
    """The decoder with fewer layers, which shares its weights; the model itself stays whole."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner.base_model
    name = next((name for name in _LISTS if isinstance(getattr(decoder, name, None), torch.nn.ModuleList)), None)
    if name is None:
        raise ModelError(f"{type(decoder).__name__} has no list of layers that forecasting knows: choose another model")
    own = getattr(decoder, name)
    if layers is not None and not 1 <= layers <= len(own):
        raise ModelError(f"layers must lie in 1..{len(own)}, which this model has, got {layers}")
    short = copy.copy(decoder)
    short._modules = dict(decoder._modules)
    short._modules[name] = torch.nn.ModuleList(list(own)[: layers or len(own)])
    short.config = copy.deepcopy(decoder.config)
    short.config.num_hidden_layers = layers or len(own)
    if getattr(short.config, "layer_types", None):
        short.config.layer_types = list(short.config.layer_types)[: layers or len(own)]
    return short.eval()


def _reinitialised(decoder: Any, seed: int) -> Any:
    """The same architecture with fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(decoder)(copy.deepcopy(decoder.config))
    old = next(decoder.parameters())
    return fresh.to(device=old.device, dtype=old.dtype).eval()


def _with_factors(decoder: Any, rank: int, seed: int) -> Any:
    with needs("peft", "train"):
        from peft import LoraConfig, inject_adapter_in_model
    linear = {name.split(".")[-1] for name, m in decoder.named_modules() if type(m) is torch.nn.Linear}
    targets = [name for name in ATTENTION if name in linear]
    if not targets:
        raise ModelError(f"the model has none of the linear layers {', '.join(ATTENTION)}: use a frozen backbone")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), decoder)
