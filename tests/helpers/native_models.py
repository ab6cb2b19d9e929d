"""Small random models for the native runtime: what it must be right on, and plain ways to run both sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import transformers

from likely.runtimes.protocol import Want, Work
from likely.runtimes.rows import log_softmax

VOCAB = 101  # no multiple of 16, 32 or 64; so are the widths below
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GEMMA = {
    **SIZES,
    "num_key_value_heads": 1,
    "num_attention_heads": 3,
    "query_pre_attn_scalar": 20,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def llama(**changes):
    return transformers.LlamaConfig(**{**SIZES, "head_dim": 12, **changes})


def gemma2(**changes):
    own = {**GEMMA, "head_dim": 24, "sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
    return transformers.Gemma2Config(**{**own, **changes})


def gemma(**changes):
    return transformers.Gemma3TextConfig(**{**GEMMA, "head_dim": 24, "sliding_window": 8, **changes})


CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": llama,
    "llama, one table of tokens": lambda: llama(tie_word_embeddings=True),
    "llama, heads of 8": lambda: llama(hidden_size=32, num_attention_heads=4, head_dim=8),
    "llama, heads of 24": lambda: llama(head_dim=24),
    "llama, heads of 64": lambda: llama(hidden_size=192, num_attention_heads=3, num_key_value_heads=3, head_dim=64),
    "llama, seven heads a key": lambda: llama(
        hidden_size=112, num_attention_heads=14, num_key_value_heads=2, head_dim=64
    ),
    "llama, whole groups": lambda: llama(
        hidden_size=128, intermediate_size=192, num_attention_heads=4, head_dim=32, vocab_size=96
    ),
    "llama, linear scaling": lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
    "llama, llama3 scaling": lambda: llama(rope_parameters=LLAMA3),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen2, windows": lambda: transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, head_dim=16, sliding_window=None),
    "mistral, windows": lambda: transformers.MistralConfig(**SIZES, sliding_window=8),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
    "qwen3, heads of 128": lambda: transformers.Qwen3Config(**SIZES, head_dim=128, tie_word_embeddings=True),
    "gemma2": gemma2,
    "gemma2, no soft caps": lambda: gemma2(attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3, short window": gemma,
    "gemma3, a window over blocks": lambda: gemma(sliding_window=90),
    "gemma3, a window longer than any text": lambda: gemma(sliding_window=400),
    "gemma3, soft cap, own head": lambda: gemma(final_logit_softcapping=5.0, tie_word_embeddings=False, head_dim=40),
}
LENGTH = 150


def tokens_of(n, seed=0, vocab=VOCAB - 5):
    return np.random.default_rng(seed).integers(0, vocab, n)


def forward(runtime, sequence, tokens, parents=None, want=Want.ALL, **more):
    parents = None if parents is None else np.asarray(parents)
    return runtime.forward([Work(sequence, np.asarray(tokens), parents, want=want, **more)])[0]


def rows_of(runtime, tokens, **options):
    """Logits of every token, in one call on a sequence of its own."""
    sequence = runtime.open()
    rows = forward(runtime, sequence, tokens, **options).logits
    runtime.close(sequence)
    return rows


def plain(module, tokens, **options):
    """The module called by hand: the reference knows nothing of this package."""
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([list(map(int, tokens))]), use_cache=False, **options).logits
    return logits[0].float().numpy()


def nats_apart(found, expected):
    """(n,) largest difference of log-probabilities of each row."""
    return np.abs(log_softmax(found) - log_softmax(expected)).max(1)


def path_to(parents, node):
    path = []
    while node != -1:
        path.append(int(node))
        node = parents[node]
    return path[::-1]


def fma32(a, b, c):
    """a b + c in fp32, rounded once: in fp64 to an odd last bit where it is not exact, which keeps the second rounding
    from a wrong tie."""
    product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & (error != 0), odd, total).astype(np.float32)
