"""Preference pairs from prompts: a model's own samples, compared by a reward.  torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from likely.alignment.labellers import Hardness, PreferencePair, RewardDifference
from likely.alignment.pairing import Pairing, pairs_of
from likely.alignment.rewards import Reward, check_tokens
from likely.alignment.runs.rows import RowEncoder, read_prompts
from likely.alignment.sources import FromPolicy
from likely.io.whole_file import write_for_user
from likely.models.load import load_local


def write_pairs(
    prompts: Path | str,
    out: Path,
    reward: Reward,
    *,
    model: str,
    n: int = 4,
    pairing: Pairing = "best_worst",
    hard: Hardness = False,
    scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    max_tokens: int = 64,
    max_length: int = 512,
    limit: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw n samples per prompt, compare them by σ(Δreward / scale) and write pairs as JSONL; returns a summary.

    Rows hold text and ids: training takes the ids, since text that is tokenised again may have other ones.
    """
    lm = load_local(model, runtime="torch", **({} if threads is None else {"threads": threads}))  # type: ignore[arg-type]
    check_tokens(reward, lm.tokenizer.fingerprint)
    encoder = RowEncoder(lm, min(max_length, lm.runtime.context_length), "drop")
    rows = read_prompts(prompts, encoder, limit=limit)
    source = FromPolicy(lm, n=n, temperature=temperature, top_k=top_k, max_tokens=max_tokens)
    rng, found, rewards = np.random.default_rng(seed), [], []
    for start in range(0, len(rows), source.together):
        drawn = [c.rewarded(reward) for c in source.draw(rows[start : start + source.together], seed=seed)]
        rewards += [c.rewards for c in drawn]
        found += pairs_of(drawn, pairing, RewardDifference(reward, scale), hard=hard, rng=rng)
        if progress:
            progress("prompts", min(start + source.together, len(rows)), len(rows))
    fingerprint = lm.tokenizer.fingerprint
    write_for_user(out, "".join(json.dumps(_row(p, fingerprint), ensure_ascii=False) + "\n" for p in found).encode())
    values = np.concatenate([r for r in rewards if r is not None])
    lm.runtime.shutdown()
    return {
        "prompts": len(rows), "dropped": len(encoder.dropped), "samples": len(values), "pairs": len(found),
        "reward": float(values.mean()), "reward_deviation": float(values.std()), "model": model,
        "source": {name: getattr(source, name) for name in ("n", "temperature", "top_k", "top_p", "max_tokens")},
    }  # fmt: skip


def _row(pair: PreferencePair, tokenizer: str) -> dict[str, Any]:
    first, second, p = pair.first, pair.second, pair.preference
    if p < 0.5:
        first, second, p = second, first, 1 - p
    return {
        "prompt": first.prompt_text, "chosen": first.text, "rejected": second.text, "p": p,
        "prompt_ids": list(first.prompt), "chosen_ids": list(first.tokens), "rejected_ids": list(second.tokens),
        "chosen_finished": first.finished, "rejected_finished": second.finished, "tokenizer": tokenizer,
    }  # fmt: skip
