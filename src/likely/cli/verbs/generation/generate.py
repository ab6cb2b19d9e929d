"""likely generate: continue a text."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import flags, forms, options
from likely.cli.printing import for_terminal, print_json, print_stats, print_stream, print_undrafted
from likely.cli.show import ALTERNATIVES, ShowFlags
from likely.lm.options import OPTIONS

TEXT = flags.TextFlags.of({name: option.default for name, option in OPTIONS.items()})


@flags.grouped
def generate(
    model: flags.ModelFlags,
    form: forms.FormFlags,
    look: ShowFlags,
    prompt: Annotated[str | None, typer.Argument(help="Text to continue, after what a pipe brings.")] = None,
    text: flags.TextFlags = TEXT,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Keep the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Keep the smallest set of this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", help="Keep tokens of p >= this times the best.")] = 0.0,
    samples: Annotated[int, typer.Option("-n", min=1, help="Samples from one prefill.")] = 1,
    stats: flags.StatsOption = False,
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
    see = look.wanted()
    prompt = options.text_or_stdin(prompt, "prompt")
    given = {"top_k": top_k, "top_p": top_p, "min_p": min_p, **text.given()}
    given |= form.given(given, model.model)
    if see:
        given.setdefault("top_logprobs", ALTERNATIVES)
    with model.open() as lm:
        if samples == 1 and not given.get("beams") and not look.as_json and not look.show and forms.streams(given):
            results = [print_stream(lm.stream(prompt, **given))]
        else:
            found = lm.generate(prompt, n=samples, **given)
            results = found if isinstance(found, list) else [found]
            for number, result in enumerate(results):
                if look.as_json:
                    print_json({**options.origin(lm), "prompt": prompt, **result.to_dict()})
                elif not look.show:
                    typer.echo(f"{'' if samples == 1 else f'--- {number} '}{for_terminal(result.text)}")
        if stats:
            for result in results:
                print_stats(result)
        print_undrafted(results, text.drafter, text.draft_budget, lm.info.runtime)
        look.present(lm, results, title="likely generate", prompt=prompt)
        forms.conclude(results)
