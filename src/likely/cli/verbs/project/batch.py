"""likely batch: requests of a file, in the lines of OpenAI's batch API."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.file_run import check_output
from likely.cli.help import VerbCommand
from likely.cli.printing import progress
from likely.errors import missing_extra

EXAMPLES = """Answer the requests of a file, in the lines of OpenAI's batch API.

Examples:

  likely batch run requests.jsonl -o replies.jsonl

  likely batch run requests.jsonl -o replies.jsonl --concurrency 32 -m http://localhost:8000
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)


@verbs.callback()
def group() -> None:
    """A group of one verb."""


@verbs.command("run", cls=VerbCommand)
@flags.grouped
def run(
    model: flags.ModelFlags,
    file: Annotated[str, typer.Argument(help='JSONL of {"custom_id", "method", "url", "body"}; "-": standard input.')],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Replies; a run that was stopped goes on where it ended.")
    ],
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Requests at a time.")] = 16,
    overwrite: flags.OverwriteOption = False,
    limit: flags.LimitOption = None,
) -> None:
    """Answer all requests of a file with a model of this machine, or with a server (-m URL).

    Examples:

      likely batch run requests.jsonl -o replies.jsonl

      likely batch run requests.jsonl -o replies.jsonl --concurrency 32 -m http://localhost:8000

    A line: {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    """
    from likely.models.load import installed, is_url

    if not (installed("fastapi") and installed("prometheus_client")):
        raise missing_extra("fastapi or prometheus-client", "serve")
    from likely.serving import batch

    check_output(file, output)
    requests = batch.read_batch(file, limit=limit)
    with batch.BatchOutput(output, requests, overwrite=overwrite) as replies, ExitStack() as opened:
        todo = sum(request.custom_id not in replies.done for request in requests)
        if is_url(model.model):
            client = batch.client_of_server(model.model)
        else:
            client = batch.client_of_model(opened.enter_context(model.open_local("batch")), concurrency=concurrency)

        async def work() -> batch.BatchCounts:
            with progress(todo, "answering", unit="requests") as advance:
                async with client as asked:
                    return await batch.run_batch(requests, asked, replies, concurrency=concurrency, advance=advance)

        try:
            counts = asyncio.run(work())
        except KeyboardInterrupt:
            typer.echo(f"stopped: what was answered is in {output}; the same command goes on", err=True)
            raise
    batch.check_counts(counts, output)
