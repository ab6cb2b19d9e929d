"""likely extract: the values that a schema asks for, from a document or from every line of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from likely.cli import flags, forms, options
from likely.cli.file_run import Advance, Chunks, FileRun, read_file
from likely.cli.printing import for_terminal, print_json
from likely.cli.show import ALTERNATIVES, ShowFlags, present_fields
from likely.errors import ConstraintError, DataError, LikelyError, names_in
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line, text_field
from likely.lm.extract import INSTRUCTION, Extracted
from likely.lm.options import EXTRACT_DEFAULTS
from likely.lm.questions import BATCH

KEYS = ("text", "document", "prompt")  # of a line; the first that it has is the document
# what a result says; a line that carries fields of these names would lose them
RESULTS = (
    "line", "input", "value", "error", "complete", "approximate", "log_weight", "guided_logprob", "sequence_logprob",
    "finish_reason", "fields", "structure", "confidence",
)  # fmt: skip


TEXT = flags.TextFlags.of(EXTRACT_DEFAULTS)


@flags.grouped
def extract(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    look: ShowFlags,
    file: Annotated[
        str | None,
        typer.Argument(help='JSONL of {"text"} (or "document", "prompt") or of strings; "-" or a pipe: stdin.'),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option("--schema", metavar="FILE", help="A JSON Schema: what to extract.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="One document, instead of a file.")] = None,
    instruction: Annotated[str | None, typer.Option("--instruction", help="What to look for, in your words.")] = None,
    decoding: flags.TextFlags = TEXT,
    show_prompt: flags.ShowPrompt = False,
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
    if text is not None and out.given:
        raise typer.BadParameter("--output, --overwrite and --limit need a FILE", param_hint="--text")
    if text is None and look.html is not None:
        raise typer.BadParameter("--html takes one document: give it as --text", param_hint="--html")
    look.wanted()
    given = decoding.given()
    form = forms.FormFlags(schema=schema).given(given)["schema"]
    if given.get("n", 1) != 1 or given.get("beams"):
        raise ValueError("each document is read once: drop n= and beams=")
    lines = None
    if text is None:
        if file is None and sys.stdin.isatty():
            raise typer.BadParameter("give a FILE, pipe one in, or --text", param_hint="FILE")
        lines = read_file(
            "-" if file is None else file, document_of, out, bare="text",
            expected='lines like {"text": "...", "id": 1} or "..."',
        )  # fmt: skip
    elif look.html is not None:
        given.setdefault("top_logprobs", ALTERNATIVES)
    with model.open() as lm:
        if lines is not None:
            _extract_file(lm, lines, form, instruction, given, show_prompt, look.show)
            return
        if show_prompt:
            _show_prompt(lm, text or "", form, instruction, given)
        found = lm.extract(text or "", schema=form, instruction=instruction, **given)
        _print_one(lm, found, look.show, look.as_json, text or "")
        if found.result is not None:
            replace(look, show=False).present(lm, [found.result], title="likely extract", prompt=text or "")
        if found.error is not None:
            raise ConstraintError(found.error)


def document_of(line: Line, where: str) -> tuple[str, dict[str, Any]]:
    """(document, the fields that its result carries)."""
    key = next((key for key in KEYS if key in line.record), None)
    if key is None:
        found = names_in(line.record)
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
    lm: Any, lines: FileRun[tuple[str, dict[str, Any]]], schema: Any, instruction: str | None, settings: dict[str, Any],
    show_prompt: bool, show: bool,
) -> None:  # fmt: skip
    """Every line that has no result yet."""
    made_with = {**settings, "schema": schema, "instruction": instruction or INSTRUCTION}
    header = {
        **options.origin(lm), "kind": "extract", "settings": made_with, "settings_hash": fingerprint(made_with),
        "template": lm.template_hash if getattr(lm, "template", None) is not None else None,
    }  # fmt: skip
    lm.preview_extraction("?", schema=schema, instruction=instruction, **settings)  # refuses wrong settings now
    failed: list[str] = []

    def work(chunks: Chunks, advance: Advance) -> Iterator[tuple[Line, dict[str, Any]]]:
        asked = [line for chunk in chunks for line in chunk]
        documents = [lines.item(line)[0] for line in asked]
        for document in documents if show_prompt else ():
            _show_prompt(lm, document, schema, instruction, settings)
        results = lm.extract_each(documents, schema=schema, instruction=instruction, **settings)
        for line, found in zip(asked, results, strict=True):
            if found.error is not None:
                failed.append(f"{lines.where}:{line.number}: {found.error}")
            if show:
                typer.echo(f"{lines.where}:{line.number}")
                _print_one(lm, found, True, False, "")
            yield line, {**lines.item(line)[1], **record_of(found)}
            advance(1)

    lines.run(header, work, label="reading", unit="documents", size=BATCH, stdout=not show)
    count = len(failed) if lines.output is None else sum(r.get("error") is not None for r in lines.records())
    if count:
        first = f", the first is {failed[0]}" if failed else ""
        raise LikelyError(f"{count} of {len(lines.lines)} documents gave no value{first}")


def _print_one(lm: Any, found: Extracted, show: bool, as_json: bool, text: str) -> None:
    import json

    if as_json:
        print_json({**options.origin(lm), "text": text, **record_of(found)})
    elif show:
        if found.result is not None:
            present_fields([found.result])
        if found.error is not None:
            typer.echo(for_terminal(found.error))
    elif found.error is None:
        typer.echo(for_terminal(json.dumps(found.value, ensure_ascii=False)))


def _show_prompt(lm: Any, document: str, schema: Any, instruction: str | None, settings: dict[str, Any]) -> None:
    text = lm.preview_extraction(document, schema=schema, instruction=instruction, **settings)
    typer.echo(for_terminal(text, err=True), err=True)
