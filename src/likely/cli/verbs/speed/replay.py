"""likely replay: what drafters would gain on recorded answers, without running a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, options
from likely.cli.file_run import input_name
from likely.cli.printing import print_json, print_table, progress, with_interval
from likely.decoding.drafting.table import DrafterContext, check_name, drafter_names, make_drafter, runs_model
from likely.errors import DataError
from likely.io.jsonl import read_lines
from likely.io.whole_file import check_target, write_for_user
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.decoding.drafting.protocol import DraftSource
    from likely.decoding.drafting.replay import RecordedAnswer, RecordedLine, Replayed
    from likely.lm.model import Model

CURVE = (1, 2, 4, 8, 16, 32)


def replay(
    file: Annotated[str, typer.Argument(metavar="TRACES", help='JSONL of recorded answers; "-": stdin.')],
    drafter: Annotated[
        list[str] | None,
        typer.Option("--drafter", help="As in likely generate (repeatable).  [default: all that need no model]"),
    ] = None,
    budget: Annotated[int, typer.Option("--budget", min=1, max=1024, help="Most drafted tokens per call.")] = 10,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Whose tokenizer and chat template; text needs one.  [default: smollm2]"),
    ] = None,
    limit: flags.LimitOption = None,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FILE|terminal", help="Also replay budgets 1 to 32: a .png, .svg or .pdf, or bars."
        ),
    ] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Tokens per call that drafters would have reached on recorded answers: exact for greedy and keyed decoding.

    Lines: {"prompt": "...", "answer": "..."}, {"messages": [...], "answer": "..."} (without an answer the last
    message is it), or {"prompt_ids": [...], "answer_ids": [...]}.  Drafters that remember other texts see the lines in
    the order of the file.  The end token of an answer is not counted.

    Examples:

      likely replay traces.jsonl

      likely replay traces.jsonl --drafter copy --drafter copy+ngram --budget 16

      likely replay traces.jsonl --plot gain.png

      likely replay traces.jsonl --plot terminal
    """
    from likely.decoding.drafting.replay import replay_all
    from likely.show.plot import FORMATS, budget_bars, draw_budgets, render

    if plot == "terminal" and as_json:
        raise typer.BadParameter("bars are for people and --json for programs: choose one", param_hint="--plot")
    names = list(dict.fromkeys(drafter or ()))
    for name in names:
        _check(name)
    if plot is not None and plot != "terminal":
        check_target(Path(plot), FORMATS)
    records = _read(file, limit)
    needs_model = model is not None or any(record.is_text for record in records)  # lines of ids need none
    with flags.ModelFlags(model or DEFAULT_MODEL).open_local() if needs_model else nullcontext() as lm:
        traces = _tokens(records, lm)
        makers = _makers(names or _without_model(vocabulary=lm is not None), lm)
        budgets = list(dict.fromkeys([budget, *(CURVE if plot else ())]))
        with progress(len(traces) * len(makers) * len(budgets), "replaying", unit="traces") as tick:
            found = replay_all(makers, traces, budgets=budgets, progress=tick)
        origin = options.origin(lm) if lm else {}
    curves = {
        name: [(run.budget, run.tokens_per_call, *run.interval) for run in sorted(runs, key=lambda run: run.budget)]
        for name, runs in found.items()
    }
    if plot and plot != "terminal":
        target = Path(plot)
        write_for_user(target, render(draw_budgets(curves, title=Path(file).name), target.suffix))
        typer.echo(f"wrote {target}", err=True)
    if as_json:
        print_json(_as_record(file, origin, found, bool(plot)))
        return
    where = input_name(file)
    tokens = sum(len(trace.answer) for trace in traces)
    typer.echo(f"{where}: {len(traces)} answers of {tokens:,} tokens; at most {budget} drafted tokens per call")
    rows = [
        (
            run.name, with_interval(run.tokens_per_call, run.interval, 2),
            "" if run.acceptance_rate is None else f"{run.acceptance_rate:.1%}", f"{run.drafted_per_call:.2f}",
            f"{run.propose_us:.1f}",
        )
        for run, *_ in found.values()
    ]  # fmt: skip
    print_table(("drafter", "tokens/call [95 %]", "accepted", "drafted/call", "us/proposal"), rows)
    if plot == "terminal":
        typer.echo("")
        for line in budget_bars(curves):
            typer.echo(line)


def _without_model(*, vocabulary: bool) -> list[str]:
    """Drafters whose drafts depend on the text alone; vocabulary: whether that of the target is known."""
    return drafter_names(lambda e: not (e.runs_model or e.preset) and (vocabulary or not e.needs_vocabulary))


def _check(name: str) -> None:
    """Refuse a drafter before anything is read."""
    try:
        check_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--drafter") from None
    if name == "none":
        raise typer.BadParameter("none drafts nothing: one token per call", param_hint="--drafter")
    if runs_model(name):
        raise typer.BadParameter(
            f"the drafts of {name} depend on a model, a replay knows only the text: use likely generate --drafter "
            f"{name}, or one of {', '.join(_without_model(vocabulary=True))}",
            param_hint="--drafter",
        )


def _read(file: str, limit: int | None) -> list[RecordedLine]:
    from likely.decoding.drafting.replay import recorded

    where = input_name(file)
    records = [recorded(line, where) for line in islice(read_lines(file), limit)]
    if not records:
        raise DataError(f'{where} holds no records: expected lines like {{"prompt": "...", "answer": "..."}}')
    return records


def _tokens(records: Sequence[RecordedLine], lm: Model | None) -> list[RecordedAnswer]:
    from likely.decoding.drafting.replay import tokenise

    if lm is None:
        return [tokenise(record) for record in records]
    return [
        tokenise(
            record,
            vocab_size=lm.runtime.vocab_size,
            encode_prompt=lm.encode_prompt,
            render=lambda messages: lm.render(messages).tokens,
            encode=lm.tokenizer.encode,
        )
        for record in records
    ]


def _makers(names: Sequence[str], lm: Model | None) -> dict[str, Callable[[], DraftSource]]:
    context = DrafterContext(lm.runtime if lm else None, lm.tokenizer if lm else None)
    makers: dict[str, Callable[[], Any]] = {}
    for name in names:
        makers[name] = partial(make_drafter, name, context)
        try:
            makers[name]()
        except ValueError as error:
            hint = "" if lm else ": give it with -m"
            raise typer.BadParameter(f"{name}: {error}{hint}", param_hint="--drafter") from None
    return makers


def _as_record(file: str, origin: dict[str, Any], found: dict[str, list[Replayed]], curve: bool) -> dict[str, Any]:
    from likely import __version__

    first = next(iter(found.values()))[0]
    drafters = []
    for name, runs in found.items():
        record = {"drafter": name, **_numbers(runs[0])}
        if curve:
            record["curve"] = [_numbers(run) for run in sorted(runs, key=lambda run: run.budget)]
        drafters.append(record)
    return {
        "likely": __version__, "kind": "replay", **origin, "file": file,
        "answers": len(first.rounds), "tokens": first.tokens,
        "interval": "95 %, percentile bootstrap over answers", "drafters": drafters,
    }  # fmt: skip


def _numbers(run: Replayed) -> dict[str, Any]:
    return {
        "budget": run.budget, "tokens_per_call": run.tokens_per_call, "interval": list(run.interval),
        "acceptance_rate": run.acceptance_rate, "drafted_per_call": run.drafted_per_call, "calls": run.calls,
        "proposal_us": run.propose_us, "drafter_us_per_token": run.draft_us,
    }  # fmt: skip
