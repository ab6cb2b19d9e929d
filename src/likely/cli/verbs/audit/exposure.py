"""likely audit exposure: what do an endpoint's log-probabilities give away, and in how many calls?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import flags
from likely.cli.printing import progress
from likely.cli.verbs.audit.common import ReportOption, check_reports, header_of, show_reports
from likely.errors import CapabilityError
from likely.io.whole_file import read_text
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.audit.inversion.exposure import ExposureReport

OWN = "--i-own-this-endpoint"


def exposure(
    model: Annotated[
        str, typer.Argument(help="Name (likely models), GGUF file, folder, or URL of a server of your own.")
    ] = DEFAULT_MODEL,
    returns: Annotated[
        Literal["text", "chosen", "top", "full"] | None,
        typer.Option("--returns", help="Ask no model: compute it for an endpoint that returns this."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Likeliest tokens per call.")] = 20,
    logit_bias: Annotated[bool, typer.Option("--logit-bias", help="--returns: a bias on tokens is taken.")] = False,
    decimals: Annotated[int | None, typer.Option("--decimals", min=0, help="--returns: rounded to so many.")] = None,
    hidden_size: Annotated[
        int | None, typer.Option("--hidden-size", min=1, help="Of the model, or an upper bound; of your own, known.")
    ] = None,
    own: Annotated[bool, typer.Option(OWN, help="A server is asked only with this.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="A model whose tokenizer the server's model has.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Text file, a prompt per line, to send.  [default: random tokens]")
    ] = None,
    most_calls: Annotated[int, typer.Option("--most-calls", min=2, help="Calls of a server.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the tokens that are asked about.")] = 0,
    runtime: flags.RuntimeOption = None,
    threads: flags.ThreadsOption = None,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """What an endpoint's log-probabilities give away: calls for all of them, hidden size, error of what is computed.

    A server is asked only where you say that it is yours.  Prompts are sent and never stored.

    Examples:

      likely audit exposure smollm2

      likely audit exposure --returns top --top 20 --logit-bias --hidden-size 4096

      likely audit exposure http://localhost:8000 --i-own-this-endpoint --tokenizer smollm2 --hidden-size 576 --json
    """
    from likely.audit import inversion
    from likely.models.load import is_url

    check_reports(report)
    header: dict[str, Any]
    if returns is not None:
        spec = inversion.EndpointSpec(returns, top if returns == "top" else 0, logit_bias, decimals=decimals)
        found = inversion.exposed(spec, _known(hidden_size))
        header = {"kind": "audit exposure", "hidden_size": hidden_size}
    elif is_url(model):
        if not own:
            raise CapabilityError(f"a server is audited only by who owns it: say so with {OWN}")
        found, header = _of_server(model, tokenizer, _known(hidden_size), prompts, top, most_calls, seed)
    else:
        with flags.ModelFlags(model, runtime, None, None, threads).open_local("scoring") as lm:
            size = hidden_size or inversion.hidden_size_of(lm.runtime)
            texts = inversion.random_texts(lm.runtime, size + 100, seed=seed)
            if prompts is not None:
                texts = [lm.encode_prompt(line) for line in read_text(prompts).splitlines() if line.strip()]
            found = inversion.measure_runtime(lm.runtime, texts, hidden_size=size, seed=seed)
            header = header_of(lm, "exposure", {"hidden_size": size, "seed": seed})
    show_reports([inversion.exposure_report(found, header=header)], report, as_json=as_json)


def _known(hidden_size: int | None) -> int:
    if hidden_size is None:
        raise typer.BadParameter("give the model's hidden size, or an upper bound", param_hint="--hidden-size")
    return hidden_size


def _of_server(
    url: str, tokenizer: str | None, hidden_size: int, prompts: Path | None, top: int, most_calls: int, seed: int
) -> tuple[ExposureReport, dict[str, Any]]:
    from likely.audit import inversion
    from likely.lm.remote.top_logprobs import RemoteTopLogprobs
    from likely.models.load import load_local

    if tokenizer is None:
        raise typer.BadParameter(
            "a server names tokens by text: name a model with its tokenizer", param_hint="--tokenizer"
        )
    endpoint = RemoteTopLogprobs(url, load_local(tokenizer).tokenizer)
    try:
        texts = _prompts(prompts, hidden_size)
        with progress(most_calls, "asking", unit="calls") as tick:
            found = inversion.measure_endpoint(
                endpoint, texts, candidates=endpoint.token_ids, hidden_size=hidden_size, top=top,
                most_calls=most_calls, seed=seed, progress=tick,
            )  # fmt: skip
    finally:
        endpoint.close()
    return found, {"kind": "audit exposure", "model": endpoint.name, "hidden_size": hidden_size, "seed": seed}


def _prompts(file: Path | None, hidden_size: int) -> list[str]:
    if file is None:
        return [f"Item {i}:" for i in range(hidden_size + 100)]
    return [line for line in read_text(file).splitlines() if line.strip()]
