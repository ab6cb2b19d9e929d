"""likely prompts: choose a prompt from a pool by the model's probabilities, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.help import VerbCommand
from likely.cli.printing import for_terminal, print_json, print_table, progress, with_interval
from likely.cli.verbs.prompts.hints import hint, learn_hints
from likely.cli.verbs.prompts.reask import reask
from likely.errors import DataError
from likely.io.jsonl import Line, read_checked
from likely.io.whole_file import check_target

if TYPE_CHECKING:
    from likely.prompting.selection.choosing import Selection
    from likely.prompting.selection.scores import PromptScores
    from likely.prompting.templates import PromptPool

EXAMPLES = """Choose prompts by the model's probabilities, ask risky answers again, learn hints for honest confidence.

Examples:

  likely prompts select --pool pool.jsonl --inputs reviews.jsonl

  likely prompts reask sms.jsonl --rules rules.jsonl --labels ham,spam --instruction "Spam or ham?"

  likely prompts learn-hints exam.jsonl --hints hints.txt -o policy.json
"""
INPUTS_HINT = 'expected lines like {"text": "..."}, with a "label" where it is known'


verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)
for name, verb in (("reask", reask), ("learn-hints", learn_hints), ("hint", hint)):
    verbs.command(name, cls=VerbCommand)(verb)


@verbs.command("select", cls=VerbCommand)
@flags.grouped
def select(
    model: flags.ModelFlags,
    scores: Annotated[
        Path | None, typer.Argument(help="Scores that an earlier run saved (-o): choose anew without a model.")
    ] = None,
    pool: Annotated[
        Path | None, typer.Option("--pool", help='JSONL (.gz, too) of {"name", "template", "answer_choices"}.')
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help='Only the pool\'s prompts with this "task".')] = None,
    inputs: Annotated[
        str | None, typer.Option("--inputs", help='JSONL of {"text", "label" where it is known}; "-": standard input.')
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            callback=flags.one_of("criteria"),
            help="{criteria}; MDL and those that end in L choose for each input.",
        ),
    ] = "MI_G",
    calibrate: Annotated[
        Literal["cbm", "cc", "pmi"] | None,
        typer.Option(
            "--calibrate",
            help="Divide by what a prompt answers anyway: to all inputs (cbm), to inputs without content (cc, pmi).",
        ),
    ] = None,
    where: Annotated[
        Literal["PA", "P", "A"],
        typer.Option("--where", help="Calibrate for the choice of the prompt (P), for its answers (A), or both."),
    ] = "PA",
    norm: Annotated[
        Literal["token", "sum", "first"],
        typer.Option("--norm", help="Compare answers by their mean per token, their sum, or their first token."),
    ] = "token",
    show: Annotated[int, typer.Option("--show", min=1, help="So many prompts of the ranking.")] = 10,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Keep the scores (.npz); a run that was stopped goes on there."),
    ] = None,
    overwrite: flags.OverwriteOption = False,
    limit: flags.LimitOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Rank the prompts of a pool without labels, from the model's answers to your inputs.

    Where the inputs carry labels, accuracy, macro-F1 and scaled F1 (of the best prompt's) stand beside the ranking.

    Examples:

      likely prompts select --pool pool.jsonl --inputs reviews.jsonl -o scores.npz

      likely prompts select scores.npz --method MI_GL --calibrate cbm

      likely prompts select --pool prompts.jsonl.gz --task sst2 --inputs reviews.jsonl --limit 100 --json
    """
    from likely.prompting.selection.choosing import select as choose
    from likely.prompting.selection.criteria import PERPLEXITY
    from likely.prompting.selection.scores import PromptScores

    if scores is not None:
        if pool is not None or inputs is not None or output is not None:
            raise typer.BadParameter("saved scores need no --pool, --inputs or --output", param_hint="SCORES")
        found = PromptScores.load(scores)
    else:
        if pool is None or inputs is None:
            raise typer.BadParameter("give --pool and --inputs, or a file of saved scores", param_hint="--pool")
        options.refuse_same_file(str(pool), output)
        options.refuse_same_file(inputs, output)
        if output is not None:
            check_target(output)
        found = _score(
            pool, task, inputs, limit, output, overwrite, perplexity=method in PERPLEXITY,
            model=model,
        )  # fmt: skip
    selection = choose(
        found, method, norm=norm,
        calibrate_choice=calibrate if "P" in where else None, calibrate_answers=calibrate if "A" in where else None,
    )  # fmt: skip
    labels = found.known_labels()
    rows = selection.ranked(labels)
    whole = {} if labels is None else selection.quality(labels)
    settings = {"method": method, "calibrate": calibrate, "where": where if calibrate else None, "norm": norm}
    if as_json:
        each = [found.names[t] for t in selection.choice] if selection.per_input else None
        print_json(
            {
                **{k: v for k, v in found.origin.items() if k != "prompt_digests"}, **settings,
                "prompts": len(found.names), "inputs": found.logprobs.shape[1], "chosen": selection.name,
                "chosen_per_input": each, **whole, "ranking": rows, "answers": selection.answers.tolist(),
                "probs": selection.probs.round(6).tolist(),
            }
        )  # fmt: skip
        return
    _print(found, selection, rows[:show], whole, settings)


def _score(
    pool_file: Path, task: str | None, inputs: str, limit: int | None, output: Path | None, overwrite: bool, *,
    perplexity: bool, model: flags.ModelFlags,
) -> PromptScores:  # fmt: skip
    from likely.prompting.selection.scoring import score_pool
    from likely.prompting.templates import PromptPool

    pool = PromptPool.from_jsonl(pool_file, task=task)
    where = "stdin" if inputs == "-" else inputs
    check = _checker(pool, where)
    records = [line.record for line in read_checked(inputs, check, limit=limit).lines]
    if len(records) < 2:
        raise DataError(f"{where} holds {len(records)} record(s), at least 2 inputs are needed: {INPUTS_HINT}")
    with (
        model.open() as lm,
        progress(len(pool) * len(records), "scoring", unit="prompted inputs") as tick,
    ):
        return score_pool(
            lm, pool, records, perplexity=perplexity, cache=output, overwrite=overwrite, origin=options.origin(lm),
            progress=tick,
        )  # fmt: skip


def _checker(pool: PromptPool, where: str) -> Any:
    """Refuses a record that a template cannot take, or whose label is none; names the line."""
    from likely.prompting.selection.scoring import label_numbers

    different = list({template.fields: template for template in pool}.values())

    def check(line: Line) -> None:
        try:
            for template in different:
                template.pairs(line.record)
            label_numbers([line.record], pool.templates[0].choices)
        except DataError as error:
            raise DataError(f"{where}:{line.number}: {str(error).removeprefix('input 0: ')}") from None

    return check


def _print(
    scores: PromptScores,
    selection: Selection,
    rows: list[dict[str, Any]],
    whole: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    t, n, k = scores.logprobs.shape
    repaired = f", {settings['calibrate']} ({settings['where']})" if settings["calibrate"] else ""
    typer.echo(f"{t} prompts, {n} inputs, {k} answers; {selection.method}{repaired}: higher is better")
    measured = ("accuracy", "macro-F1", "scaled") if whole else ()
    shown = [
        [
            place, row["prompt"], f"{row['value']:.4f}",
            *(
                "-" if row[name] is None else f"{row[name]:.3f}"
                for name in (("accuracy", "macro_f1", "scaled_f1") if whole else ())
            ),
        ]
        for place, row in enumerate(rows, 1)
    ]  # fmt: skip
    print_table(("", "prompt", selection.method, *measured), shown, left=2)
    if len(rows) < t:
        typer.echo(f"     ... and {t - len(rows)} more (--show {t})")
    chosen = "a prompt for each input" if selection.per_input else f"chosen: {selection.name}"
    if whole:
        accuracy = with_interval(whole["accuracy"], whole["accuracy_interval"])
        chosen += f"; accuracy {accuracy}, macro-F1 {whole['macro_f1']:.3f}"
        chosen += "" if whole["scaled_f1"] is None else f", scaled F1 {whole['scaled_f1']:.3f}"
        chosen += f" (prompts: best {whole['best_f1']:.3f}, mean {whole['mean_f1']:.3f})"
    typer.echo(for_terminal(chosen))
