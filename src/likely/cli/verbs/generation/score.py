"""likely score: log-probabilities of given answers, and perplexity of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import options as opt
from likely.cli import show as seeing

if TYPE_CHECKING:
    from likely.io.jsonl import Checked, Line, Results


def register(app: typer.Typer) -> None:
    app.command("score")(score)


def score(
    file: Annotated[
        str | None, typer.Argument(help='JSONL of {"prompt", "answers": [...]} or {"prompt", "answer"}; "-": stdin.')
    ] = None,
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    dtype: opt.DtypeOption = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One prompt, instead of a file.")] = None,
    answer: Annotated[list[str] | None, typer.Option("--answer", help="An answer to score (repeatable).")] = None,
    perplexity: Annotated[
        str | None, typer.Option("--perplexity", metavar="TEXTFILE", help="Perplexity of a text file instead.")
    ] = None,
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    limit: opt.LimitOption = None,
    on_error: Annotated[
        Literal["stop", "skip"],
        typer.Option(
            "--on-error",
            help="At a line that cannot be scored: end, or name it on stderr, count it and go on (exit code 0).",
        ),
    ] = "stop",
    top_logprobs: Annotated[int, typer.Option("--top-logprobs", min=0, max=100, help="Alternatives per token.")] = 0,
    window: Annotated[int | None, typer.Option("--window", min=2, help="Score longer texts in pieces.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="New tokens per piece.")] = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    show: seeing.ShowOption = False,
    html: seeing.HtmlOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Log-probability of each answer given its prompt, in nats.

    Examples:

      likely score --prompt "2 + 2 =" --answer " 4" --answer " 5"

      likely score --prompt "2 + 2 =" --answer " 4" --answer " 5" --show --html answers.html

      likely score questions.jsonl > scored.jsonl

      likely score questions.jsonl --output scored.jsonl --on-error skip

      likely score --perplexity README.md
    """
    from likely.errors import DataError

    given = [file is not None, prompt is not None or bool(answer), perplexity is not None]
    if sum(given) != 1:
        raise typer.BadParameter("give one of: FILE, --prompt with --answer, --perplexity TEXTFILE", param_hint="FILE")
    if given[1] and (prompt is None or not answer):
        raise typer.BadParameter("--prompt and --answer belong together", param_hint="--answer")
    see = seeing.wanted(show, html, as_json)
    if see and not given[1]:
        raise typer.BadParameter("--show and --html need --prompt and --answer", param_hint="--show")
    if file is None and on_error != "stop":
        raise typer.BadParameter("--on-error needs an input FILE", param_hint="--on-error")
    if file is not None:
        opt.refuse_same_file(file, output)
    checked = _read(file, limit, on_error == "skip") if file is not None else None
    text = opt.read_text(perplexity) if perplexity is not None else ""
    if perplexity is not None and not text:
        raise DataError(f"{perplexity} is empty: nothing to score")
    if output is not None and file is None:
        raise typer.BadParameter("--output needs an input FILE", param_hint="--output")
    options: dict[str, Any] = {"top_logprobs": top_logprobs, "window": window, "stride": stride}
    lm = opt.open_model(model, runtime=runtime, dtype=dtype, use="scoring", context=context, threads=threads)
    with lm:
        if perplexity is not None:
            _print_perplexity(lm, perplexity, text, window, stride, as_json)
        elif file is not None and checked is not None:
            _score_file(lm, file, checked, output, overwrite, options, on_error == "skip")
        else:
            if see:
                options |= seeing.scoring(lm, top_logprobs)
            scored = _print_scores(lm, prompt or "", answer or [], options, as_json, quiet=show)
            seeing.present(lm, scored, show=show, html=html, title="likely score", prompt=prompt or "")


def _read(file: str, limit: int | None, skip: bool) -> Checked:
    """All input lines, checked before the model is loaded."""
    from likely.errors import DataError
    from likely.io.jsonl import read_checked

    where = _name(file)
    checked = read_checked(file, lambda line: _pair_texts(line, where), skip=skip, limit=limit)
    for error in checked.bad:
        typer.echo(f"skipped: {error}", err=True)
    if not checked.lines:
        if checked.bad:
            raise DataError(f"none of the {checked.total} lines of {where} can be scored")
        raise DataError(f'{where} holds no records: expected lines like {{"prompt": "...", "answers": ["...", "..."]}}')
    return checked


def _name(file: str) -> str:
    return "stdin" if file == "-" else file


def _pair_texts(line: Line, where: str) -> tuple[str, list[str]]:
    """(prompt, answers) of an input line."""
    from likely.errors import DataError
    from likely.io.jsonl import text_field

    prompt = text_field(line, "prompt", where)
    if "answers" not in line.record:
        if "answer" not in line.record:
            found = ", ".join(f'"{k}"' for k in line.record)
            raise DataError(f'{where}:{line.number}: field "answers" (or "answer") is missing (found: {found})')
        return prompt, [text_field(line, "answer", where)]
    answers = line.record["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise DataError(f'{where}:{line.number}: field "answers" must be a list of one or more strings')
    return prompt, answers


def _score_file(
    lm: Any, file: str, checked: Checked, output: Path | None, overwrite: bool, options: dict[str, Any], skip: bool
) -> None:
    from likely.cli.printing import progress
    from likely.io.jsonl import Results, unfinished

    header = {**opt.origin(lm), "kind": "score", "template": None, "settings": options}
    lines, where, skipped = checked.lines, _name(file), len(checked.bad)
    with Results(output, header, overwrite=overwrite) as results:
        todo = unfinished(lines, results, where)
        answers = sum(len(_pair_texts(line, where)[1]) for chunk in todo for line in chunk)
        with progress(answers, "scoring") as tick:
            for chunk in todo:
                skipped += _score_chunk(lm, where, chunk, results, options, tick, skip)
    if skipped:
        typer.echo(f"skipped {skipped} of {checked.total} lines", err=True)


def _score_chunk(
    lm: Any, where: str, chunk: Sequence[Line], results: Results, options: dict[str, Any], tick: Any, skip: bool
) -> int:
    """Score some lines together and write their results; returns how many were left out."""
    from likely.errors import CapabilityError, LikelyError, RemoteError

    skipped = 0
    try:
        records = _scored(lm, where, chunk, options, tick)
    except (CapabilityError, RemoteError):  # the model's fault, not a line's
        raise
    except LikelyError:
        chunk, skipped = _scorable(lm, where, chunk, options, skip)
        records = _scored(lm, where, chunk, options, tick)
    results.write(record for line, record in zip(chunk, records, strict=True) if not results.is_done(line, where))
    return skipped


def _scored(lm: Any, where: str, chunk: Sequence[Line], options: dict[str, Any], tick: Any) -> list[dict[str, Any]]:
    groups = [_pair_texts(line, where) for line in chunk]
    pairs = [(prompt, answer) for prompt, answers in groups for answer in answers]
    if not pairs:
        return []
    if hasattr(lm, "score_pairs"):
        scored = iter(lm.score_pairs(pairs, progress=tick, **options))
    else:
        scored = (s for prompt, answers in groups for s in lm.score(prompt, answers))
    records = []
    for line, (_, answers) in zip(chunk, groups, strict=True):
        record: dict[str, Any] = {"line": line.number, "input": line.digest}
        record |= {key: line.record[key] for key in ("id", "label") if key in line.record}
        record["answers"] = [next(scored).to_dict() for _ in answers]
        records.append(record)
    return records


def _scorable(
    lm: Any, where: str, chunk: Sequence[Line], options: dict[str, Any], skip: bool
) -> tuple[Sequence[Line], int]:
    """The lines of a failed chunk that the model can score (one that does not fit its context, say, it cannot)."""
    from likely.errors import DataError, LikelyError

    good = []
    for line in chunk:
        try:
            _scored(lm, where, [line], options, None)
        except LikelyError as error:
            message = f"{where}:{line.number}: {error}"
            if not skip:
                raise DataError(message) from None
            typer.echo(f"skipped: {message}", err=True)
        else:
            good.append(line)
    return good, len(chunk) - len(good)


def _print_scores(
    lm: Any, prompt: str, answers: list[str], options: dict[str, Any], as_json: bool, *, quiet: bool = False
) -> list[Any]:
    from likely.cli.printing import print_json

    given = {key: value for key, value in options.items() if value}
    scored = lm.score(prompt, answers, **given)
    if as_json:
        print_json({**opt.origin(lm), "prompt": prompt, "answers": [s.to_dict() for s in scored]})
    if as_json or quiet:
        return list(scored)
    width = max(len(repr(s.text)) for s in scored)
    typer.echo(f"{'answer':<{width}}  {'sum':>10}  {'mean':>9}  tokens   (nats)")
    for s in scored:
        mean = "" if s.mean_logprob is None else f"{s.mean_logprob:9.4f}"
        note = "  first token also holds the end of the prompt" if s.straddles else ""
        typer.echo(f"{s.text!r:<{width}}  {s.sequence_logprob:10.4f}  {mean:>9}  {len(s.token_logprobs):6}{note}")
    return list(scored)


def _print_perplexity(lm: Any, path: str, text: str, window: int | None, stride: int | None, as_json: bool) -> None:
    from dataclasses import asdict

    from likely.cli.printing import print_json, progress
    from likely.errors import CapabilityError

    if not hasattr(lm, "perplexity"):
        raise CapabilityError("perplexity needs a model on this machine, not a server")
    with progress(max(2, len(text) // 2000), "reading", unit="pieces") as tick:
        result = lm.perplexity(text, window=window, stride=stride, progress=tick)
    if as_json:
        print_json({**opt.origin(lm), "file": path, **asdict(result)})
        return
    typer.echo(
        f"{path}: perplexity {result.perplexity:.4f}  {result.nats_per_token:.5f} nats/token  "
        f"{result.bits_per_byte:.5f} bits/byte  "
        f"({result.tokens} tokens, window {result.window}, stride {result.stride})"
    )
