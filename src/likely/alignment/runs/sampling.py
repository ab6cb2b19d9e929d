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
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line, Results, read_lines, unfinished
from likely.io.whole_file import write_for_user
from likely.models.load import load_local

TOGETHER = 16  # prompts whose samples are drawn in one loop, and lost where it is stopped


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
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw n samples per prompt, compare them by σ(Δreward / scale) and write pairs as JSONL; returns a summary.

    Rows hold text and ids: training takes the ids, since text that is tokenised again may have other ones.  A run that
    was stopped left what it had drawn in OUT.part: the same call goes on there.
    """
    lm = load_local(model, runtime="torch", **({} if threads is None else {"threads": threads}))  # type: ignore[arg-type]
    check_tokens(reward, lm.tokenizer.fingerprint)
    encoder = RowEncoder(lm, min(max_length, lm.runtime.context_length), "drop")
    rows = read_prompts(prompts, encoder, limit=limit)
    source = FromPolicy(lm, n=n, temperature=temperature, top_k=top_k, max_tokens=max_tokens)
    drawing = {name: getattr(source, name) for name in ("n", "temperature", "top_k", "top_p", "max_tokens")}
    header = {
        "kind": "pairs", "model": lm.info.sha256, "tokenizer": lm.tokenizer.fingerprint, "source": drawing,
        "reward": fingerprint(repr(reward)), "pairing": pairing, "hard": hard, "scale": scale, "seed": seed,
    }  # fmt: skip
    lines = [Line(prompt.row, {}, fingerprint(list(prompt.tokens))) for prompt in rows]
    prompt_at = {prompt.row: prompt for prompt in rows}
    part = out.with_name(out.name + ".part")
    with Results(part, header, overwrite=overwrite) as results:
        for chunk in unfinished(lines, results, str(prompts), size=TOGETHER):
            drawn = [c.rewarded(reward) for c in source.draw([prompt_at[line.number] for line in chunk], seed=seed)]
            made = []
            for line, candidates in zip(chunk, drawn, strict=True):
                assert candidates.rewards is not None
                rng = np.random.default_rng([seed, line.number])
                pairs = pairs_of([candidates], pairing, RewardDifference(reward, scale), hard=hard, rng=rng)
                rewards = [r if np.isfinite(r) else None for r in candidates.rewards.tolist()]  # None: −inf
                made.append({"line": line.number, "input": line.digest, "rewards": rewards,
                             "pairs": [_row(pair, lm.tokenizer.fingerprint) for pair in pairs]})  # fmt: skip
            results.write(record for record, line in zip(made, chunk, strict=True) if line.number not in results.done)
            if progress:
                progress("prompts", len(results.done), len(rows))
    lm.runtime.shutdown()
    wanted = prompt_at.keys()
    records = [line.record for line in read_lines(part) if line.record.get("line") in wanted]
    found = [row for record in records for row in record["pairs"]]
    write_for_user(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode())
    part.unlink()
    values = np.array([-np.inf if r is None else r for record in records for r in record["rewards"]])
    return {
        "prompts": len(rows), "dropped": len(encoder.dropped), "samples": len(values), "pairs": len(found),
        "reward": float(values.mean()), "reward_deviation": float(values.std()), "model": model, "source": drawing,
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
