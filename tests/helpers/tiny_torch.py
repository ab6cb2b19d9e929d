"""Small random transformers models, one per kind of attention: what the torch runtime must be right on."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # ids of end tokens outside the tiny vocabularies are no news

import torch
import transformers

torch.set_num_threads(1)  # on models of this size a second thread only waits, and on a busy machine for long

VOCAB = 64
WINDOW = 8
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, head_dim=8, sliding_window=WINDOW),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=WINDOW),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**SMALL, "num_hidden_layers": 3},
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **{**GROUPED, "max_position_embeddings": 8192},
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "mamba": lambda: transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
}
RECOMPUTED = ("mamba", "bloom")


def tiny_module(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A causal language model with matrices of standard deviation 0.3, so that logits spread over some nats."""
    return module_of(CONFIGS[name](), seed=seed).to(dtype).eval()


def module_of(
    config: transformers.PretrainedConfig, *, seed: int = 0, std: float = 0.3, vectors: float = 0.0
) -> torch.nn.Module:
    """A module with matrices of this standard deviation; `vectors`: how far norms and biases are moved from 1 or 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=std)
            elif vectors:
                with torch.no_grad():
                    parameter.add_(vectors * torch.randn_like(parameter))
    return module.eval()


@functools.cache
def tiny_folder(name: str, seed: int = 0) -> Path:
    """The same model as a safetensors folder, there until the process ends."""
    return folder_of(tiny_module(name, seed=seed))


def folder_of(module: torch.nn.Module) -> Path:
    """The module as a safetensors folder, there until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="likely-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    module.save_pretrained(folder)
    return folder


def idle_layers(layers=6, idle=(2, 3)):
    """A small Llama in which some layers add nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128,
        )  # fmt: skip
        module = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        for n in idle:
            module.model.layers[n].self_attn.o_proj.weight.data.zero_()
            module.model.layers[n].mlp.down_proj.weight.data.zero_()
    from likely.runtimes.torch.runtime import TorchRuntime

    return TorchRuntime(module.eval(), tokens_held=2048, revision="idle")
