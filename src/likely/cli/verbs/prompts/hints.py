"""likely prompts learn-hints, likely prompts hint: hints that make the confidence a model states an honest one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, options
from likely.cli.file_run import FileRun, read_file
from likely.cli.printing import print_json, print_table, progress
from likely.errors import DataError
from likely.io.jsonl import Line
from likely.io.whole_file import check_target, read_text

if TYPE_CHECKING:
    from likely.prompting.hints.downstream import ChoiceQuestion

HINT = 'lines like {"question": "...", "choices": ["...", "..."], "answer": 0}'
KeptOption = Annotated[
    Path | None, typer.Option("--kept", help="File of the model's answers that are kept, so that none is asked twice.")
]


@flags.grouped
def learn_hints(
    model: flags.ModelFlags,
    file: Annotated[
        str, typer.Argument(help='JSONL (.gz, too) of {"question", "choices", "answer": number or letter}.')
    ],
    hints: Annotated[
        Path, typer.Option("--hints", help="The hints to choose from, one per line; no hint is always one.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the policy (JSON).")],
    overwrite: flags.OverwriteOption = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Draws that the policy learns from.")] = 200,
    seed: flags.SeedOption = 0,
    limit: flags.LimitOption = None,
    kept: KeptOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Learn which hint to put below which question, from questions whose answers are known.

    The reward is high for a right answer with a high stated confidence and for a wrong one with a low stated
    confidence (Prompt4Trust); every question is asked with every hint once.

    Examples:

      likely prompts learn-hints exam.jsonl --hints hints.txt -o policy.json
    """
    from likely.prompting.hints.bandit import learn_hints as learn
    from likely.prompting.hints.downstream import Downstream

    check_target(output)
    _refuse_input(file, kept)
    options.refuse_existing(output, overwrite)
    lines = _read(file, flags.FileFlags(limit=limit), known=True)
    asked = [lines.item(line) for line in lines.lines]
    choice = _hints(hints)
    with model.open_local() as lm:
        with progress(len(asked) * (1 + len(choice)), "asking", unit="prompts") as tick:
            policy, table = learn(Downstream(lm, kept), asked, choice, steps=steps, seed=seed, progress=tick)
        origin = options.origin(lm)
    policy.save(output, origin=origin)
    shown = [
        {"hint": text, "mean_reward": float(stated.rewards().mean()), **stated.summary()}
        for text, stated in table.items()
    ]
    if as_json:
        print_json({**origin, "questions": len(asked), "hints": shown, "written": str(output)})
        return
    typer.echo(f"{len(asked)} questions; by hint:")
    numbers = ("mean_reward", "accuracy", "stated", "brier")
    print_table(
        ("hint", "reward", "accuracy", "stated", "Brier"),
        [(one["hint"] or "(none)", *(f"{one[name]:.3f}" for name in numbers)) for one in shown],
    )
    typer.echo(f"written: {output}")


@flags.grouped
def hint(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    file: Annotated[str, typer.Argument(help='JSONL (.gz, too) of {"question", "choices", "answer" where known}.')],
    policy: Annotated[Path, typer.Option("--policy", help="A file of likely prompts learn-hints.")],
    kept: KeptOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Answer questions with the hint that a policy chooses: what is chosen, and how sure the model says it is.

    Each line of the output has "hint", "prompt", "chosen" and "confidence"; with known answers "correct" as well, so
    that `likely calibrate eval` and `fit` take the file.

    Examples:

      likely prompts hint exam.jsonl --policy policy.json -o answered.jsonl
    """
    from likely.prompting.hints.bandit import HintBandit, answer_with_hints
    from likely.prompting.hints.downstream import Downstream, augment

    _refuse_input(file, kept)
    chooser = HintBandit.load(policy)
    lines = _read(file, out, known=False)
    asked = [lines.item(line) for line in lines.lines]
    with model.open_local() as lm:
        with progress(2 * len(asked), "asking", unit="prompts") as tick:
            texts, plain, found = answer_with_hints(Downstream(lm, kept), chooser, asked, progress=tick)
        origin = options.origin(lm)
    records: list[dict[str, Any]] = [
        {
            "hint": texts[i], "prompt": augment(question.question, texts[i]), "chosen": int(found.chosen[i]),
            "confidence": float(found.confidence[i]),
            **({"correct": int(found.correct[i])} if question.answer >= 0 else {}),
        }
        for i, question in enumerate(asked)
    ]  # fmt: skip
    made = dict(zip((line.number for line in lines.lines), records, strict=True))
    lines.run(
        {**origin, "kind": "hint", "settings": {"policy": chooser.to_dict()}},
        lambda chunks, _: ((line, made[line.number]) for chunk in chunks for line in chunk),
    )
    if all(question.answer >= 0 for question in asked):
        summary = {"without": plain.summary(), "with": found.summary()}
        if as_json and out.output is not None:
            print_json({**origin, "questions": len(asked), **summary})
        else:
            for name, one in summary.items():
                typer.echo(
                    f"{name:>8} hints: accuracy {one['accuracy']:.3f}, stated {one['stated']:.3f}, "
                    f"Brier {one['brier']:.3f}", err=True,
                )  # fmt: skip


def _refuse_input(file: str, kept: Path | None) -> None:
    """The file of kept answers grows: it must not be the questions."""
    if kept is not None and options.same_file(file, kept):
        raise typer.BadParameter(f"{kept} is the file of questions: choose another", param_hint="--kept")


def _hints(path: Path) -> list[str]:
    texts = [line.strip() for line in read_text(path).splitlines()]
    found = list(dict.fromkeys(text for text in texts if text))
    if not found:
        raise DataError(f"{path} holds no hints: one per line is expected")
    return found


def _read(file: str, out: flags.FileFlags, *, known: bool) -> FileRun[ChoiceQuestion]:
    """The questions; with `known` every one needs its answer."""

    def check(line: Line, where: str) -> ChoiceQuestion:
        return _question(line, f"{where}:{line.number}", known=known)

    return read_file(file, check, out, expected=HINT)


def _question(line: Line, at: str, *, known: bool) -> ChoiceQuestion:
    from likely.prompting.hints.downstream import ChoiceQuestion
    from likely.scoring.choices import choice_item

    unknown = line.record.get("answer") is None
    if unknown and known:
        raise DataError(f'{at}: field "answer" is missing: {HINT} are expected')
    item = choice_item({**line.record, "answer": 0} if unknown else line.record, at)
    return ChoiceQuestion(item.question, tuple(item.choices), -1 if unknown else item.answer)
