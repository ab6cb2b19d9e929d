"""A user's examples become a model that can take tokens back: SequenceMatch, with a report of both ends.  torch."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from likely.alignment.runs.examples import completions_of, read_examples
from likely.alignment.runs.folder import BEFORE, Run, RunProgress, RunSettings, Say, data_of, estimate, steps_of
from likely.alignment.runs.report import text_report
from likely.alignment.sequence_match.objective import sequence_match_loss
from likely.alignment.sequence_match.text_quality import repeated_ngrams
from likely.alignment.sequence_match.training import (
    SequenceMatchSettings,
    initialise_backspace,
    sample_trajectories,
    train_sequence_match,
)
from likely.alignment.sequence_match.trajectories import Trajectory, to_trees, tree_logits
from likely.errors import CapabilityError, DataError, nearest
from likely.models.load import Loaded
from likely.tokenizers.protocol import Tokenizer
from likely.training.fit import TrainingSettings
from likely.training.loop import LossOutput

METHOD = "sequence_match"
SAMPLED_PROMPTS = 32  # of the report


def sequence_match_settings(given: Mapping[str, Any], training: TrainingSettings) -> SequenceMatchSettings:
    """These numbers of the method, the rest as a run is told; ValueError, with the nearest name, for an unknown one.

    After its warm-up the learning rate is constant, and a batch is computed in one piece.
    """
    told = _of_the_run(training)
    known = [f.name for f in fields(SequenceMatchSettings) if f.name not in told]
    for name in given:
        if name not in known:
            more = ["backspace", "max_tokens", *known]
            raise ValueError(f"{METHOD} has no setting {name}{nearest(name, more)} (it has: {', '.join(more)})")
    return SequenceMatchSettings(**told, **given)


def _of_the_run(training: TrainingSettings) -> dict[str, Any]:
    return {
        "steps": training.steps, "batch": training.batch, "learning_rate": training.lr,
        "weight_decay": training.weight_decay, "clip": training.clip, "precision": training.precision,
        "warm_up": max(1, round(training.warmup * training.steps)), "seed": training.seed,
    }  # fmt: skip


def backspace_of(tokenizer: Tokenizer, given: Any) -> int:
    """The id of a token that is told by its text or its id."""
    number = tokenizer.special_tokens.get(given) if isinstance(given, str) else given
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < tokenizer.vocab_size:
        known = ", ".join(tokenizer.special_tokens)
        raise DataError(f"backspace must be a token that no text needs, got {given!r}: its id, or one of {known}")
    if number in tokenizer.end_ids or number == tokenizer.bos_id:
        raise DataError(f"backspace {given!r} begins or ends texts in this model: choose another token")
    return number


def train_with_backspace(
    examples: Path | str,
    method: SequenceMatchSettings,
    settings: RunSettings,
    *,
    backspace: str | int,
    max_tokens: int = 48,
    test: Path | str | None = None,
    sampled_prompts: int = SAMPLED_PROMPTS,
    only_estimate: bool = False,
    say: Say = lambda line: None,
    progress: RunProgress | None = None,
) -> dict[str, Any]:
    """Train a model by SequenceMatch on rows {"prompt", "completion"}; returns the report, which is in the folder, too.

    method     the numbers of SequenceMatch; what `settings.training` says, too (steps, batch ...), is taken from there
    backspace  a token that no text needs, by its text or id;  max_tokens: of the model's own texts
    test       rows of the report; None: a held-out share of the file
    The folder's merged/ is a whole model, since the backspace's row of the embedding changes.  The same call on the
    same folder goes on where it was stopped; one that is finished gives its report.
    """
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise ValueError(f"max_tokens must be a whole number >= 1, got {max_tokens!r}")
    if settings.adapter is not None or settings.shard:
        raise CapabilityError(f"{METHOD} goes on from a whole model, in one process: --model sft/merged, no --shard")

    def prepare(lm: Loaded, settings: RunSettings) -> RunSettings:
        number = backspace_of(lm.tokenizer, backspace)
        initialise_backspace(lm.runtime.module, number)  # type: ignore[attr-defined]
        lora = None if settings.lora is None else replace(settings.lora, trained_tokens=(number,))
        return replace(settings, lora=lora)

    with Run.open(settings, say, prepare) as run:
        if run.processes.size > 1:
            raise CapabilityError(f"{METHOD} draws its own texts in one process: start it without torchrun")
        number, ends = backspace_of(run.encoder.tokenizer, backspace), run.encoder.tokenizer.end_ids
        training, held = run.divide(examples, read_examples, test)
        for file, texts in ((examples, training), (examples if test is None else test, held)):
            for text in texts:
                if number in text.tokens:
                    raise DataError(f"{file}: row {text.row} holds the backspace {backspace!r}, which no text may hold")
        chosen = replace(method, **_of_the_run(run.settings.training))
        data = [Trajectory(c.prompt, c.tokens, c.finished) for c in completions_of(training, ends)]
        about = {
            "method": METHOD, "settings": {**asdict(chosen), "backspace_id": number, "max_tokens": max_tokens},
            "data": data_of(examples, len(training)), "test": None if test is None else data_of(test, len(held)),
        }  # fmt: skip
        if not only_estimate and (finished := run.begin(about)) is not None:
            run.say(f"{run.out}: this run is finished, here is its report")
            return finished

        def trial(batch: Seq[Trajectory]) -> LossOutput:
            trees = to_trees([*batch, *batch], backspace_id=number)  # as many texts of its own
            is_data = torch.arange(len(trees)) < len(batch)
            return sequence_match_loss(tree_logits(run.policy.module, trees), trees, is_data)

        expected = estimate(
            run, data, trial, replace(run.settings.training, piece=chosen.batch),
            lambda t: 2 * (len(t.prompt) + len(t.actions)),
        )  # fmt: skip
        run.say(expected.line())
        if only_estimate:
            return {**about, "estimate": asdict(expected), **run.rows_left_out()}
        prompts = [c.prompt for c in completions_of(held, ends)][:sampled_prompts]

        def report() -> dict[str, Any]:
            found = text_report(run.policy, held)
            if prompts:
                run.policy.refresh()
                found["samples"] = _own_texts(run, prompts, max_tokens, ends, number)
            return found

        before = run.once(BEFORE, report)
        learned = train_sequence_match(
            run.policy.module, data, chosen, max_tokens=max_tokens, end_ids=ends, backspace_id=number,
            folder=run.out, recipe={"reference": run.policy.reference_revision, "lora": run.policy.recipe()["lora"]},
            checkpoint_every=run.settings.training.checkpoint_every, log=run.log(),
            progress=steps_of(progress, chosen.steps),
        )  # fmt: skip
        return run.finish(
            lambda: {**about, **run.rows_left_out(), "steps": len(learned.losses), "losses": learned.losses,
                     "own_texts": learned.drawn, "offset": learned.offset, "estimate": asdict(expected),
                     "before": before, "after": report()}
        )  # fmt: skip


def _own_texts(
    run: Run, prompts: Seq[Seq[int]], max_tokens: int, ends: frozenset[int], backspace: int
) -> dict[str, Any]:
    """Samples with deletions: how many of the actions delete, what is left, how often it repeats 4-grams."""
    texts = sample_trajectories(
        run.lm.runtime, prompts, max_tokens=max_tokens, end_ids=ends, backspace_id=backspace, seed=0
    )
    left = [text.text(backspace) for text in texts]
    repeated = repeated_ngrams(left)
    return {
        "prompts": len(texts),
        "deletions": sum(t.actions.count(backspace) for t in texts) / sum(len(t.actions) for t in texts),
        "tokens": float(np.mean([len(text) for text in left])),
        "finished": float(np.mean([text.finished for text in texts])),
        "repeated_4_grams": float(np.nanmean(repeated)) if np.isfinite(repeated).any() else None,
    }
