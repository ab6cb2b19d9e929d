"""likely prompts learn-hints, likely prompts hint: hints that make the confidence a model states an honest one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.io.jsonl import Line
    from likely.prompting.hints.downstream import ChoiceQuestion, Stated

HINT = 'lines like {"question": "...", "choices": ["...", "..."], "answer": 0} are expected'
FORMAT = 1
KeptOption = Annotated[
    Path | None, typer.Option("--kept", help="File of the model's answers that are kept, so that none is asked twice.")
]


def learn_hints(
    file: Annotated[
        str, typer.Argument(help='JSONL (.gz, too) of {"question", "choices", "answer": number or letter}.')
    ],
    hints: Annotated[
        Path, typer.Option("--hints", help="The hints to choose from, one per line; no hint is always one.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the policy (JSON).")],
    overwrite: opt.OverwriteOption = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Draws that the policy learns from.")] = 200,
    seed: opt.SeedOption = 0,
    limit: opt.LimitOption = None,
    kept: KeptOption = None,
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Learn which hint to put below which question, from questions whose answers are known.

    The reward is high for a right answer that is stated surely and for a wrong one that is stated unsurely
    (Prompt4Trust); every question is asked with every hint once.

    Examples:

      likely prompts learn-hints exam.jsonl --hints hints.txt -o policy.json
    """
    import numpy as np

    from likely.cli.printing import print_json, progress
    from likely.io.whole_file import check_target, write_whole_file
    from likely.prompting.hints.bandit import HintBandit
    from likely.prompting.hints.downstream import Downstream, hint_features

    check_target(output)
    _refuse_input(file, kept)
    opt.refuse_existing(output, overwrite)
    asked = [_question(line, file, known=True) for line in _lines(file, limit, known=True)]
    choice = ["", *_hints(hints)]
    with opt.local_model(model, runtime=runtime, context=context, threads=threads) as lm:
        downstream = Downstream(lm, kept)
        with progress(len(asked) * len(choice), "asking", unit="prompts") as tick:
            table = [downstream.stated(asked, [hint] * len(asked), progress=tick) for hint in choice]
        origin = opt.origin(lm)
    rewards = np.stack([stated.rewards() for stated in table], axis=1)
    policy = HintBandit(choice, seed=seed, beta=0.01).fit(
        hint_features(asked, table[0]), lambda questions, drawn: rewards[questions, drawn], steps=steps
    )
    record = {"likely_hint_policy": FORMAT, "origin": origin, "policy": policy.to_dict()}
    write_whole_file(output, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())
    shown = [
        {"hint": hint, "mean_reward": float(column.mean()), **_measured(stated)}
        for hint, column, stated in zip(choice, rewards.T, table, strict=True)
    ]
    if as_json:
        print_json({**origin, "questions": len(asked), "hints": shown, "written": str(output)})
        return
    typer.echo(f"{len(asked)} questions; by hint:")
    typer.echo(f"  {'reward':>8} {'accuracy':>9} {'stated':>7} {'Brier':>7}  hint")
    for one in shown:
        typer.echo(
            f"  {one['mean_reward']:8.3f} {one['accuracy']:9.3f} {one['stated']:7.3f} {one['brier']:7.3f}  "
            f"{one['hint'] or '(none)'}"
        )
    typer.echo(f"written: {output}")


def hint(
    file: Annotated[str, typer.Argument(help='JSONL (.gz, too) of {"question", "choices", "answer" where known}.')],
    policy: Annotated[Path, typer.Option("--policy", help="A file of likely prompts learn-hints.")],
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    limit: opt.LimitOption = None,
    kept: KeptOption = None,
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Answer questions with the hint that a policy chooses: what is chosen, and how sure the model says it is.

    Each line of the output has "hint", "prompt", "chosen" and "confidence"; with known answers "correct" as well, so
    that `likely calibrate eval` and `fit` take the file.

    Examples:

      likely prompts hint exam.jsonl --policy policy.json -o answered.jsonl
    """
    from likely.cli.printing import print_json, progress
    from likely.io.jsonl import Results
    from likely.prompting.hints.downstream import Downstream, augment, hint_features

    opt.refuse_same_file(file, output)
    _refuse_input(file, kept)
    chooser = _policy(policy)
    lines = _lines(file, limit, known=False)
    asked = [_question(line, file, known=False) for line in lines]
    with opt.local_model(model, runtime=runtime, context=context, threads=threads) as lm:
        downstream = Downstream(lm, kept)
        with progress(2 * len(asked), "asking", unit="prompts") as tick:
            plain = downstream.stated(asked, [""] * len(asked), progress=tick)
            texts = [chooser.hints[i] for i in chooser.choose(hint_features(asked, plain))]
            found = downstream.stated(asked, texts, progress=tick)
        origin = opt.origin(lm)
    records = []
    for i, (line, question) in enumerate(zip(lines, asked, strict=True)):
        record: dict[str, Any] = {
            "line": line.number, "input": line.digest, "hint": texts[i], "prompt": augment(question.question, texts[i]),
            "chosen": int(found.chosen[i]), "confidence": float(found.confidence[i]),
        }  # fmt: skip
        if question.answer >= 0:
            record["correct"] = int(found.correct[i])
        records.append(record)
    header = {**origin, "kind": "hint", "settings": {"policy": chooser.to_dict()}}
    where = "stdin" if file == "-" else file
    with Results(output, header, overwrite=overwrite) as results:
        results.write([r for r, line in zip(records, lines, strict=True) if not results.is_done(line, where)])
    known = [i for i, question in enumerate(asked) if question.answer >= 0]
    if len(known) == len(asked):
        summary = {"without": _measured(plain), "with": _measured(found)}
        if as_json and output is not None:
            print_json({**origin, "questions": len(asked), **summary})
        else:
            for name, one in summary.items():
                typer.echo(
                    f"{name:>8} hints: accuracy {one['accuracy']:.3f}, stated {one['stated']:.3f}, "
                    f"Brier {one['brier']:.3f}", err=True,
                )  # fmt: skip


def _refuse_input(file: str, kept: Path | None) -> None:
    """The file of kept answers grows: it must not be the questions."""
    if kept is not None and opt.same_file(file, kept):
        raise typer.BadParameter(f"{kept} is the file of questions: choose another", param_hint="--kept")


def _measured(stated: Stated) -> dict[str, float]:
    from likely.metrics.proper import brier_binary

    return {
        "accuracy": float(stated.correct.mean()),
        "stated": float(stated.confidence.mean()),
        "brier": brier_binary(stated.confidence, stated.correct),
    }


def _hints(path: Path) -> list[str]:
    from likely.errors import DataError

    texts = [line.strip() for line in opt.read_text(path).splitlines()]
    found = list(dict.fromkeys(text for text in texts if text))
    if not found:
        raise DataError(f"{path} holds no hints: one per line is expected")
    return found


def _lines(file: str, limit: int | None, *, known: bool) -> Sequence[Line]:
    from likely.errors import DataError
    from likely.io.jsonl import read_checked

    lines = read_checked(file, lambda line: _question(line, file, known=known), limit=limit).lines
    if not lines:
        raise DataError(f"{file} holds no questions: {HINT}")
    return lines


def _question(line: Line, file: str, *, known: bool) -> ChoiceQuestion:
    from likely.errors import DataError
    from likely.prompting.hints.downstream import ChoiceQuestion
    from likely.scoring.choices import choice_item

    record = line.record
    at = f"{'stdin' if file == '-' else file}:{line.number}"
    if record.get("answer") is None:
        if known:
            raise DataError(f'{at}: field "answer" is missing: {HINT}')
        item = choice_item({**record, "answer": 0}, at)
        return ChoiceQuestion(item.question, tuple(item.choices), -1)
    item = choice_item(record, at)
    return ChoiceQuestion(item.question, tuple(item.choices), item.answer)


def _policy(path: Path) -> Any:
    from likely.errors import DataError
    from likely.prompting.hints.bandit import HintBandit

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path} is not a policy: {error}") from None
    if not isinstance(record, dict) or record.get("likely_hint_policy") != FORMAT:
        raise DataError(f"{path} is not a policy over hints: make one with likely prompts learn-hints")
    try:
        return HintBandit.from_dict(record.get("policy"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
