"""likely uncertainty: how unsure the model is of its answers, by several estimators from one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.file_run import Advance, is_questions_file, read_file
from likely.cli.printing import for_terminal, print_json, with_interval
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line
from likely.lm.questions import QuestionLine, question_of
from likely.metrics.grading import grader
from likely.metrics.intervals import Accuracy

CHEAP = ("g_nll", "mean_nll", "max_nll", "token_entropy")  # of the one greedy text
CHEAP_REMOTE = ("g_nll", "mean_nll", "max_nll")  # a server gives no entropies
BATCH = 16  # questions of one run of the model, and at most so many are asked again after a kill


@flags.grouped
def uncertainty(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    question: Annotated[
        str | None,
        typer.Argument(help='A question, or a .jsonl file of {"question", "answer"}; "-": a pipe.'),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="{estimators}, or all (repeatable).  [default: cheap ones]"),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Sampled answers, for methods that need them.")] = 10,
    beams: Annotated[int, typer.Option("--beams", min=1, help="Width of the beam search of m_nll.")] = 5,
    clusters: Annotated[
        Literal["exact", "number", "lexical", "model"],
        typer.Option("--clusters", help="What makes two answers the same: words; or value; shared words; the model."),
    ] = "number",
    by: Annotated[
        Literal["exact", "number", "choice", "regex"] | None,
        typer.Option("--by", help="Grade answers so, and say how well each estimator tells right from wrong."),
    ] = None,
    pattern: Annotated[str | None, typer.Option("--pattern", help="--by regex: for all answers.")] = None,
    system: flags.SystemOption = None,
    max_tokens: flags.MaxTokens = 64,
    seed: flags.SeedOption = 0,
    stop: flags.StopOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """How unsure the model is of its greedy answer, in nats or as a probability.

    A file gives one line per question; with --by, what is printed is the AUROC and the prediction-rejection ratio of
    each estimator with 95 % intervals.

    Examples:

      likely uncertainty "What is the capital of France? Answer with one word."

      likely uncertainty questions.jsonl --method g_nll --method semantic_entropy -o scored.jsonl

      likely uncertainty questions.jsonl --method all --samples 10 --by exact --json
    """
    settings: dict[str, Any] = {
        "methods": _methods(method, model.model), "samples": samples, "beams": beams, "clusters": clusters,
        "max_tokens": max_tokens, "seed": seed, "stop": list(stop or ()), "system": system, "graded_by": by,
        "pattern": pattern,
    }  # fmt: skip
    if not is_questions_file(question):
        for name, value in (("--by", by), ("--output", out.output), ("--limit", out.limit)):
            if value is not None:
                raise typer.BadParameter("is for a .jsonl file of questions", param_hint=name)
        text = options.text_or_stdin(question, "question")
        with _opened(model, settings) as lm:
            _one(lm, text, settings, as_json)
        return
    if by is None and pattern is not None:
        raise typer.BadParameter("--pattern belongs to --by regex", param_hint="--pattern")
    is_right = grader(by, pattern) if by is not None else None
    lines = read_file(
        question, lambda line, where: _question(line, where, is_right), out,
        expected='lines like {"question": "...", "answer": "..."}',
    )  # fmt: skip
    with _opened(model, settings) as lm:

        def ask_chunk(chunk: Sequence[Line], advance: Advance) -> list[dict[str, Any]]:
            asked = [lines.item(line) for line in chunk]
            systems = [q.system or system for q in asked]
            found = _measured(lm, [q.asked for q in asked], systems, settings, advance)
            records = [{**q.passed_on, **fields} for q, fields in zip(asked, found, strict=True)]
            return [r if is_right is None else {**r, "correct": int(is_right(r))} for r in records]

        header = _header(lm, settings)
        lines.run(
            header, lines.by_chunks(ask_chunk), label="asking", unit="questions", size=BATCH, stdout=is_right is None
        )
    if by is not None:
        _report(lines.records(), header, question, as_json)


def _methods(given: Sequence[str] | None, model: str) -> list[str]:
    from likely.models.load import is_url
    from likely.uncertainty.table import check_names

    if not given:
        return list(CHEAP_REMOTE if is_url(model) else CHEAP)
    if "all" in given:
        if is_url(model):
            raise typer.BadParameter('"all" is for a model on this machine: name the estimators', param_hint="--method")
        return ["all"]
    try:
        return check_names(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--method") from None


@contextmanager
def _opened(model: flags.ModelFlags, settings: dict[str, Any]) -> Iterator[Any]:
    """The model; "all" becomes the estimators that it can give."""
    from likely.uncertainty.planner import all_estimators

    with model.open() as lm:
        if settings["methods"] == ["all"]:
            settings["methods"] = all_estimators(lm)
        yield lm


def _question(line: Line, where: str, is_right: Callable[[Mapping[str, Any]], bool] | None) -> QuestionLine:
    """A reference that does not suit the way of grading is refused at once."""
    at = f"{where}:{line.number}"
    question = question_of(line.record, at)
    if is_right is not None:
        try:
            is_right({"text": "", **question.passed_on})
        except ValueError as error:
            raise DataError(f"{at}: {error}") from None
    return question


def _header(lm: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    from likely.uncertainty.table import ESTIMATORS

    return {
        **options.origin(lm), "kind": "uncertainty", "template": lm.template_hash, "settings": settings,
        "settings_hash": fingerprint(settings),
        "higher_is": {name: ESTIMATORS[name].higher_is for name in settings["methods"]},
    }  # fmt: skip


def _measured(
    lm: Any, questions: Sequence[str], systems: Sequence[str | None], settings: Mapping[str, Any], advance: Advance
) -> list[dict[str, Any]]:
    """Per question the answer and every wanted value; null where there is none."""
    from likely.uncertainty.planner import answer_and_estimate

    names = ("methods", "samples", "beams", "clusters", "max_tokens", "seed", "stop")
    return answer_and_estimate(
        lm, questions, system=systems, progress=advance, **{name: settings[name] for name in names}
    )


def _one(lm: Any, question: str, settings: Mapping[str, Any], as_json: bool) -> None:
    from likely.uncertainty.table import ESTIMATORS

    [record] = _measured(lm, [question], [settings["system"]], settings, lambda n: None)
    if as_json:
        print_json({**_header(lm, settings), "question": question, **record})
        return
    typer.echo(for_terminal(record["text"]))
    for name, value in record["uncertainty"].items():
        shown = "none" if value is None else f"{value:.4g}"
        cut = "; of a text that was cut" if name in record["cut"] else ""
        direction = ESTIMATORS[name].higher_is.replace("_", " ")
        typer.echo(f"{name:26}{shown:>10}   {ESTIMATORS[name].about} (higher: {direction}){cut}")


def _report(records: Sequence[Mapping[str, Any]], header: Mapping[str, Any], file: str, as_json: bool) -> None:
    """How well each estimator tells right answers from wrong ones."""
    from likely.uncertainty.planner import compare_estimators

    accuracy = Accuracy(sum(r["correct"] for r in records), len(records))
    found = compare_estimators(records, header["settings"]["methods"])
    if as_json:
        print_json({**header, "file": file, **accuracy.to_dict(), "estimators": found})
        return
    typer.echo(f"{file}: {accuracy.line()}")
    for name, numbers in found.items():
        if numbers["auroc"] is None:
            typer.echo(f"{name:26} {numbers['why_not']}")
            continue
        missing = f"; {numbers['missing']} without a value" if numbers["missing"] else ""
        typer.echo(
            f"{name:26} AUROC {with_interval(numbers['auroc'], numbers['auroc_interval'])}  "
            f"PRR {with_interval(numbers['prr'], numbers['prr_interval'])}  n {numbers['n']}{missing}"
        )
