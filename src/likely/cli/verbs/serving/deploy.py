"""likely deploy: launch files for servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from likely.cli.help import VerbCommand
from likely.errors import DataError
from likely.io.whole_file import read_text

verbs = typer.Typer(
    no_args_is_help=True,
    help="""Write launch files for a server; nothing is started.

    Examples:

      likely deploy compose -o deployed

      likely deploy vllm -m Qwen/Qwen3-8B -o served
    """,
)

FolderOption = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")]
FilesOverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


@verbs.command(cls=VerbCommand)
def compose(
    output: FolderOption,
    model: Annotated[
        str, typer.Option("-m", "--model", help="A known model, hub id, GGUF file or folder.")
    ] = "smollm2",
    package: Annotated[str, typer.Option("--package", help="What pip installs.")] = "likely[native,serve]",
    port: Annotated[int, typer.Option("--port", help="Of the server, on 127.0.0.1.")] = 8000,
    monitoring: Annotated[bool, typer.Option(help="With Prometheus and a Grafana dashboard.")] = True,
    overwrite: FilesOverwriteOption = False,
) -> None:
    """A likely server in a container, with Prometheus and Grafana beside it.

    Examples:

      likely deploy compose -o deployed

      likely deploy compose -m model.gguf -o deployed --no-monitoring
    """
    from likely.serving.deploy import ServedLikely, compose_files

    _write(output, compose_files(ServedLikely(model, package, port, monitoring)), overwrite)
    typer.echo(f"next: cd {output} && cp .env.example .env, set a key there, docker compose up", err=True)


@verbs.command(cls=VerbCommand)
def vllm(
    output: FolderOption,
    model: Annotated[str, typer.Option("-m", "--model", help="A hub id that vLLM knows.")],
    gpus: Annotated[int, typer.Option("--gpus", help="Tensor parallel size.")] = 1,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="Sequences in a batch.")] = 256,
    context: Annotated[int | None, typer.Option("--context", help="Longest text; default: the model's own.")] = None,
    tool_parser: Annotated[
        str | None,
        typer.Option("--tool-parser", help="vLLM's parser of tool calls, such as hermes; default: no tools."),
    ] = None,
    schedule: Annotated[
        Path | None,
        typer.Option(
            "--schedule", help="JSON of [[first batch, last batch, guessed tokens], ...]; default: no guesses."
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Of the server, on 127.0.0.1.")] = 8001,
    overwrite: FilesOverwriteOption = False,
) -> None:
    """A vLLM server: a shell script, a compose file and a systemd unit, each of which works alone.

    Examples:

      likely deploy vllm -m Qwen/Qwen3-8B --tool-parser hermes -o big

      likely deploy vllm -m Qwen/Qwen3-8B --gpus 2 --schedule schedule.json -o big
    """
    from likely.serving.deploy import ServedVllm, vllm_files

    rows = None if schedule is None else _read_schedule(schedule)
    served = ServedVllm(model, gpus, max_num_seqs, context, tool_parser, port, schedule=rows)
    _write(output, vllm_files(served), overwrite)
    typer.echo(
        f"next: VLLM_API_KEY=... sh {output}/serve.sh; a likely server hands over what it is not sure of with "
        f"likely serve --fallback http://127.0.0.1:{port}/v1",
        err=True,
    )


def _read_schedule(path: Path) -> list[tuple[int, int, int]]:
    try:
        found = json.loads(read_text(path))
        return [(int(first), int(last), int(k)) for first, last, k in found]
    except (ValueError, TypeError):
        raise DataError(f"{path} holds no schedule: [[first batch, last batch, guessed tokens], ...]") from None


def _write(folder: Path, files: dict[str, str], overwrite: bool) -> None:
    from likely.io.whole_file import write_for_user

    there = [name for name in files if (folder / name).exists()]
    if there and not overwrite:
        raise DataError(f"{folder / there[0]} is there already: give another folder, or --overwrite")
    for name, text in files.items():
        write_for_user(folder / name, text.encode())
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
        typer.echo(str(folder / name))
