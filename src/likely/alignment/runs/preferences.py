"""A user's preference pairs become an adapter, with a report of before and after.  torch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from likely.alignment.labellers import PreferencePair
from likely.alignment.methods import PreferenceMethod, pair_batch_loss
from likely.alignment.rewards import Reward, check_tokens
from likely.alignment.runs.folder import BEFORE, Run, RunProgress, RunSettings, Say, data_of, estimate, steps_of
from likely.alignment.runs.report import preference_report, sample_report
from likely.alignment.runs.rows import read_pairs
from likely.alignment.scores import ReferenceSums
from likely.alignment.sources import Prompt
from likely.training.fit import fit
from likely.training.loop import LossOutput

SAMPLED_PROMPTS, SAMPLED_TOKENS = 32, 48  # of the report
FALL = 0.2  # of the winners' log-probability, beyond which a warning is due


def train_on_preferences(
    pairs: Path | str,
    method: PreferenceMethod,
    settings: RunSettings,
    *,
    test: Path | str | None = None,
    reward: Reward | None = None,
    sampled_prompts: int = SAMPLED_PROMPTS,
    only_estimate: bool = False,
    say: Say = lambda line: None,
    progress: RunProgress | None = None,
) -> dict[str, Any]:
    """Train a model on preference pairs (see `rows.read_pairs`); returns the report, which is in the folder, too.

    test      pairs of the report; None: a held-out share of the file
    reward    of the samples in the report
    only_estimate  what it would take, and nothing else
    The same call on the same folder goes on where it was stopped; one that is finished gives its report.
    """
    with Run.open(settings, say) as run:
        check_tokens(reward, run.encoder.tokenizer.fingerprint)
        training, held = run.divide(pairs, read_pairs, test)
        steps = run.settings.training
        about = {
            "method": method.name, "settings": described(method), "data": data_of(pairs, len(training)),
            "test": None if test is None else data_of(test, len(held)),
        }  # fmt: skip

        def loss(batch: Seq[PreferencePair], sums: ReferenceSums | None = None) -> LossOutput:
            texts = [p.first for p in batch] + [p.second for p in batch]
            known = sums(texts) if sums is not None and method.needs_reference else None
            if known is None and method.needs_reference:
                known = torch.zeros(len(texts))
            return pair_batch_loss(method, run.policy.module, batch, known)

        if not only_estimate and (finished := run.begin(about)) is not None:
            run.say(f"{run.out}: this run is finished, here is its report")
            return finished
        scored = [*(training + held) * method.needs_reference, *held, *held]  # the reference, then both reports
        expected = estimate(run, training, loss, steps, _length, scored=scored)
        run.say(expected.line())
        if only_estimate:
            return {**about, "estimate": asdict(expected), **run.rows_left_out()}
        reference = run.reference([t for p in training + held for t in (p.first, p.second)], progress)
        prompts = [Prompt(p.first.prompt, p.first.prompt_text, p.row) for p in held][:sampled_prompts]

        def report(before: dict[str, Any] | None = None) -> dict[str, Any]:
            found = preference_report(run.policy, held, reference, method)
            if prompts:
                found["samples"] = sample_report(
                    run.policy, prompts, reference, max_tokens=SAMPLED_TOKENS, seed=0, reward=reward,
                    before=None if before is None else before["samples"],
                )  # fmt: skip
            return found

        before = run.once(BEFORE, report)
        if method.needs_reference and abs(before["log_ratio_margin"]) > 1e-2:
            run.say(f"the policy is not its reference at the start (margin {before['log_ratio_margin']:.3g} nats)")
        losses = fit(
            run.policy, training, lambda batch: loss(batch, reference), steps, length=_length, folder=run.out,
            recipe=about, processes=run.processes, shard=settings.shard, log=run.log(),
            progress=steps_of(progress, steps.steps),
        )  # fmt: skip

        def whole() -> dict[str, Any]:
            after = report(before)
            _warn_of_falling_winners(before, after, say)
            return {**about, **run.rows_left_out(), "steps": len(losses), "losses": losses,
                    "estimate": asdict(expected), "before": before, "after": after}  # fmt: skip

        return run.finish(whole)


def _length(pair: PreferencePair) -> int:
    return len(pair.first) + len(pair.second)


def described(method: PreferenceMethod) -> dict[str, Any]:
    """A method's numbers, as JSON."""
    return {
        "link": repr(method.link), "normaliser": method.normaliser, "sft_weight": method.sft_weight,
        "labels": method.labels(torch.tensor([0.0, 1.0])).tolist(),
    }  # fmt: skip


def _warn_of_falling_winners(before: dict[str, Any], after: dict[str, Any], say: Say) -> None:
    """Both sides' likelihoods may fall while their margin grows; where the winners' falls far, that is said."""
    old, new = before["chosen_logprob"], after["chosen_logprob"]
    if new < old * (1 + FALL):
        say(
            f"the log-probability of the chosen completions fell from {old:.1f} to {new:.1f} nats: a smaller learning "
            f"rate, fewer steps or an sft_weight (slic) keep it up"
        )
