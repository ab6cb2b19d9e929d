"""likely ask: one question, one answer, and how sure the model is."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import options as opt
from likely.cli import seeing


def register(app: typer.Typer) -> None:
    app.command("ask")(ask)


def ask(
    question: Annotated[str | None, typer.Argument(help='The question; "-" or a pipe reads standard input.')] = None,
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    dtype: opt.DtypeOption = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_tokens: opt.MaxTokens = 256,
    temperature: opt.TemperatureOption = 0.0,
    seed: opt.SeedOption = 0,
    stop: opt.StopOption = None,
    drafter: opt.DrafterOption = None,
    settings: opt.Settings = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    show_prompt: opt.ShowPrompt = False,
    show: seeing.ShowOption = False,
    html: seeing.HtmlOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Answer a question.

    Examples:

      likely ask "What is the capital of France? Answer in one sentence."

      likely ask "Name three rivers." --json

      likely ask "Name three rivers." --show --html tokens.html

      cat question.txt | likely ask -m gemma3
    """
    from likely.cli.printing import print_json, print_stream

    see = seeing.wanted(show, html, as_json)
    text = opt.text_or_stdin(question, "question")
    given = {
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed, **opt.parse_settings(settings),
    }  # fmt: skip
    if stop:
        given["stop"] = tuple(stop)
    if drafter:
        given["drafter"] = drafter
    if see:
        given.setdefault("top_logprobs", seeing.ALTERNATIVES)
    lm = opt.open_model(model, runtime=runtime, dtype=dtype, context=context, threads=threads)
    with lm:
        stream = lm.stream_ask(text, system=system, **given)
        if show_prompt:
            typer.echo(stream.prompt, err=True)
        answer = stream.finish() if as_json or show else print_stream(stream)
        if as_json:
            print_json({**opt.origin(lm), "question": text, **answer.to_dict()})
        seeing.present(lm, [answer], show=show, html=html, title=text, prompt=stream.prompt)
