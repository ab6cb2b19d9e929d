"""A user's prompts and a reward become an adapter by training on the model's own samples, with a report.  torch."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from likely.alignment.labellers import RewardDifference
from likely.alignment.online.training import OnlinePreferences, OnlineSettings, train_online
from likely.alignment.rewards import Reward, check_tokens
from likely.alignment.runs.folder import BEFORE, Run, RunProgress, RunSettings, Say, data_of, estimate, steps_of
from likely.alignment.runs.report import sample_report
from likely.alignment.runs.rows import read_prompts
from likely.alignment.sources import Prompt
from likely.errors import CapabilityError, nearest
from likely.training.loop import LossOutput

SAMPLED_PROMPTS = 32  # of the report


def online_settings(method: str, settings: Mapping[str, Any]) -> OnlineSettings:
    """A method with these numbers; ValueError, with the nearest name, for one that it has not."""
    known = [f.name for f in fields(OnlineSettings) if f.name != "method"]
    for name in settings:
        if name not in known:
            raise ValueError(f"{method} has no setting {name}{nearest(name, known)} (it has: {', '.join(known)})")
    for name in ("samples", "max_tokens"):
        if not isinstance(settings.get(name, 1), int):
            raise ValueError(f"{name} must be a whole number, got {settings[name]!r}")
    for name in ("tau", "beta", "temperature"):
        if isinstance(settings.get(name), bool) or not isinstance(settings.get(name, 1.0), int | float):
            raise ValueError(f"{name} must be a number, got {settings[name]!r}")
    return OnlineSettings(method, **settings)  # type: ignore[arg-type]


def train_on_own_samples(
    prompts: Path | str,
    method: OnlineSettings,
    settings: RunSettings,
    *,
    reward: Reward,
    scale: float = 1.0,
    test: Path | str | None = None,
    sampled_prompts: int = SAMPLED_PROMPTS,
    only_estimate: bool = False,
    say: Say = lambda line: None,
    progress: RunProgress | None = None,
) -> dict[str, Any]:
    """Train a model on completions that it draws itself; returns the report, which is in the folder, too.

    prompts   JSONL of {"prompt"}, other fields are ignored;  test: those of the report, None: a held-out share
    method    and what is drawn
    reward    judges: p(first ≻ second) = σ((r_first - r_second) / scale)
    settings  batch and piece of `training` count prompts and pairs
    only_estimate  what it would take, and nothing else
    The same call on the same folder goes on where it was stopped; one that is finished gives its report.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise ValueError(f"scale must be a number > 0, got {scale!r}")
    if settings.shard:
        raise CapabilityError("a sharded model draws no samples: leave out --shard")
    with Run.open(settings, say) as run:
        check_tokens(reward, run.encoder.tokenizer.fingerprint)
        training, held = run.divide(prompts, read_prompts, test)
        steps = run.settings.training
        about = {
            "method": method.method,
            "settings": {**asdict(method), "tau": method.strength, "beta": method.mixture_weight, "scale": scale},
            "data": data_of(prompts, len(training)), "test": None if test is None else data_of(test, len(held)),
        }  # fmt: skip
        judge = RewardDifference(reward, scale)
        if not only_estimate and (finished := run.begin(about)) is not None:
            run.say(f"{run.out}: this run is finished, here is its report")
            return finished
        trial = OnlinePreferences(run.policy, judge, method, steps.seed)

        def drawn_loss(batch: Seq[Prompt]) -> LossOutput:
            run.policy.refresh()
            return trial.loss(trial.pairs(0, batch))

        expected = estimate(
            run, training, drawn_loss, steps, lambda p: len(p.tokens) + method.samples * method.max_tokens,
        )  # fmt: skip
        trial.close()
        run.say(expected.line())
        if only_estimate:
            return {**about, "estimate": asdict(expected), **run.rows_left_out()}
        reference = run.reference([], progress)

        def report(before: dict[str, Any] | None = None) -> dict[str, Any]:
            if not sampled_prompts:
                return {}
            samples = sample_report(
                run.policy, held[:sampled_prompts], reference, max_tokens=method.max_tokens, seed=0, reward=reward,
                before=None if before is None else before["samples"],
            )  # fmt: skip
            return {"samples": samples}

        before = run.once(BEFORE, report)
        losses = train_online(
            run.policy, training, judge, steps, method, folder=run.out, recipe=about, processes=run.processes,
            log=run.log(), progress=steps_of(progress, steps.steps),
        )  # fmt: skip
        return run.finish(
            lambda: {**about, **run.rows_left_out(), "steps": len(losses), "losses": losses,
                     "estimate": asdict(expected), "before": before, "after": report(before)}
        )  # fmt: skip
