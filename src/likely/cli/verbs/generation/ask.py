"""likely ask: one question or every question of a file, and how likely each answer is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, forms, options
from likely.cli.confidence import ConfidenceFlags, bind, tell
from likely.cli.file_run import Advance, Chunks, FileRun, is_questions_file, read_file
from likely.cli.printing import (
    for_terminal,
    print_better,
    print_ending,
    print_json,
    print_stats,
    print_stream,
    print_undrafted,
)
from likely.cli.show import ALTERNATIVES, ShowFlags
from likely.errors import ConstraintError, DataError, ModelError
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line
from likely.lm.options import ASK_DEFAULTS
from likely.lm.questions import BATCH, QuestionLine, answer_record, question_of

if TYPE_CHECKING:
    from likely.lm.base import LanguageModel
    from likely.lm.confidence import BoundPolicy

TEXT = flags.TextFlags.of(ASK_DEFAULTS)


@flags.grouped
def ask(
    model: flags.ModelFlags,
    form: forms.FormFlags,
    file: flags.FileFlags,
    confidence: ConfidenceFlags,
    look: ShowFlags,
    question: Annotated[
        str | None,
        typer.Argument(help='The question, or a .jsonl file of {"question"}; a pipe brings what it is about.'),
    ] = None,
    attached: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="A text to put before the question, as a pipe does (repeatable)."),
    ] = None,
    system: flags.SystemOption = None,
    text: flags.TextFlags = TEXT,
    stats: flags.StatsOption = False,
    show_prompt: flags.ShowPrompt = False,
) -> None:
    """Answer a question, or every question of a file.

    Examples:

      likely ask "What is the capital of France? Answer in one sentence."

      likely ask "Name three rivers." --json

      likely ask "Name three rivers." --show --html tokens.html

      cat page.md | likely ask "Summarise this in one sentence."

      likely ask "Which of the two is older?" --file one.txt --file two.txt

      likely ask questions.jsonl -o answers.jsonl

      likely ask "What colour is the sky on a clear day?" --choices blue,green,red --json

      likely ask "Who wrote Faust?" --at-least 0.9 --fallback bigger.gguf     (after likely calibrate fit)
    """
    see = look.wanted()
    lines, asked = None, ""
    if is_questions_file(question):
        if attached:
            raise typer.BadParameter("a file of questions goes alone: drop --file", param_hint="--file")
        if see or stats:
            raise typer.BadParameter("--show, --html and --stats take one question, not a file", param_hint="FILE")
        lines = read_file(
            question, lambda line, where: question_of(line.record, f"{where}:{line.number}"), file,
            expected='lines like {"question": "...", "answer": "..."}',
        )  # fmt: skip
    elif file.given:
        raise typer.BadParameter("--output, --overwrite and --limit need a .jsonl file of questions", param_hint="FILE")
    else:
        asked = options.text_or_stdin(question, "question", attached or ())
    given = text.given()
    given |= form.given(given, model.model)
    if see:
        given.setdefault("top_logprobs", ALTERNATIVES)
    wanted = confidence.given()
    with model.open() as lm:
        if not lm.info.template:
            typer.echo(f"Warning: {lm.info.name} is a base model, which continues texts: few questions work", err=True)
        bound = bind(lm.with_confidence(**wanted), given, system)
        if lines is not None:
            _ask_file(lm, lines, given, system, bound, show_prompt)
            return
        stream = lm.stream_ask(asked, system=system, **given)
        if show_prompt:
            typer.echo(stream.prompt, err=True)
        whole = look.as_json or look.show or not forms.streams(given) or bound.rule is not None
        answer = stream.finish() if whole else print_stream(stream)
        if whole and not (look.as_json or look.show or answer.abstained):
            typer.echo(for_terminal(answer.text))
        if stats:
            print_stats(answer)
        if look.as_json:
            print_json({**options.origin(lm), "question": asked, **answer.to_dict(), **bound.describe()})
        else:
            tell(answer)
        if answer.abstained:
            return
        if not (look.as_json or look.show):  # which say it themselves
            print_ending(answer)
        print_undrafted([answer], text.drafter, text.draft_budget, lm.info.runtime)
        print_better(lm.info.name)
        look.present(lm, [answer], title=asked, prompt=stream.prompt)
        forms.conclude([answer])


def _ask_file(
    lm: LanguageModel, lines: FileRun[QuestionLine], given: dict[str, Any], system: str | None, bound: BoundPolicy,
    show_prompt: bool,
) -> None:  # fmt: skip
    """Every question that has no answer yet; each prompt is checked before the first answer."""
    if given.get("n", 1) != 1 or given.get("beams"):
        raise ValueError("each question is answered once: drop n= and beams=")
    lm.preview("?", **given)  # wrong settings are refused before the output carries them in its header
    settings = {**lm.settings({}, given), "system": system}
    header = {
        **options.origin(lm), "kind": "ask", "template": lm.template_hash, "settings": settings,
        "settings_hash": fingerprint(settings), **bound.describe(),
    }  # fmt: skip
    cut: list[str] = []

    def work(chunks: Chunks, advance: Advance) -> Iterator[tuple[Line, dict[str, Any]]]:
        asked = [line for chunk in chunks for line in chunk]
        questions = [lines.item(line) for line in asked]
        for line, question in zip(asked, questions, strict=True):
            try:
                seen = lm.preview(question.asked, system=question.system or system, **given)
            except ModelError as error:
                raise DataError(f"{lines.where}:{line.number}: {error}") from None
            if show_prompt and seen:
                typer.echo(for_terminal(seen, err=True), err=True)
        answers = lm.ask_each(questions, system=system, **given)
        for line, question, answer in zip(asked, questions, answers, strict=True):
            if answer.complete is False:
                cut.append(f"{lines.where}:{line.number} ({answer.finish_reason})")
            yield line, answer_record(question, answer, decided=bound.rule is not None)
            advance(1)

    lines.run(header, work, label="asking", unit="questions", size=BATCH)
    if cut:
        raise ConstraintError(f"{len(cut)} answers are not complete, the first is that of {cut[0]}: raise --max-tokens")
