"""likely ask: one question, one answer, and how likely it is right."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import confidence as conf
from likely.cli import forms
from likely.cli import options as opt
from likely.cli import show as seeing


def ask(
    question: Annotated[
        str | None,
        typer.Argument(help='The question, or a .jsonl file of {"question"}; "-" or a pipe: standard input.'),
    ] = None,
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    dtype: opt.DtypeOption = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_tokens: opt.MaxTokens = 256,
    temperature: opt.TemperatureOption = 0.0,
    seed: opt.SeedOption = 0,
    stop: opt.StopOption = None,
    schema: forms.SchemaOption = None,
    regex: forms.RegexOption = None,
    choices: forms.ChoicesOption = None,
    grammar: forms.GrammarOption = None,
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    limit: opt.LimitOption = None,
    calibrator: conf.AnswerCalibratorOption = None,
    task: conf.TaskOption = "default",
    at_least: conf.AtLeastOption = None,
    risk: conf.RiskOption = None,
    delta: conf.DeltaOption = 0.1,
    fallback: conf.FallbackOption = None,
    drafter: opt.DrafterOption = None,
    draft_budget: opt.BudgetOption = "auto",
    stats: opt.StatsOption = False,
    settings: opt.SettingsOption = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    show_prompt: opt.ShowPrompt = False,
    show: seeing.ShowOption = False,
    html: seeing.HtmlOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Answer a question, or every question of a file.

    Examples:

      likely ask "What is the capital of France? Answer in one sentence."

      likely ask "Name three rivers." --json

      likely ask "Name three rivers." --show --html tokens.html

      cat question.txt | likely ask -m gemma3

      likely ask questions.jsonl -o answers.jsonl

      likely ask "Is 7 a prime number?" --choices yes,no --json

      likely ask "Who wrote Faust?" --at-least 0.9 --fallback gemma3     (after likely calibrate fit)
    """
    from likely.cli.printing import for_terminal, print_json, print_stream
    from likely.cli.verbs.generation.questions import ask_file, is_questions_file, read_questions

    see = seeing.wanted(show, html, as_json)
    file = question if is_questions_file(question) else None
    if file is None and (output is not None or overwrite or limit is not None):
        raise typer.BadParameter("--output, --overwrite and --limit need a .jsonl file of questions", param_hint="FILE")
    if file is not None and (see or stats):
        raise typer.BadParameter("--show, --html and --stats take one question, not a file", param_hint="FILE")
    if file is not None:
        opt.refuse_same_file(file, output)
    lines = read_questions(file, limit) if file is not None else []
    text = opt.text_or_stdin(question, "question") if file is None else ""
    given = {
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed, **opt.parse_settings(settings),
    }  # fmt: skip
    if stop:
        given["stop"] = tuple(stop)
    given |= opt.drafting(drafter, draft_budget)
    given |= forms.form_options(schema, regex, choices, grammar, given)
    if see:
        given.setdefault("top_logprobs", seeing.ALTERNATIVES)
    wanted = conf.options(calibrator, task, at_least, risk, delta, fallback)
    with opt.open_model(model, runtime=runtime, dtype=dtype, context=context, threads=threads) as lm:
        bound = conf.bind(lm.with_confidence(**wanted), given, system)
        if file is not None:
            ask_file(
                lm, file, lines, system=system, options=given, output=output, overwrite=overwrite,
                show_prompt=show_prompt, bound=bound,
            )  # fmt: skip
            return
        stream = lm.stream_ask(text, system=system, **given)
        if show_prompt:
            typer.echo(stream.prompt, err=True)
        whole = as_json or show or not forms.streams(given) or bound.rule is not None
        answer = stream.finish() if whole else print_stream(stream)
        if whole and not (as_json or show or answer.abstained):
            typer.echo(for_terminal(answer.text))
        if stats:
            opt.print_stats(answer)
        if as_json:
            print_json({**opt.origin(lm), "question": text, **answer.to_dict(), **bound.describe()})
        else:
            conf.tell(answer)
        if answer.abstained:
            return
        seeing.present(lm, [answer], show=show, html=html, title=text, prompt=stream.prompt)
        forms.conclude([answer])
