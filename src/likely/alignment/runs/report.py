"""What training did to a model's likelihoods: preferences, perplexity, calibration, KL, rewards, win rate.  torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from likely.alignment.labellers import PreferencePair
from likely.alignment.methods import PreferenceMethod, implied_preference
from likely.alignment.rewards import Reward, rewards_of
from likely.alignment.scores import Completion, ReferenceSums, alike, completion_scores, normalise
from likely.alignment.sft import MaskedText, text_scores
from likely.alignment.sources import FromPolicy, Prompt
from likely.metrics.bins import ece
from likely.metrics.checks import Floats
from likely.metrics.intervals import Accuracy
from likely.metrics.proper import brier_binary
from likely.training.policy import Policy

TOGETHER = 8  # completions in one call


@dataclass(frozen=True)
class SumsAndLengths:
    """(N,) log-probabilities, nats, and tokens of completions."""

    sums: Floats
    lengths: Floats


def scored(
    policy: Policy, completions: Seq[Completion], progress: Callable[[int], None] | None = None
) -> SumsAndLengths:
    """log p of completions under the policy as it is, without gradients."""
    order = sorted(range(len(completions)), key=lambda i: alike(completions[i]))
    sums, lengths = np.zeros(len(order)), np.zeros(len(order))
    with torch.no_grad():
        for start in range(0, len(order), TOGETHER):
            places = order[start : start + TOGETHER]
            scores = completion_scores(policy.module, [completions[i] for i in places])
            sums[places], lengths[places] = scores.sum.tolist(), scores.length.tolist()
            if progress:
                progress(len(places))
    return SumsAndLengths(sums, lengths)


def preference_report(
    policy: Policy, pairs: Seq[PreferencePair], reference: ReferenceSums, method: PreferenceMethod
) -> dict[str, Any]:
    """Held-out pairs under the policy.

    likelihood_accuracy  share with log p(chosen) > log p(rejected), and its 95 % interval;  per_token: of the means
    reward_accuracy      share with a larger log-ratio to the reference for the chosen one; None while both are equal
    log_ratio_margin     mean log-ratio of the chosen less that of the rejected, nats
    calibration_error, brier  of the preference probability that the method's own margin stands for
    perplexity           exp(−nats per token) of the chosen and of the rejected completions
    """
    firsts, seconds = [p.first for p in pairs], [p.second for p in pairs]
    found = scored(policy, firsts + seconds)
    frozen = reference(firsts + seconds).double().cpu()
    n, better = len(pairs), np.array([1.0 if p.preference >= 0.5 else -1.0 for p in pairs])

    def difference(values: Floats) -> Floats:
        return better * (values[:n] - values[n:])

    values = normalise(method.normaliser, torch.tensor(found.sums), torch.tensor(found.lengths), frozen)
    chance = np.asarray(implied_preference(method, values[:n] - values[n:]))
    labels = (better > 0).astype(np.float64)
    chance, labels = both_ways(chance, labels)
    ratio = difference(found.sums - frozen.numpy())
    moved = bool(np.any(np.abs(ratio) > 1e-3))  # sums of float32, in batches of another shape
    chosen = np.where(better > 0, np.arange(n), np.arange(n) + n)
    rejected = np.where(better > 0, np.arange(n) + n, np.arange(n))
    return {
        "pairs": n,
        "likelihood_accuracy": Accuracy(int((difference(found.sums) > 0).sum()), n).to_dict(),
        "per_token_accuracy": Accuracy(int((difference(found.sums / found.lengths) > 0).sum()), n).to_dict(),
        "reward_accuracy": Accuracy(int((ratio > 0).sum()), n).to_dict() if moved else None,
        "log_ratio_margin": float(ratio.mean()),
        "calibration_error": float(ece(chance, labels)),
        "brier": float(brier_binary(chance, labels)),
        "chosen_logprob": float(found.sums[chosen].mean()),
        "rejected_logprob": float(found.sums[rejected].mean()),
        "chosen_perplexity": _perplexity(found, chosen),
        "rejected_perplexity": _perplexity(found, rejected),
    }


def text_report(policy: Policy, texts: Seq[MaskedText]) -> dict[str, Any]:
    """Held-out texts under the policy: perplexity of the tokens that would be learned."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(texts), TOGETHER):
            scores = text_scores(policy.module, texts[start : start + TOGETHER])
            total, tokens = total + scores.sum.sum().item(), tokens + int(scores.length.sum())
    return {
        "texts": len(texts),
        "tokens": tokens,
        "nats_per_token": -total / tokens,
        "perplexity": _exp(-total / tokens),
    }


def sample_report(
    policy: Policy, prompts: Seq[Prompt], reference: ReferenceSums, *, max_tokens: int, seed: int,
    reward: Reward | None = None, before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Samples of the policy (temperature 1, one a prompt) and what they say.

    kl        KL(policy ‖ reference) per sequence, nats: the mean log-ratio, unbiased, so that it may be negative
    rewards   of each sample;  win_rate: against those of `before`, the report before training, ties ½
    """
    policy.refresh()
    drawn = FromPolicy(policy.lm, n=1, max_tokens=max_tokens).draw(prompts, seed=seed)
    texts = [c.completions[0] for c in drawn]
    ratio = scored(policy, texts).sums - reference(texts).double().cpu().numpy()
    found: dict[str, Any] = {
        "prompts": len(texts),
        "kl": float(ratio.mean()),
        "kl_standard_error": _standard_error(ratio),
        "tokens": float(np.mean([len(t.tokens) for t in texts])),
        "finished": float(np.mean([t.finished for t in texts])),
    }
    if reward is not None:
        values = rewards_of(reward, texts)
        found |= {"reward": float(values.mean()), "reward_standard_error": _standard_error(values)}
        if before is not None:
            earlier = np.array(before["rewards"])
            found["win_rate"] = float(np.mean(np.where(values == earlier, 0.5, values > earlier)))
        found["rewards"] = values.tolist()
    return found


def report_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before, after) for a table; of shares with an interval the share."""
    rows: list[tuple[str, str, str]] = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if name == "samples" and isinstance(new, Mapping):
            rows += [(f"samples: {what}", was, now) for what, was, now in report_rows(old or {}, new)]
        elif name != "rewards":
            rows.append((name.replace("_", " "), _shown(old), _shown(new)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("accuracy")
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def both_ways(chance: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """Each pair as (a, b) and as (b, a): which of the two stands first must not matter to calibration."""
    return np.concatenate([chance, 1 - chance]), np.concatenate([labels, 1 - labels])


def _perplexity(found: SumsAndLengths, places: Any) -> float:
    return _exp(-float(found.sums[places].sum() / found.lengths[places].sum()))


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def _standard_error(values: Floats) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
