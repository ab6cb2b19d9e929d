"""likely uncertainty: how unsure the model is of its answers, by several estimators from one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.io.jsonl import Line

CHEAP = ("g_nll", "mean_nll", "max_nll", "token_entropy")  # of the one greedy text
CHEAP_REMOTE = ("g_nll", "mean_nll", "max_nll")  # a server gives no entropies
BATCH = 16  # questions of one run of the model, and at most so many are asked again after a kill


def register(app: typer.Typer) -> None:
    app.command("uncertainty")(uncertainty)


def uncertainty(
    question: Annotated[
        str | None,
        typer.Argument(help='A question, or a .jsonl file of {"question", "answer"}; "-": a pipe.'),
    ] = None,
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    dtype: opt.DtypeOption = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="An estimator (repeatable), or all.  [default: cheap ones]"),
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
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_tokens: opt.MaxTokens = 64,
    seed: opt.SeedOption = 0,
    stop: opt.StopOption = None,
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    limit: opt.LimitOption = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """How unsure the model is of its greedy answer, in nats or as a probability.

    A file gives one line per question; with --by, what is printed is the AUROC and the prediction-rejection ratio of
    each estimator with 95 % intervals.

    Examples:

      likely uncertainty "What is the capital of France? Answer with one word."

      likely uncertainty questions.jsonl --method g_nll --method semantic_entropy -o scored.jsonl

      likely uncertainty questions.jsonl --method all --samples 10 --by exact --json
    """
    from likely.cli.verbs.generation.ask_file import is_questions_file

    settings: dict[str, Any] = {
        "methods": _methods(method, model), "samples": samples, "beams": beams, "clusters": clusters,
        "max_tokens": max_tokens, "seed": seed, "stop": list(stop or ()), "system": system, "graded_by": by,
        "pattern": pattern,
    }  # fmt: skip
    load = {"runtime": runtime, "dtype": dtype, "context": context, "threads": threads}
    if not is_questions_file(question):
        for name, value in (("--by", by), ("--output", output), ("--limit", limit)):
            if value is not None:
                raise typer.BadParameter("is for a .jsonl file of questions", param_hint=name)
        text = opt.text_or_stdin(question, "question")
        with opt.open_model(model, **load) as lm:  # type: ignore[arg-type]
            _one(lm, text, settings, as_json)
        return
    assert question is not None
    opt.refuse_same_file(question, output)
    lines, is_right = _read(question, limit, by, pattern)
    with opt.open_model(model, **load) as lm:  # type: ignore[arg-type]
        header = _header(lm, settings)
        records = _file(lm, question, lines, header, is_right, output, overwrite)
    if by is not None:
        _report(records, header, question, as_json)


def _methods(given: Sequence[str] | None, model: str) -> list[str]:
    from likely.models.load import is_url
    from likely.uncertainty.table import ESTIMATORS, check_names

    if not given:
        return list(CHEAP_REMOTE if is_url(model) else CHEAP)
    if "all" in given:
        if is_url(model):
            raise typer.BadParameter('"all" is for a model on this machine: name the estimators', param_hint="--method")
        return list(ESTIMATORS)
    try:
        return check_names(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--method") from None


def _read(
    file: str, limit: int | None, by: str | None, pattern: str | None
) -> tuple[list[Line], Callable[[Mapping[str, Any]], bool] | None]:
    """The questions, and how their answers are graded; a reference that does not suit is refused at once."""
    from likely.cli.verbs.generation.ask_file import read_questions
    from likely.errors import DataError
    from likely.lm.questions import question_of
    from likely.metrics.grading import grader

    lines = read_questions(file, limit)
    if by is None:
        if pattern is not None:
            raise typer.BadParameter("--pattern belongs to --by regex", param_hint="--pattern")
        return lines, None
    is_right = grader(by, pattern)
    for line in lines:
        where = f"{file}:{line.number}"
        try:
            is_right({"text": "", **question_of(line.record, where).passed_on})
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
    return lines, is_right


def _header(lm: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    from likely.io.hashes import fingerprint
    from likely.uncertainty.table import ESTIMATORS

    return {
        **opt.origin(lm), "kind": "uncertainty", "template": lm.template_hash, "settings": settings,
        "settings_hash": fingerprint(settings),
        "higher_is": {name: ESTIMATORS[name].higher_is for name in settings["methods"]},
    }  # fmt: skip


def _file(
    lm: Any, file: str, lines: Sequence[Line], header: dict[str, Any], is_right: Any, output: Path | None,
    overwrite: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The records of these lines, those of an earlier run too; without grading or `output` they go to stdout."""
    from likely.cli.printing import progress
    from likely.io.jsonl import Results, chunked, read_lines, unfinished

    settings = header["settings"]
    if output is None and is_right is not None:
        with progress(len(lines), "asking", unit="questions") as tick:
            return [r for chunk in chunked(lines, BATCH) for r in _records(lm, file, chunk, settings, is_right, tick)]
    with Results(output, header, overwrite=overwrite) as results:
        todo = unfinished(lines, results, file, size=BATCH)
        with progress(sum(map(len, todo)), "asking", unit="questions") as tick:
            for chunk in todo:
                records = _records(lm, file, chunk, settings, is_right, tick)
                results.write([r for r, line in zip(records, chunk, strict=True) if not results.is_done(line, file)])
    if output is None:
        return []
    wanted = {line.number for line in lines}
    return [line.record for line in read_lines(output) if line.record.get("line") in wanted]


def _records(
    lm: Any, file: str, chunk: Sequence[Line], settings: Mapping[str, Any], is_right: Any, tick: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Fields of one chunk, which is one run of the model."""
    from likely.errors import CapabilityError, DataError, ModelError
    from likely.lm.questions import question_of

    questions = [question_of(line.record, f"{file}:{line.number}") for line in chunk]
    systems = [q.system or settings["system"] for q in questions]
    try:
        found = _measured(lm, [q.asked for q in questions], systems, settings, tick)
    except CapabilityError:
        raise
    except ModelError:
        for line, question, system in zip(chunk, questions, systems, strict=True):  # which one does the model refuse?
            try:
                _measured(lm, [question.asked], [system], settings, lambda n: None)
            except ModelError as error:
                raise DataError(f"{file}:{line.number}: {error}") from None
        raise
    out = []
    for line, question, fields in zip(chunk, questions, found, strict=True):
        record = {"line": line.number, "input": line.digest, **question.passed_on, **fields}
        if is_right is not None:
            record["correct"] = int(is_right(record))
        out.append(record)
    return out


def _measured(
    lm: Any,
    questions: Sequence[str],
    systems: Sequence[str | None],
    settings: Mapping[str, Any],
    tick: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Per question the answer and every wanted value; null where there is none."""
    import warnings

    from likely.uncertainty.planner import gather
    from likely.uncertainty.table import estimate

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gathered = gather(
            lm,
            questions,
            needs=[*settings["methods"], "greedy"],
            samples=settings["samples"],
            beams=settings["beams"],
            max_tokens=settings["max_tokens"],
            seed=settings["seed"],
            stop=settings["stop"],
            questions=True,
            system=systems,
            progress=tick,
        )
    for warning in caught:
        typer.echo(f"Warning: {warning.message}", err=True)
    values = estimate(gathered, settings["methods"], clusterer=_clusterer(settings["clusters"], lm))
    greedy = gathered.texts("greedy")
    out = []
    for i in range(gathered.n):
        record = {
            "text": greedy.texts[i],
            "finish_reason": greedy.finish_reasons[i],
            "sequence_logprob": float(greedy.logprobs[i]),
            "token_logprobs": greedy.token_logprobs[i].tolist(),
            "confidence": None,
            "uncertainty": {name: _number(found.values[i]) for name, found in values.items()},
            "cut": sorted(name for name, u in values.items() if u.truncated is not None and u.truncated[i]),
        }
        if gathered.samples is not None:
            record["samples"] = [gathered.samples.texts[k] for k in gathered.samples.of(i)]
        out.append(record)
    return out


def _clusterer(name: str, lm: Any) -> Any:
    from likely.uncertainty.clusters import EXACT, NUMBER, by_model, lexical

    return {"exact": lambda: EXACT, "number": lambda: NUMBER, "lexical": lexical, "model": lambda: by_model(lm)}[name]()


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _one(lm: Any, question: str, settings: Mapping[str, Any], as_json: bool) -> None:
    from likely.cli.printing import for_terminal, print_json
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
    from likely.cli.printing import print_json
    from likely.metrics.intervals import Accuracy
    from likely.metrics.ranking import discrimination

    accuracy = Accuracy(sum(r["correct"] for r in records), len(records))
    found = {
        name: discrimination(
            [r["uncertainty"].get(name) for r in records], [r["correct"] for r in records],
            higher_is=header["higher_is"][name],
        )
        for name in header["settings"]["methods"]
    }  # fmt: skip
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
            f"{name:26} AUROC {_with_interval(numbers, 'auroc')}  PRR {_with_interval(numbers, 'prr')}  "
            f"n {numbers['n']}{missing}"
        )


def _with_interval(numbers: Mapping[str, Any], key: str) -> str:
    low, high = numbers[f"{key}_interval"]
    return f"{numbers[key]:.3f} [{low:.3f}, {high:.3f}]"
