"""A reward model from a user's preference pairs, and rewards by name.  torch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from likely.alignment.labellers import PreferencePair, bradley_terry
from likely.alignment.rewards import (
    HEAD,
    LengthReward,
    RegexReward,
    Reward,
    RewardModel,
    SentimentReward,
    bradley_terry_loss,
)
from likely.alignment.runs.folder import BEFORE, Run, RunProgress, RunSettings, Say, data_of, estimate, steps_of
from likely.alignment.runs.report import both_ways
from likely.alignment.runs.rows import read_pairs
from likely.errors import CapabilityError, DataError
from likely.metrics.bins import ece
from likely.metrics.intervals import Accuracy
from likely.metrics.proper import brier_binary
from likely.models.load import load_local
from likely.training.fit import fit
from likely.training.loop import LossOutput
from likely.training.policy import Policy, adapter_record

REWARDS = ("length", "sentiment", "regex:PATTERN", "FOLDER")


def train_reward_model(
    pairs: Path | str,
    settings: RunSettings,
    *,
    center: float = 0.01,
    test: Path | str | None = None,
    only_estimate: bool = False,
    say: Say = lambda line: None,
    progress: RunProgress | None = None,
) -> dict[str, Any]:
    """Train a Bradley–Terry reward model on preference pairs; returns the report.

    center  draws the free constant of rewards to 0: see `bradley_terry_loss`
    A pair of probability p counts as p pairs one way and 1 − p the other.
    """
    if settings.shard:
        raise CapabilityError("a reward model is not sharded: leave out --shard")
    with Run.open(settings, say) as run:
        if not run.policy.adapts:
            raise DataError("a reward model is trained by adapters and a head: leave out --full")
        training, held = run.divide(pairs, read_pairs, test)
        steps = run.settings.training
        about = {
            "method": "reward", "settings": {"center": center}, "data": data_of(pairs, len(training)),
            "test": None if test is None else data_of(test, len(held)),
        }  # fmt: skip
        model = RewardModel.fresh(run.policy.module, tokenizer=run.encoder.tokenizer.fingerprint)
        model.head.data = model.head.data.to(run.policy.device)

        def loss(batch: Seq[PreferencePair]) -> LossOutput:
            values = model.values([p.first for p in batch] + [p.second for p in batch])
            first, second = values.chunk(2)
            p = torch.tensor([pair.preference for pair in batch], device=values.device)
            margin = torch.tensor([pair.margin for pair in batch], device=values.device)
            there = bradley_terry_loss(first, second, margin, center=center)
            back = bradley_terry_loss(second, first, -margin, center=center)
            right = ((first - second) * (p - 0.5) > 0).sum().item()
            return LossOutput((p * there + (1 - p) * back).sum(), {"accuracy": (right, len(batch))})

        if not only_estimate and (finished := run.begin(about)) is not None:
            run.say(f"{run.out}: this run is finished, here is its report")
            return finished
        expected = estimate(run, training, loss, steps, _length, scored=[*held, *held])
        model.head.grad = None
        run.say(expected.line())
        if only_estimate:
            return {**about, "estimate": asdict(expected), **run.rows_left_out()}
        before = run.once(BEFORE, lambda: reward_report(model, held))
        losses = fit(
            run.policy, training, loss, steps, length=_length, extra_parameters=[model.head], folder=run.out,
            recipe=about, processes=run.processes, shard=settings.shard, log=run.log(),
            progress=steps_of(progress, steps.steps),
        )  # fmt: skip
        centered = model.centered([t for p in training[:64] for t in (p.first, p.second)])
        return run.finish(
            lambda: {
                **about, **run.rows_left_out(), "steps": len(losses), "losses": losses, "estimate": asdict(expected),
                "before": before, "after": reward_report(centered, held),
            },
            lambda: centered.save(run.out, {"model": run.model}),
        )  # fmt: skip


def reward_report(model: RewardModel, pairs: Seq[PreferencePair]) -> dict[str, Any]:
    """Held-out pairs under a reward model: accuracy, margin, and calibration of σ(r_a − r_b)."""
    first, second = model([p.first for p in pairs]), model([p.second for p in pairs])
    better = np.array([1.0 if p.preference >= 0.5 else -1.0 for p in pairs])
    chance, labels = bradley_terry(first, second), (better > 0).astype(np.float64)
    chance, labels = both_ways(chance, labels)
    margin = better * (first - second)
    return {
        "pairs": len(pairs),
        "accuracy": Accuracy(int((margin > 0).sum()), len(pairs)).to_dict() if margin.any() else None,
        "margin": float(margin.mean()),
        "calibration_error": float(ece(chance, labels)),
        "brier": float(brier_binary(chance, labels)),
    }


def open_reward(name: str) -> Reward:
    """A reward by name: "length", "sentiment" (VADER), "regex:PATTERN", or the folder of a reward model.

    A reward model brings its own base model; it reads ids, so that it must have the tokenizer of what it judges.
    """
    if name == "length":
        return LengthReward()
    if name == "sentiment":
        return SentimentReward()
    if name.startswith("regex:"):
        return RegexReward(name.removeprefix("regex:"))
    folder = Path(name)
    if not (folder / HEAD).is_file():
        raise DataError(
            f'no reward is called "{name}" (allowed: {", ".join(REWARDS)}, as `likely align reward` writes it)'
        )
    lm = load_local(str(adapter_record(folder)["model"]), runtime="torch")
    policy = Policy(lm, None, adapter=folder)
    return RewardModel.load(folder, policy.module, tokenizer=lm.tokenizer.fingerprint)


def _length(pair: PreferencePair) -> int:
    return len(pair.first) + len(pair.second)
