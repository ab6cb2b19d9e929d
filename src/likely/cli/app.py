"""All verbs in one typer application, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from likely import __version__
from likely.cli.config import defaults_for, read_config
from likely.cli.help import VerbCommand
from likely.cli.verbs import alignment, audit, diffusion, sequence
from likely.cli.verbs.compression import study
from likely.cli.verbs.compression.compare import compare
from likely.cli.verbs.compression.compress import compress
from likely.cli.verbs.compression.stats import stats
from likely.cli.verbs.confidence import calibrate
from likely.cli.verbs.confidence.choices import choices
from likely.cli.verbs.confidence.grade import grade
from likely.cli.verbs.confidence.risk import risk
from likely.cli.verbs.confidence.uncertainty import uncertainty
from likely.cli.verbs.forecasting.forecast import forecast
from likely.cli.verbs.generation.ask import ask
from likely.cli.verbs.generation.chat import chat
from likely.cli.verbs.generation.complete import complete
from likely.cli.verbs.generation.extract import extract
from likely.cli.verbs.generation.generate import generate
from likely.cli.verbs.generation.query import query
from likely.cli.verbs.generation.scale import scale
from likely.cli.verbs.generation.score import score
from likely.cli.verbs.project import batch, tools
from likely.cli.verbs.project.config import config
from likely.cli.verbs.project.convert import convert
from likely.cli.verbs.project.datasets import datasets
from likely.cli.verbs.project.eval_code import eval_code
from likely.cli.verbs.project.models import models
from likely.cli.verbs.project.papers import papers
from likely.cli.verbs.project.plot import plot
from likely.cli.verbs.project.reproduce import reproduce
from likely.cli.verbs.project.serve import serve
from likely.cli.verbs.prompts import prompts
from likely.cli.verbs.serving import deploy
from likely.cli.verbs.speed import draft
from likely.cli.verbs.speed.bench import bench
from likely.cli.verbs.speed.profile import profile
from likely.cli.verbs.speed.replay import replay
from likely.errors import LikelyError

UsageError: type[Any] = typer.BadParameter.__mro__[1]  # typer re-exports only the subclass

EPILOG = """Examples:

  likely ask "What is the capital of France? Answer in one sentence."

  likely score --prompt "2 + 2 =" --answer " 4" --answer " 5"

  likely generate "Once upon a time" --max-tokens 40 --seed 1
"""

app = typer.Typer(
    name="likely",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True, help=EPILOG + "\nThe sequence likelihood of a language model.")
def root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if version:
        typer.echo(f"likely {__version__}")
        raise typer.Exit()


for verb in (
    ask, chat, generate, extract, scale, score, choices, complete, grade, uncertainty, risk, query, serve, plot, models,
    datasets, papers, reproduce, config, convert, compress, compare, stats, replay, bench, profile, eval_code,
    forecast,
):  # fmt: skip
    app.command(cls=VerbCommand)(verb)
for group, verbs in (
    ("calibrate", calibrate.verbs), ("prompts", prompts.verbs), ("draft", draft.verbs), ("batch", batch.verbs),
    ("deploy", deploy.verbs), ("tools", tools.verbs), ("study", study.verbs), ("align", alignment.verbs),
    ("audit", audit.verbs), ("sequence", sequence.verbs), ("diffusion", diffusion.verbs),
):  # fmt: skip
    app.add_typer(verbs, name=group)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code and prints at most one line about an error."""
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        command = typer.main.get_command(app)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            own = {} if "config" in arguments[:1] else defaults_for(command, read_config())
            code = command.main(args=list(arguments), prog_name="likely", standalone_mode=False, default_map=own)
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except UsageError as usage:
        if type(usage).__name__ == "NoArgsIsHelpError":  # help was asked for by saying nothing
            typer.echo(usage.format_message())
            return 2
        where = usage.ctx.command_path if usage.ctx else "likely"
        message = _one_line(usage.format_message()).replace(": Value error, ", ": ")
        typer.echo(f"Error: {message} (see {where} --help)", err=True)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except LikelyError as error:
        return _fail(error, 1, debug)
    except (ValueError, TypeError) as error:  # settings that a function refused
        return _fail(error, 2, debug)
    except OSError as error:
        return _fail(error, 1, debug)
    except Exception as error:
        if debug:
            raise
        message = _one_line(f"{type(error).__name__}: {error}")
        typer.echo(f"Error: this should not have happened: {message} (--debug shows where)", err=True)
        return 1


def _one_line(message: str) -> str:
    """Without line breaks, and with the middle of endless words (a number of 5,000 digits) left out."""
    words = (w if len(w) <= 300 else f"{w[:60]}...{w[-20:]}" for w in message.split())
    return " ".join(words)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"Warning: {message}", err=True)


def _fail(error: Exception, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    typer.echo(f"Error: {_one_line(str(error)) or type(error).__name__}", err=True)
    return code
