"""What the lean forwards are compared with: transformers' own module, and runtimes of likely as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

import likely
from likely.models.catalog import find_model
from likely.runtimes.machine import cores


class OfRuntime:
    """A model of likely as `extend`; its sequence is cut back to `past` first."""

    def __init__(self, **options: Any):
        self._runtime = likely.load("smollm2", threads=cores(), **options).runtime
        self._sequence = self._runtime.open()

    def extend(self, tokens: list[int], past: int, *, last: bool) -> np.ndarray:
        from likely.runtimes.protocol import Want, Work

        self._runtime.truncate(self._sequence, past)
        want = Want(rows="last" if last else "all", logits=True)
        found = self._runtime.forward([Work(self._sequence, np.array(tokens), want=want)])[0].logits
        assert found is not None
        return found


class OfTransformers:
    """The module with its own cache, which is cropped to `past` first."""

    def __init__(self) -> None:
        import torch
        from transformers import DynamicCache

        from likely.runtimes.torch.gguf_module import load_gguf

        torch.set_num_threads(cores())
        self._module = load_gguf(find_model("smollm2"), dtype=torch.bfloat16, device=torch.device("cpu"))
        self._cache = DynamicCache(config=self._module.config)

    def extend(self, tokens: list[int], past: int, *, last: bool) -> np.ndarray:
        import torch
        from transformers import DynamicCache

        if not past:
            self._cache = DynamicCache(config=self._module.config)
        elif past < self._cache.get_seq_length():
            self._cache.crop(past - self._cache.get_seq_length())
        with torch.no_grad():
            out = self._module(
                input_ids=torch.tensor([tokens]), past_key_values=self._cache, logits_to_keep=1 if last else 0
            )
        logits: np.ndarray = out.logits[0].float().numpy()
        return logits
