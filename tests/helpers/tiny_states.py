"""Small random state-space models of transformers, and their folders with a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from tiny_torch import VOCAB, folder_of, module_of

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
MAMBA2 = {**SMALL, "state_size": 8, "head_dim": 8, "num_heads": 8, "n_groups": 2, "chunk_size": 8, "conv_kernel": 4}
FALCON = {
    **SMALL,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
MULTIPLIERS = {  # of Falcon-H1, all different and none 1
    "embedding_multiplier": 1.7,
    "lm_head_multiplier": 0.6,
    "key_multiplier": 0.7,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.9,
    "mlp_multipliers": [0.75, 1.4],
    "ssm_multipliers": [0.9, 1.1, 0.8, 1.25, 0.7],
}
STATE_CONFIGS = {
    "mamba": lambda **more: transformers.MambaConfig(**{**SMALL, "state_size": 4, **more}),
    "mamba2": lambda **more: transformers.Mamba2Config(**{**MAMBA2, **more}),
    "falcon_h1": lambda **more: transformers.FalconH1Config(**{**FALCON, **MULTIPLIERS, **more}),
}


def state_module(name: str, *, seed: int = 0, std: float = 0.25, **settings):
    """Matrices of this standard deviation; norms, biases, decays and skips moved from where they begin."""
    return module_of(STATE_CONFIGS[name](**settings), seed=seed, std=std, vectors=0.2)


def byte_tokenizer() -> Tokenizer:
    """One token per byte, then <end>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return backend


def readable_folder(name: str, *, seed: int = 0) -> Path:
    """A transformers folder with the tokenizer, there until the process ends."""
    folder = folder_of(state_module(name, seed=seed, vocab_size=257, eos_token_id=256, pad_token_id=256))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "model_max_length": 256}))
    return folder
