"""A user's examples become an adapter: supervised fine-tuning, with the perplexity before and after.  torch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from likely.alignment.edit_invariant.own_outputs import EditInvariantSettings, OwnOutputs
from likely.alignment.runs.folder import BEFORE, Run, RunProgress, RunSettings, Say, data_of, estimate, steps_of
from likely.alignment.runs.report import text_report
from likely.alignment.runs.rows import RowEncoder, TooManyTokens, flag, read_rows, row_field
from likely.alignment.scores import Completion
from likely.alignment.sft import LOSS_ON, LossOn, MaskedText, sft_loss
from likely.errors import CapabilityError, DataError, check_choice
from likely.io.jsonl import Line
from likely.training.fit import fit
from likely.training.loop import LossOutput

SftLoss = Literal["cross-entropy", "eisl"]
SFT_LOSSES = ("cross-entropy", "eisl")


def train_on_examples(
    examples: Path | str,
    settings: RunSettings,
    *,
    loss_on: LossOn = "completion",
    loss: SftLoss = "cross-entropy",
    eisl: EditInvariantSettings | None = None,
    test: Path | str | None = None,
    only_estimate: bool = False,
    say: Say = lambda line: None,
    progress: RunProgress | None = None,
) -> dict[str, Any]:
    """Fine-tune a model on rows {"prompt", "completion"} or {"messages"}; returns the report.

    loss_on  "completion": the completion, of a conversation its last turn;  "assistant": every turn of the assistant;
             "all": every token
    loss     "eisl": the edit-invariant loss of noisy completions along the model's own greedy outputs, with settings
             `eisl` or its defaults; for a model that was fine-tuned by cross-entropy before (`settings.adapter`).  The
             estimate counts the passes with gradients, not the writing
    test     rows of the report; None: a held-out share of the file
    The same call on the same folder goes on where it was stopped; one that is finished gives its report.
    """
    check_choice("loss_on", loss_on, LOSS_ON)
    check_choice("loss", loss, SFT_LOSSES)
    if eisl is not None and loss != "eisl":
        raise ValueError(f'settings of the edit-invariant loss (--cross-entropy) need loss="eisl", got "{loss}"')
    if loss == "eisl" and loss_on != "completion":
        raise ValueError(f'loss="eisl" compares whole completions: loss_on must be "completion", got "{loss_on}"')
    if loss == "eisl" and settings.shard:
        raise CapabilityError('loss="eisl" writes texts of its own, which a sharded model does not: leave out --shard')
    noise = (eisl or EditInvariantSettings()) if loss == "eisl" else None
    with Run.open(settings, say) as run:
        training, held = run.divide(examples, partial(read_examples, loss_on=loss_on), test)
        steps = run.settings.training
        about = {
            "method": "sft", "data": data_of(examples, len(training)),
            "settings": {"loss_on": loss_on, "loss": loss, **({} if noise is None else asdict(noise))},
            "test": None if test is None else data_of(test, len(held)),
        }  # fmt: skip
        if not only_estimate and (finished := run.begin(about)) is not None:
            run.say(f"{run.out}: this run is finished, here is its report")
            return finished

        def by_tokens(texts: Seq[MaskedText]) -> LossOutput:
            return sft_loss(run.policy.module)(texts)

        expected = estimate(run, training, by_tokens, steps, len, scored=[*held, *held])
        run.say(expected.line())
        if only_estimate:
            return {**about, "estimate": asdict(expected), **run.rows_left_out()}
        before = run.once(BEFORE, lambda: text_report(run.policy, held))
        watched = steps_of(progress, steps.steps)
        if noise is not None:
            noisy = completions_of(training, run.policy.tokenizer.end_ids)
            own = OwnOutputs(run.policy, noisy, noise, seed=steps.seed)
            losses = fit(
                run.policy, noisy, own.loss, steps, length=own.length, expand=own.expand, folder=run.out,
                recipe={**about, **own.recipe}, processes=run.processes, log=run.log(),
                progress=watched,
            )  # fmt: skip
        else:
            losses = fit(
                run.policy, training, by_tokens, steps, weight=lambda text: text.targets, length=len, folder=run.out,
                recipe=about, processes=run.processes, shard=settings.shard,
                log=run.log(), progress=watched,
            )  # fmt: skip
        return run.finish(
            lambda: {
                **about, **run.rows_left_out(), "steps": len(losses), "losses": losses, "estimate": asdict(expected),
                "before": before, "after": text_report(run.policy, held),
            }
        )  # fmt: skip


def completions_of(texts: Seq[MaskedText], ends: frozenset[int]) -> list[Completion]:
    """What is learned of each text, and the prompt before it."""
    starts = [text.scored.index(True) for text in texts]
    return [
        Completion(text.tokens[:start], text.tokens[start:], finished=text.tokens[-1] in ends)
        for text, start in zip(texts, starts, strict=True)
    ]


def read_examples(
    path: str | Path, encoder: RowEncoder, *, loss_on: LossOn = "completion", limit: int | None = None
) -> list[MaskedText]:
    """Rows {"prompt", "completion"} (text, or messages and an answer), or {"messages"}: a whole conversation."""

    def read(encoder: RowEncoder, line: Line, where: str) -> MaskedText:
        record, row = line.record, line.number
        if "messages" in record and loss_on != "completion":
            ids, scored = encoder.assistant_spans(record["messages"], where)
            if len(ids) > encoder.max_length:
                raise TooManyTokens(f"{where}: {len(ids)} tokens, max_length is {encoder.max_length}")
            return MaskedText(tuple(ids), tuple([True] * len(ids) if loss_on == "all" else scored), row)
        if "messages" in record:
            messages = record["messages"]
            last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
            if not isinstance(last, dict) or last.get("role") != "assistant":
                raise DataError(f'{where}: "messages" must end with a turn of the assistant')
            asked, answer, name = messages[:-1], last.get("content"), "messages"
        else:
            asked, answer, name = row_field(line, "prompt", where), row_field(line, "completion", where), "completion"
        prompt = encoder.prompt(asked, where, row)
        completion = encoder.completion(
            asked, prompt, answer, name, where, finished=flag(record, "finished", where)
        )  # fmt: skip
        return MaskedText.of(completion, whole=loss_on == "all", row=row)

    return read_rows(path, encoder, read, limit)
