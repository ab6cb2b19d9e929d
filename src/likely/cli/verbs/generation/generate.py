"""likely generate: continue a text."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import forms
from likely.cli import options as opt
from likely.cli import show as seeing


def generate(
    prompt: Annotated[str | None, typer.Argument(help='Text to continue; "-" or a pipe reads standard input.')] = None,
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    dtype: opt.DtypeOption = None,
    max_tokens: opt.MaxTokens = 128,
    temperature: opt.TemperatureOption = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Keep the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Keep the smallest set of this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", help="Keep tokens of p >= this times the best.")] = 0.0,
    seed: opt.SeedOption = 0,
    samples: Annotated[int, typer.Option("-n", min=1, help="Samples from one prefill.")] = 1,
    stop: opt.StopOption = None,
    schema: forms.SchemaOption = None,
    regex: forms.RegexOption = None,
    choices: forms.ChoicesOption = None,
    grammar: forms.GrammarOption = None,
    drafter: opt.DrafterOption = None,
    draft_budget: opt.BudgetOption = "auto",
    stats: opt.StatsOption = False,
    settings: opt.SettingsOption = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    show: seeing.ShowOption = False,
    html: seeing.HtmlOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Continue a text; the text depends on model, prompt, settings and seed alone.

    Examples:

      likely generate "Once upon a time" --max-tokens 40 --seed 1

      likely generate "The capital of France is" -t 0 --json

      likely generate "Once upon a time" --show --html tokens.html

      echo "def fib(n):" | likely generate -n 3 -s repetition_penalty=1.1

      likely generate "Ann is 12. As JSON: " --schema person.json --json

      likely generate "A date in 1999: " --regex "1999-[01][0-9]-[0-3][0-9]"
    """
    from likely.cli.printing import for_terminal, print_json, print_stream

    see = seeing.wanted(show, html, as_json)
    text = opt.text_or_stdin(prompt, "prompt")
    given = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "seed": seed, **opt.parse_settings(settings),
    }  # fmt: skip
    if stop:
        given["stop"] = tuple(stop)
    given |= opt.drafting(drafter, draft_budget)
    given |= forms.form_options(schema, regex, choices, grammar, given)
    if see:
        given.setdefault("top_logprobs", seeing.ALTERNATIVES)
    lm = opt.open_model(model, runtime=runtime, dtype=dtype, context=context, threads=threads)
    with lm:
        if samples == 1 and not given.get("beams") and not as_json and not show and forms.streams(given):
            results = [print_stream(lm.stream(text, **given))]
        else:
            found = lm.generate(text, n=samples, **given)
            results = found if isinstance(found, list) else [found]
            for number, result in enumerate(results):
                if as_json:
                    print_json({**opt.origin(lm), "prompt": text, **result.to_dict()})
                elif not show:
                    typer.echo(f"{'' if samples == 1 else f'--- {number} '}{for_terminal(result.text)}")
        if stats:
            for result in results:
                opt.print_stats(result)
        seeing.present(lm, results, show=show, html=html, title="likely generate", prompt=text)
        forms.conclude(results)
