"""A small target and a smaller draft of one tokenizer, trained on Tiny Shakespeare: a pair for speculation studies.

Target: 4 layers of 256; draft: 1 layer of 64; both Llama models over a byte-level BPE of 512 tokens.  Trained once and
kept in the cache folder; one recipe always goes to one folder.

  python reproductions/tiny_pair.py           300 and 150 steps (half a minute on two idle cores)
  python reproductions/tiny_pair.py --full   500 and 600 steps (two minutes)
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study import run_script

from likely.data import find_set, load_records
from likely.io.hashes import cache_dir, fingerprint
from likely.runtimes.machine import cores

DATA = ("tinyshakespeare", "input.txt.gz")
TRAIN_SHARE = 0.9  # of the characters; the rest is for validation and prompts
WINDOW = 128


@dataclass(frozen=True)
class Recipe:
    """How one model of the pair is made; `layers` of `width`, `steps` of 16 windows of 128 tokens."""

    layers: int
    width: int
    heads: int
    steps: int
    learning_rate: float
    vocab: int = 512
    batch: int = 16
    seed: int = 0

    @property
    def key(self) -> str:
        return fingerprint([asdict(self), find_set(DATA[0]).find(DATA[1]).sha256, WINDOW], 12)


QUICK = {"target": Recipe(4, 256, 4, 300, 1e-3), "draft": Recipe(1, 64, 2, 150, 4e-3)}
FULL = {"target": Recipe(4, 256, 4, 500, 1e-3), "draft": Recipe(1, 64, 2, 600, 4e-3)}


def texts() -> tuple[str, str]:
    """(training text, validation text)"""
    text = "\n".join(row["text"] for row in load_records(*DATA))
    cut = int(TRAIN_SHARE * len(text))
    return text[:cut], text[cut:]


def pair(*, full: bool = False, report: Callable[[str], None] = print) -> dict[str, Path]:
    """Folders (safetensors, config, tokenizer) of "target" and "draft", trained unless the cache has them."""
    return {name: trained(name, recipe, report) for name, recipe in (FULL if full else QUICK).items()}


def trained(name: str, recipe: Recipe, report: Callable[[str], None] = print) -> Path:
    folder = cache_dir() / "tiny_pair" / f"{name}-{recipe.key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{name}-"))
    try:
        tokenizer = make_tokenizer(texts()[0], recipe.vocab)
        tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')
        train, validation = (np.array(tokenizer.encode(text).ids, np.int64) for text in texts())
        module = fit(recipe, train, validation, lambda line: report(f"{name}: {line}"))
        save(module, partial)
        partial.chmod(0o755)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def make_tokenizer(text: str, vocab: int) -> Any:
    """A byte-level BPE without control tokens, learned from the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def fit(recipe: Recipe, train: NDArray, validation: NDArray, report: Callable[[str], None]) -> Any:
    """A Llama model after `steps` steps of AdamW on random windows, cosine schedule, bf16 where autocast has it."""
    import torch
    import transformers

    torch.manual_seed(recipe.seed)
    config = transformers.LlamaConfig(
        vocab_size=recipe.vocab, hidden_size=recipe.width, intermediate_size=8 * recipe.width // 3 // 8 * 8,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    warm = max(1, recipe.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min((s + 1) / warm, 0.05 + 0.95 * (1 + np.cos(np.pi * min(s / recipe.steps, 1))) / 2),
    )
    windows = [validation[i : i + WINDOW + 1] for i in range(0, len(validation) - WINDOW, WINDOW)]
    held = torch.from_numpy(np.stack(windows[:32]))
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        at = rng.integers(0, len(train) - WINDOW - 1, recipe.batch)
        rows = torch.from_numpy(np.stack([train[i : i + WINDOW + 1] for i in at]))
        loss = nats_per_token(module, rows)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            with torch.no_grad():
                validated = nats_per_token(module, held)
            report(f"step {step + 1}: {loss.item():.3f} nats per token in training, {validated.item():.3f} held out")
    return module.eval()


def nats_per_token(module: Any, rows: Any) -> Any:
    """Mean -log p of the tokens 1.. of rows (B, T)."""
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        logits = module(input_ids=rows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def save(module: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    module.save_pretrained(folder)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="train longer")
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, folder in pair(full=options.full).items():
        print(f"{name}: {folder}")


if __name__ == "__main__":
    run_script(main)
