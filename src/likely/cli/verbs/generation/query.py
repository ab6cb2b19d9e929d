"""likely query: run a query, a prompt with holes and conditions."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, options
from likely.cli.printing import for_terminal, print_json
from likely.cli.show import check_page, write_page
from likely.errors import DataError, LikelyError, nearest
from likely.io.whole_file import read_text
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.queries import Query, QueryResult


def query(
    file: Annotated[Path, typer.Argument(help="The query's text.")],
    args: Annotated[
        list[str] | None,
        typer.Option("--arg", "-a", metavar="NAME=VALUE", help="An argument of the query (repeatable)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="As elsewhere.  [default: the query's own, or smollm2]")
    ] = None,
    decoder: Annotated[
        str | None, typer.Option("--decoder", help='Instead of the query\'s own: argmax, "sample(n=3)", "beam(4)", ...')
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Most tokens per hole.")] = None,
    runtime: flags.RuntimeOption = None,
    dtype: flags.DtypeOption = None,
    context: flags.ContextOption = None,
    threads: flags.ThreadsOption = None,
    seed: flags.SeedOption = 0,
    drafter: flags.DrafterOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Run the query's code without asking.")] = False,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="FILE", help="Reproduce the run of this --json output.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page of the run.")] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Run a query: Python in which a string is a prompt, [NAME] a hole, and where says what may stand in it.

    A query is code: it can do whatever you can.  Run only what you have read; you are asked before it starts.

    Examples:

      likely query examples/queries/odd_one_out.lmql --arg words="Monday, Tuesday, banana, Friday"

      likely query examples/queries/arithmetic.lmql --yes --html run.html

      likely query list.lmql --decoder "sample(n=3, temperature=0.8)" --seed 1 --json
    """
    from likely.queries import query_file

    check_page(html)
    found = query_file(file)
    chosen = None if decoder is None else _decoder(decoder)
    given = _arguments(args)
    if not yes:
        _ask(file, found)
    _check_arguments(found, given)
    chosen_model = model or found.model or DEFAULT_MODEL
    with flags.ModelFlags(chosen_model, runtime, dtype, context, threads).open_local() as lm:
        if replay is not None:
            results = [_replay(found, replay, lm)]
        else:
            made = _run(found, lm, given, decoder=chosen, max_tokens=max_tokens, seed=seed, drafter=drafter)
            results = made if isinstance(made, list) else [made]
        for number, result in enumerate(results):
            if as_json:
                print_json({**options.origin(lm), **result.to_dict()})
            else:
                _print(result, number if len(results) > 1 else None)
        if html is not None:
            from likely.show.html import query_page

            write_page(html, query_page(results, title=f"likely query {file.name}", origin=options.origin(lm)))


def _ask(file: Path, query: Query) -> None:
    """A query is run only if somebody says so."""
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{file} is code and would be run: read it, then give --yes", param_hint="--yes")
    typer.echo(
        f"{file} is Python code: it will run with your rights ({len(query.source.splitlines())} lines).", err=True
    )
    typer.confirm("Run it?", abort=True, err=True)


def _decoder(text: str) -> Any:
    from likely.queries import make_decoder

    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name):
            return make_decoder(node.id)
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        values = [ast.literal_eval(a) for a in node.args]
        return make_decoder(node.func.id, *values, **{str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
    except (SyntaxError, AssertionError):
        raise typer.BadParameter(f"expected NAME or NAME(option=value), got {text!r}", param_hint="--decoder") from None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--decoder") from None


def _arguments(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; values are texts, but for literals of lists, numbers and truth values."""
    out: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"expected NAME=VALUE, got {pair!r}", param_hint="--arg")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out


def _check_arguments(query: Query, given: dict[str, Any]) -> None:
    """A missing or unknown argument, said in the terms of the command line."""
    known = {p.name: p for p in query.arguments}
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise typer.BadParameter(
                f"the query has no argument {name} (it takes {takes}){nearest(name, known)}", param_hint="--arg"
            )
    missing = [
        n
        for n, p in known.items()
        if p.default is p.empty and n not in given and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing:
        raise typer.BadParameter(f"the query needs {', '.join(f'--arg {n}=...' for n in missing)}", param_hint="--arg")


def _run(query: Query, lm: Any, given: dict[str, Any], **run_options: Any) -> Any:
    """The query's own exceptions become one line; its text so far goes to stderr."""
    try:
        return query(lm, **given, **run_options)
    except Exception as error:
        trace = getattr(error, "query_trace", None)
        if trace is None:
            raise
        typer.echo(for_terminal(trace.text, err=True), err=True)
        if isinstance(error, LikelyError):
            raise
        raise LikelyError(f"the query failed: {type(error).__name__}: {error}{_line(query, error)}") from error


def _line(query: Query, error: Exception) -> str:
    """Where in the query."""
    import traceback

    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == query.file]
    return f" ({query.file}, line {lines[-1]})" if lines else ""


def _replay(query: Query, file: Path, lm: Any) -> QueryResult:
    from likely.queries import QueryTrace

    try:
        record = json.loads(read_text(file).splitlines()[0])
        trace = QueryTrace.from_dict(record.get("trace", record))
    except (ValueError, IndexError, AttributeError):
        raise DataError(f"{file} is not the output of likely query --json") from None
    return query.replay(trace, lm)


def _print(result: QueryResult, number: int | None) -> None:
    if number is not None:
        typer.echo(f"--- {number}")
    typer.echo(for_terminal(result.text))
    for value, probability in (result.distribution or {}).items():
        typer.echo(f"{probability:8.4f}  {for_terminal(value)}")
    cost = result.cost
    typer.echo(
        f"{cost.model_queries} model queries, {cost.decoder_calls} decoder calls, "
        f"{cost.billable_tokens} billable tokens, {cost.forward_tokens} computed, {cost.seconds:.1f} s",
        err=True,
    )
