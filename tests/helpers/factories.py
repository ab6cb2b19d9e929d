"""One factory per runtime under test: name -> (build, tolerance in nats).

A factory returns a fresh runtime with at least 16 sequences, a context of at least 64 tokens, room for at least 512
tokens, and a vocabulary of at least 8 tokens. Tolerance 0 means bit-identical logits however the work is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from likely.runtimes.protocol import Runtime
from likely.runtimes.toy import ToyRuntime


def toy() -> Runtime:
    return ToyRuntime.random(11, seed=3, order=4, context_length=64, tokens_held=1024, sequences=32)


def torch_runtime(name: str, kv_dtype: str | None = None) -> Callable[[], Runtime]:
    def build() -> Runtime:
        from tiny_torch import tiny_module

        from likely.runtimes.torch.runtime import TorchRuntime

        module = tiny_module(name)
        return TorchRuntime(module, tokens_held=1024, sequences=64, tokens_per_call=16, kv_dtype=kv_dtype)

    return build


def aligned(kind: str, name: str) -> Callable[[], Runtime]:
    def build() -> Runtime:
        from scripts import script
        from tiny_torch import tiny_module

        module = script("aligned_caches")
        make = {"repad": module.RepadTorchRuntime, "group": module.GroupTorchRuntime}[kind]
        return make(tiny_module(name), tokens_held=1024, sequences=64, tokens_per_call=16)

    return build


def llamacpp(kind: str, dtype: str) -> Callable[[], Runtime]:
    def build() -> Runtime:
        import tempfile
        from pathlib import Path

        from tiny_gguf import write_tiny_gemma3, write_tiny_llama

        from likely.runtimes.llamacpp.runtime import LlamaCppRuntime

        write = {"llama": write_tiny_llama, "gemma3": write_tiny_gemma3}[kind]
        with tempfile.TemporaryDirectory() as folder:  # llama.cpp keeps its own view of the file
            path = write(Path(folder) / "tiny.gguf", dtype=dtype)
            return LlamaCppRuntime(
                path, context=600, sequences=64, threads=1, invariant=None if dtype == "F32" else True
            )

    return build


def native(name: str, dtype: str) -> Callable[[], Runtime]:
    def build() -> Runtime:
        import os
        import tempfile
        from unittest.mock import patch

        from tiny_torch import tiny_folder

        from likely.runtimes.native.build import library
        from likely.runtimes.native.runtime import NativeRuntime

        library()  # stays in the cache of whoever runs the tests; packed weights do not
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, LIKELY_CACHE=folder):
            return NativeRuntime(
                tiny_folder(name), dtype=dtype, threads=1, tokens_held=1024, sequences=64, tokens_per_call=16
            )

    return build


def own_codes(name: str) -> Callable[[], Runtime]:
    """A file whose matrices have several types, run from its own codes."""

    def build() -> Runtime:
        import os
        import tempfile
        from pathlib import Path
        from unittest.mock import patch

        from tiny_gguf import write_tiny_gemma3, write_tiny_llama

        from likely.runtimes.native.build import library
        from likely.runtimes.native.runtime import NativeRuntime

        types = ["Q4_0", "Q5_1", "Q8_0", "Q4_1", "Q5_0", "BF16"] if name == "llama" else ["Q4_K", "Q6_K", "Q5_K"]
        write = {"llama": write_tiny_llama, "gemma3": write_tiny_gemma3}[name]
        sizes = {} if name == "llama" else {"dim": 256, "ffn": 256, "layers": 2}
        library()
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, LIKELY_CACHE=folder):
            path = write(Path(folder) / "tiny.gguf", dtype=lambda tensor: types[len(tensor) % len(types)], **sizes)
            return NativeRuntime(path, dtype="file", threads=1, tokens_held=1024, sequences=64, tokens_per_call=16)

    return build


def recurrent(name: str) -> Callable[[], Runtime]:
    """States are kept so often that going back meets every case; falcon_h1 has keys and values beside its states."""

    def build() -> Runtime:
        from tiny_states import state_module

        from likely.runtimes.recurrent.runtime import RecurrentRuntime
        from likely.sequence.convert import from_transformers

        model = from_transformers(state_module(name))
        return RecurrentRuntime(model, tokens_held=1024, sequences=64, tokens_per_call=16, checkpoint_every=4)

    return build


FACTORIES: dict[str, tuple[Callable[[], Runtime], float]] = {
    "toy": (toy, 0.0),
    "torch": (torch_runtime("llama"), 1e-4),
    "torch-gemma3": (torch_runtime("gemma3"), 1e-4),
    "torch-bfp12": (torch_runtime("llama", "bfp12n8/bfp16n8"), 0.05),  # a code may flip
    "torch-repad": (aligned("repad", "llama"), 1e-4),
    "torch-repad-gemma3": (aligned("repad", "gemma3"), 1e-4),
    "torch-group": (aligned("group", "llama"), 1e-4),
    "llamacpp": (llamacpp("llama", "Q8_0"), 0.0),
    "llamacpp-f16": (llamacpp("llama", "F16"), 0.0),
    "llamacpp-f32": (llamacpp("llama", "F32"), 1e-4),
    "llamacpp-gemma3": (llamacpp("gemma3", "Q8_0"), 0.0),
    "native": (native("llama", "int8"), 0.0),
    "native-bf16": (native("qwen3", "bfloat16"), 0.0),
    "native-fp32": (native("qwen2", "float32"), 0.0),
    "native-gemma3": (native("gemma3", "int8"), 0.0),
    "native-file": (own_codes("llama"), 0.0),
    "native-file-gemma3": (own_codes("gemma3"), 0.0),
    "native-int4": (native("qwen2", "int4"), 0.0),
    "recurrent": (recurrent("mamba2"), 1e-4),
    "recurrent-falcon_h1": (recurrent("falcon_h1"), 1e-4),
    "torch-recompute": (torch_runtime("mamba"), 1e-4),
}
OFTEN = ("toy", "torch", "llamacpp", "native", "native-file")  # the others differ from one of these in a format


def runtime_cases(names: Iterable[str] = FACTORIES) -> list[Any]:
    """Parameters of a suite that runs over runtimes: of variants only every sixth case is not slow."""
    return [name if name in OFTEN else pytest.param(name, marks=pytest.mark.sampled(6)) for name in names]
