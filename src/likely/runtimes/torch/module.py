"""One call of a transformers model: a row of tokens in, the wanted rows of logits and hidden states out."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from likely.runtimes.protocol import IntArray
from likely.runtimes.torch.attention import AttentionPlan, attention_plan

NO_CONTEXT_LIMIT = 2**20
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")  # rotary frequencies change with the length of the input
_SAMPLES = 1024
_CHUNK = 1 << 20


class ModuleCall:
    """A causal language model as a function of tokens; with a plan its attention runs over slots, else plainly."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        inner = module.get_base_model() if hasattr(module, "get_base_model") else module  # below an adapter
        self.config = inner.config
        text = self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config
        self.text_config = text
        self.context_length = _context_length(text)
        self._decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner.base_model
        self.keeps_rows = "logits_to_keep" in inspect.signature(inner.forward).parameters
        self.windows: list[int | None] = []  # of each attention layer, as last seen

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    def __call__(
        self,
        tokens: IntArray,
        rows: IntArray,
        *,
        hidden_rows: IntArray | None = None,
        positions: IntArray | None = None,
        plan: AttentionPlan | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """tokens, positions (N,) -> logits (R, V) of `rows`, final hidden states (R', D) of `hidden_rows`.

        Without a plan the tokens are one text from position 0.
        """
        device, states = self.device, []
        inputs: dict[str, Any] = {"input_ids": _tensor(tokens, device)[None], "use_cache": False, "return_dict": True}
        if positions is not None:
            inputs["position_ids"] = _tensor(positions, device)[None]
        keep = _tensor(rows, device)
        if self.keeps_rows:
            inputs["logits_to_keep"] = keep
        hook = None
        if hidden_rows is not None and len(hidden_rows):
            hook = self._decoder.register_forward_hook(lambda _module, _inputs, out: states.append(out[0]))
        try:
            with torch.no_grad(), _evaluating(self.module):
                if plan is None:
                    output = self.module(**inputs)
                else:
                    with attention_plan(plan, self._configs()):
                        output = self.module(**inputs)
                    if len(plan.windows) >= len(self.windows):  # else layers were left out
                        self.windows = plan.windows
        finally:
            if hook is not None:
                hook.remove()
        logits = output.logits[0] if self.keeps_rows else output.logits[0][keep]
        hidden = states[-1][0][_tensor(hidden_rows, device)] if states and hidden_rows is not None else None
        return logits, hidden

    def _configs(self) -> list[Any]:
        """Every config that a submodule reads its attention from."""
        found = {id(self.config): self.config}
        for module in self.module.modules():
            config = getattr(module, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                found[id(config)] = config
        return list(found.values())


def weights_digest(module: torch.nn.Module) -> str:
    """16 hex digits that change when any single weight or the configuration changes.

    Per tensor: name, shape, dtype, the exact sum of its raw words (two equal and opposite changes of bits would pass
    it) and 1,024 evenly spaced words (a permutation would not pass them). Reads each weight once.
    """
    digest = hashlib.sha256()
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        noise = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
        fields = {k: v for k, v in config.to_dict().items() if k not in noise}
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, tensor in module.state_dict(keep_vars=True).items():
        flat = tensor.detach().contiguous().view(-1)
        flat = flat.view(words.get(flat.element_size(), torch.uint8))
        total = sum(int(part.sum(dtype=torch.int64)) for part in flat.split(_CHUNK))
        samples = flat[:: max(1, len(flat) // _SAMPLES)].cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{total}".encode() + samples)
    return digest.hexdigest()[:16]


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Dropout off within, even if a trainer left it on."""
    training = [m for m in module.modules() if m.training] if module.training else []
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def _context_length(config: Any) -> int:
    """Positions up to which a token's keys do not depend on how long the text becomes."""
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")
    lengths = (getattr(config, name, None) for name in names)
    length = next((n for n in lengths if isinstance(n, int) and n > 0), NO_CONTEXT_LIMIT)
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if parameters.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            original = parameters.get("original_max_position_embeddings")
            length = min(length, original or length)
    return length


def _tensor(array: IntArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(device)
