"""likely score: log-probabilities of given answers, and perplexity of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.file_run import Advance, FileRun, read_file
from likely.cli.printing import print_json, print_table, progress
from likely.cli.show import ShowFlags, more_to_show
from likely.errors import CapabilityError, DataError
from likely.io.jsonl import Line, text_field
from likely.io.whole_file import read_text


@flags.grouped
def score(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    look: ShowFlags,
    file: Annotated[
        str | None, typer.Argument(help='JSONL of {"prompt", "answers": [...]} or {"prompt", "answer"}; "-": stdin.')
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One prompt, instead of a file.")] = None,
    answer: Annotated[list[str] | None, typer.Option("--answer", help="An answer to score (repeatable).")] = None,
    perplexity: Annotated[
        str | None, typer.Option("--perplexity", metavar="TEXTFILE", help="Perplexity of a text file instead.")
    ] = None,
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
) -> None:
    """Log-probability of each answer given its prompt, in nats.

    Examples:

      likely score --prompt "2 + 2 =" --answer " 4" --answer " 5"

      likely score --prompt "2 + 2 =" --answer " 4" --answer " 5" --show --html answers.html

      likely score questions.jsonl > scored.jsonl

      likely score questions.jsonl --output scored.jsonl --on-error skip

      likely score --perplexity README.md
    """
    given = [file is not None, prompt is not None or bool(answer), perplexity is not None]
    if sum(given) != 1:
        raise typer.BadParameter("give one of: FILE, --prompt with --answer, --perplexity TEXTFILE", param_hint="FILE")
    if given[1] and (prompt is None or not answer):
        raise typer.BadParameter("--prompt and --answer belong together", param_hint="--answer")
    see = look.wanted()
    if see and not given[1]:
        raise typer.BadParameter("--show and --html need --prompt and --answer", param_hint="--show")
    for name, value in (("--on-error", on_error != "stop"), ("--output", out.output is not None)):
        if file is None and value:
            raise typer.BadParameter(f"{name} needs an input FILE", param_hint=name)
    skip = on_error == "skip"
    lines = None
    if file is not None:
        lines = read_file(
            file, pair_texts, out, skip=skip,
            expected='lines like {"prompt": "...", "answers": ["...", "..."]}',
        )  # fmt: skip
    text = read_text(perplexity) if perplexity is not None else ""
    if perplexity is not None and not text:
        raise DataError(f"{perplexity} is empty: nothing to score")
    settings: dict[str, Any] = {"top_logprobs": top_logprobs, "window": window, "stride": stride}
    with model.open("scoring") as lm:
        if perplexity is not None:
            _print_perplexity(lm, perplexity, text, window, stride, look.as_json)
        elif lines is not None:
            _score_file(lm, lines, settings, skip)
        else:
            if see:
                settings |= more_to_show(lm, top_logprobs)
            scored = _print_scores(lm, prompt or "", answer or [], settings, look.as_json, quiet=look.show)
            look.present(lm, scored, title="likely score", prompt=prompt or "")


def pair_texts(line: Line, where: str) -> tuple[str, list[str]]:
    """(prompt, answers) of an input line."""
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


def _score_file(lm: Any, lines: FileRun[tuple[str, list[str]]], settings: dict[str, Any], skip: bool) -> None:
    total = len(lines.lines) + lines.left_out

    def score_chunk(chunk: Sequence[Line], advance: Advance) -> list[dict[str, Any]]:
        groups = [lines.item(line) for line in chunk]
        pairs = [(prompt, answer) for prompt, answers in groups for answer in answers]
        if hasattr(lm, "score_pairs"):
            scored = iter(lm.score_pairs(pairs, progress=advance, **settings))
        else:
            scored = (s for prompt, answers in groups for s in lm.score(prompt, answers))
        return [
            {
                **{key: line.record[key] for key in ("id", "label") if key in line.record},
                "answers": [next(scored).to_dict() for _ in answers],
            }
            for line, (_, answers) in zip(chunk, groups, strict=True)
        ]

    lines.run(
        {**options.origin(lm), "kind": "score", "template": None, "settings": settings},
        lines.by_chunks(score_chunk, skip=skip),
        label="scoring",
        unit="answers",
        count=lambda line: len(lines.item(line)[1]),
    )
    if lines.left_out:
        typer.echo(f"skipped {lines.left_out} of {total} lines", err=True)


def _print_scores(
    lm: Any, prompt: str, answers: list[str], settings: dict[str, Any], as_json: bool, *, quiet: bool = False
) -> list[Any]:
    given = {key: value for key, value in settings.items() if value}
    scored = lm.score(prompt, answers, **given)
    if as_json:
        print_json({**options.origin(lm), "prompt": prompt, "answers": [s.to_dict() for s in scored]})
    if as_json or quiet:
        return list(scored)
    rows = [
        (
            repr(s.text), f"{s.sequence_logprob:.4f}", "" if s.mean_logprob is None else f"{s.mean_logprob:.4f}",
            len(s.tokens), _remark(s),
        )
        for s in scored
    ]  # fmt: skip
    print_table(("answer", "sum", "mean", "tokens", "(nats)"), rows)
    return list(scored)


def _remark(scored: Any) -> str:
    said = ["first token also holds the end of the prompt"] if scored.straddles else []
    if scored.kind == "lower_bound":
        said.insert(0, f"log p >= sum, standard error {scored.standard_error or 0:.4f}")
    return "; ".join(said)


def _print_perplexity(lm: Any, path: str, text: str, window: int | None, stride: int | None, as_json: bool) -> None:
    if not hasattr(lm, "perplexity"):
        raise CapabilityError("perplexity needs a model on this machine, not a server")
    with progress(max(2, len(text) // 2000), "reading", unit="pieces") as tick:
        result = lm.perplexity(text, window=window, stride=stride, progress=tick)
    if as_json:
        print_json({**options.origin(lm), "file": path, **asdict(result)})
        return
    typer.echo(
        f"{path}: perplexity {result.perplexity:.4f}  {result.nats_per_token:.5f} nats/token  "
        f"{result.bits_per_byte:.5f} bits/byte  "
        f"({result.tokens} tokens, window {result.window}, stride {result.stride})"
    )
