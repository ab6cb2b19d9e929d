"""Whether a model may run over slots: its numbers are compared with its own plain forward, once, when it is loaded."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from likely.runtimes.protocol import FloatArray, IntArray, Runtime, Want, Work

FP32_TOLERANCE = 1e-3  # largest difference of a logit, in units of max(1, the logits' standard deviation)
LOW_PRECISION_TOLERANCE = 0.05  # mean difference, in the same units: a wrong mask gives about 1
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class ModuleRuntime(Runtime, Protocol):
    """A runtime over a transformers module, with the module's own forward beside it."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def text_config(self) -> Any: ...
    @property
    def layer_windows(self) -> list[int | None]: ...
    def plain_logits(self, tokens: IntArray) -> FloatArray: ...


def why_not_slots(runtime: ModuleRuntime) -> str | None:
    """None if a text alone, two at once, a fork and a tree give the logits of the plain forward; else the reason."""
    rng = np.random.default_rng(0)
    room = min(9, runtime.context_length - 3)
    if room < 5:
        return "its context is too short to be checked"
    try:
        first, second, nodes = (rng.integers(0, runtime.vocab_size, n) for n in (room, 5, 4))
        alone, a, b = runtime.open(), runtime.open(), runtime.open()
        results: list[tuple[IntArray, int | None]] = [(first, None), (first, None), (second, None)]
        rows = [runtime.forward([Work(alone, first, want=Want.ALL)])[0].logits]
        rows += [o.logits for o in runtime.forward([Work(a, first, want=Want.ALL), Work(b, second, want=Want.ALL)])]
        fork, parents = runtime.fork(a, 4), np.array([-1, 0, 0, 1])
        tree = runtime.forward([Work(fork, nodes, parents, want=Want.ALL)])[0].logits
        assert tree is not None
        for path in ([0, 1, 3], [0, 2]):
            results.append((np.concatenate([first[:4], nodes[path]]), len(path)))
            rows.append(tree[path])
        for sequence in (alone, a, b, fork):
            runtime.close(sequence)
    except Exception as error:  # whatever a foreign model raises when it is called in a way it does not know
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if (reason := _why_not_windows(runtime)) is not None:
        return reason
    known = {}
    for (tokens, last), found in zip(results, rows, strict=True):
        assert found is not None
        text = tuple(tokens.tolist())
        if text not in known:
            known[text] = runtime.plain_logits(tokens)
        plain = known[text][-(last or len(tokens)) :]
        if (reason := _disagreement(found, plain, runtime.dtype)) is not None:
            return reason
    return None


def is_causal(runtime: ModuleRuntime) -> bool:
    """Whether the plain forward's rows stay as they are when the text goes on."""
    text = np.random.default_rng(1).integers(0, runtime.vocab_size, min(8, runtime.context_length))
    some = len(text) // 2
    return _disagreement(runtime.plain_logits(text)[:some], runtime.plain_logits(text[:some]), runtime.dtype) is None


def _disagreement(found: FloatArray, plain: FloatArray, dtype: torch.dtype) -> str | None:
    difference = np.abs(found - plain) / max(1.0, float(plain.std()))
    if dtype in (torch.float32, torch.float64):
        worst, allowed = float(difference.max()), FP32_TOLERANCE
    else:
        worst, allowed = float(difference.mean()), LOW_PRECISION_TOLERANCE
    return None if worst <= allowed else f"its logits over slots differ by {worst:.2g} (allowed: {allowed})"


def _why_not_windows(runtime: ModuleRuntime) -> str | None:
    """The check's texts are shorter than most windows, so that windows are compared with the configuration."""
    config: Any = runtime.text_config
    windows = [w for w in runtime.layer_windows if w is not None]
    kinds: list[str] | None = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    if not runtime.layer_windows:
        return "its layers do not use transformers' attention interface"
    if kinds:
        if unknown := sorted(set(kinds) - KNOWN_LAYERS):
            return f"it has layers of kind {', '.join(unknown)}"
        wanted = kinds.count("sliding_attention")
    else:
        if getattr(config, "attention_chunk_size", None) is not None:
            return "it attends in chunks"
        slides = getattr(config, "use_sliding_window", True) and window and window < runtime.context_length
        wanted = len(runtime.layer_windows) if slides else len(windows)
    if len(windows) != wanted or any(w != window for w in windows):
        return "its layers do not say which window they attend in"
    return None
