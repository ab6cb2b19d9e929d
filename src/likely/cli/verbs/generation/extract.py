"""likely extract: the values that a schema asks for, from a document or from every line of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import forms
from likely.cli import options as opt
from likely.cli import show as seeing

if TYPE_CHECKING:
    from likely.io.jsonl import Line
    from likely.lm.extract import Extracted

KEYS = ("text", "document", "prompt")  # of a line; the first that it has is the document
HINT = 'expected lines like {"text": "...", "id": 1} or "..."'
# what a result says; a line that carries fields of these names would lose them
RESULTS = (
    "line", "input", "value", "error", "complete", "approximate", "log_weight", "guided_logprob", "sequence_logprob",
    "finish_reason", "fields", "structure", "confidence",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    app.command("extract")(extract)


def extract(
    file: Annotated[
        str | None,
        typer.Argument(help='JSONL of {"text"} (or "document", "prompt") or of strings; "-" or a pipe: stdin.'),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option("--schema", metavar="FILE", help="A JSON Schema: what to extract.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="One document, instead of a file.")] = None,
    instruction: Annotated[str | None, typer.Option("--instruction", help="What to look for, in your words.")] = None,
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    dtype: opt.DtypeOption = None,
    max_tokens: opt.MaxTokens = 512,
    temperature: opt.TemperatureOption = 0.0,
    seed: opt.SeedOption = 0,
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    limit: opt.LimitOption = None,
    drafter: opt.DrafterOption = None,
    draft_budget: opt.BudgetOption = "auto",
    settings: opt.Settings = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    show_prompt: opt.ShowPrompt = False,
    show: seeing.ShowOption = False,
    html: seeing.HtmlOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Extract values from documents; every value obeys the schema.

    A result holds the value, the log-probability of each of its fields, and the other fields of its line.  A document
    that gives no value has an error in its place, and the exit code is 1.

    Examples:

      likely extract --schema person.json --text "Ann Lee, 31, lives in Oslo." --show

      likely extract --schema person.json documents.jsonl -o people.jsonl

      likely extract --schema person.json < documents.jsonl > people.jsonl
    """
    if schema is None:
        raise typer.BadParameter("say what to extract: a file with a JSON Schema", param_hint="--schema")
    if text is not None and file is not None:
        raise typer.BadParameter("give a FILE or --text, not both", param_hint="--text")
    if text is not None and (output is not None or overwrite or limit is not None):
        raise typer.BadParameter("--output, --overwrite and --limit need a FILE", param_hint="--text")
    if text is None and html is not None:
        raise typer.BadParameter("--html takes one document: give it as --text", param_hint="--html")
    see = seeing.wanted(show, html, as_json)
    given = {
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed, **opt.parse_settings(settings),
        **opt.drafting(drafter, draft_budget),
    }  # fmt: skip
    wanted = forms.form_options(schema, None, None, None, given)["schema"]
    if given.get("n", 1) != 1 or given.get("beams"):
        raise ValueError("each document is read once: drop n= and beams=")
    name = ""
    lines: list[Line] = []
    if text is None:
        name, lines = read_documents(file, limit)
        if file not in (None, "-"):
            opt.refuse_same_file(str(file), output)
    elif html is not None:
        given.setdefault("top_logprobs", seeing.ALTERNATIVES)
    with opt.open_model(model, runtime=runtime, dtype=dtype, context=context, threads=threads) as lm:
        if text is None:
            _extract_file(lm, name, lines, wanted, instruction, given, output, overwrite, show_prompt, show)
            return
        if show_prompt:
            _show_prompt(lm, text, wanted, instruction, given)
        found = lm.extract(text, schema=wanted, instruction=instruction, **given)
        _print_one(lm, found, show, as_json, text)
        if see and html is not None and found.result is not None:
            seeing.present(lm, [found.result], show=False, html=html, title="likely extract", prompt=text)
        _refuse(found.error)


def read_documents(file: str | None, limit: int | None) -> tuple[str, list[Line]]:
    """(name for errors, all lines), checked before the model is loaded."""
    import sys

    from likely.errors import DataError
    from likely.io.jsonl import read_checked

    if file is None and sys.stdin.isatty():
        raise typer.BadParameter("give a FILE, pipe one in, or --text", param_hint="FILE")
    path = "-" if file is None else file
    name = "stdin" if path == "-" else path
    lines = read_checked(path, lambda line: document_of(line, name), limit=limit, bare="text").lines
    if not lines:
        raise DataError(f"{name} holds no records: {HINT}")
    return name, lines


def document_of(line: Line, where: str) -> tuple[str, dict[str, Any]]:
    """(document, the fields that its result carries)."""
    from likely.errors import DataError
    from likely.io.jsonl import text_field

    key = next((key for key in KEYS if key in line.record), None)
    if key is None:
        found = ", ".join(f'"{k}"' for k in line.record) or "nothing"
        raise DataError(f'{where}:{line.number}: field "text" (or "document", "prompt") is missing (found: {found})')
    document = text_field(line, key, where)
    if not document.strip():
        raise DataError(f'{where}:{line.number}: field "{key}" is empty')
    carried = {name: value for name, value in line.record.items() if name != key}
    for name in carried:
        if name in RESULTS:
            raise DataError(f'{where}:{line.number}: field "{name}" has the name of a result: rename it')
    return document, carried


def record_of(found: Extracted) -> dict[str, Any]:
    """The fields of a results file that depend on model, document and settings alone; never a value beside an error."""
    if found.result is None:
        return {"value": None, "error": found.error}
    fields = found.result.to_dict()
    record = {"value": fields["value"] if found.error is None else None, "error": found.error}
    kept = {name: fields[name] for name in RESULTS[4:] if name in fields}
    return {**record, **kept, "confidence": None, **({} if found.error is None else {"text": found.result.text})}


def _extract_file(
    lm: Any,
    name: str,
    lines: Sequence[Line],
    schema: Any,
    instruction: str | None,
    options: dict[str, Any],
    output: Path | None,
    overwrite: bool,
    show_prompt: bool,
    show: bool,
) -> None:
    """Every line that has no result in `output` yet."""
    from likely.cli.printing import progress
    from likely.errors import LikelyError
    from likely.io.hashes import fingerprint
    from likely.io.jsonl import Results, chunked, unfinished
    from likely.lm.extract import INSTRUCTION
    from likely.lm.questions import BATCH

    made_with = {**options, "schema": schema, "instruction": instruction or INSTRUCTION}
    header = {
        **opt.origin(lm), "kind": "extract", "template": _template(lm), "settings": made_with,
        "settings_hash": fingerprint(made_with),
    }  # fmt: skip
    lm.preview_extraction("?", schema=schema, instruction=instruction, **options)
    quiet = show and output is None
    failed: list[str] = []
    with nullcontext(None) if quiet else Results(output, header, overwrite=overwrite) as results:
        todo = chunked(lines, BATCH) if results is None else unfinished(lines, results, name, size=BATCH)
        before = 0 if results is None else len(results.done)
        try:
            with progress(sum(map(len, todo)), "reading", unit="documents") as tick:
                for line, carried, found in _found(lm, name, todo, schema, instruction, options, show_prompt):
                    if results is not None and not results.is_done(line, name):
                        results.write([{"line": line.number, "input": line.digest, **carried, **record_of(found)}])
                    if found.error is not None:
                        failed.append(f"{name}:{line.number}: {found.error}")
                    if show:
                        typer.echo(f"{name}:{line.number}")
                        _print_one(lm, found, True, False, "")
                    tick(1)
        except KeyboardInterrupt:
            if output is not None and results is not None:
                typer.echo(
                    f"stopped: {len(results.done) - before} new, {len(results.done)} of {len(lines)} lines are in "
                    f"{output}; the same command goes on",
                    err=True,
                )
            raise
    count = len(failed) if output is None else _errors_in(output)
    if count:
        first = f", the first is {failed[0]}" if failed else ""
        raise LikelyError(f"{count} of {len(lines)} documents gave no value{first}")


def _found(
    lm: Any, name: str, chunks: Sequence[Sequence[Line]], schema: Any, instruction: str | None, options: dict[str, Any],
    show_prompt: bool,
) -> Iterator[tuple[Line, dict[str, Any], Extracted]]:  # fmt: skip
    """(line, what its result carries, what it gave), in the order of the lines."""
    read = [(line, *document_of(line, name)) for chunk in chunks for line in chunk]
    if show_prompt:
        for _, document, _ in read:
            _show_prompt(lm, document, schema, instruction, options)
    documents = [document for _, document, _ in read]
    results = lm.extract_each(documents, schema=schema, instruction=instruction, **options)
    for (line, _, carried), found in zip(read, results, strict=True):
        yield line, carried, found


def _errors_in(path: Path) -> int:
    """Lines of a results file that have an error, those of earlier runs, too."""
    from likely.io.jsonl import read_lines

    return sum(line.record.get("error") is not None for line in read_lines(path))


def _template(lm: Any) -> str | None:
    """Hash of what turns a prompt into the model's text; None where a server does that, and for base models."""
    return lm.template_hash if getattr(lm, "template", None) is not None else None


def _print_one(lm: Any, found: Extracted, show: bool, as_json: bool, text: str) -> None:
    import json

    from likely.cli.printing import for_terminal, print_json

    if as_json:
        print_json({**opt.origin(lm), "text": text, **record_of(found)})
    elif show:
        if found.result is not None:
            seeing.present_fields([found.result])
        if found.error is not None:
            typer.echo(for_terminal(found.error))
    elif found.error is None:
        typer.echo(for_terminal(json.dumps(found.value, ensure_ascii=False)))


def _show_prompt(lm: Any, document: str, schema: Any, instruction: str | None, options: dict[str, Any]) -> None:
    from likely.cli.printing import for_terminal

    text = lm.preview_extraction(document, schema=schema, instruction=instruction, **options)
    typer.echo(for_terminal(text, err=True), err=True)


def _refuse(error: str | None) -> None:
    from likely.errors import ConstraintError

    if error is not None:
        raise ConstraintError(error)
