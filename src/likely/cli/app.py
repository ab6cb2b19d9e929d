"""All verbs in one typer application, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import typer

from likely import __version__
from likely.cli.config import defaults_for, read_config
from likely.cli.help import VerbCommand
from likely.errors import LikelyError, missing_optional

UsageError: type[Any] = typer.BadParameter.__mro__[1]  # typer re-exports only the subclass

EPILOG = """Examples:

  likely ask "What is the capital of France? Answer in one sentence."

  likely score --prompt "2 + 2 =" --answer " 4" --answer " 5"

  likely generate "Once upon a time" --max-tokens 40 --seed 1
"""

_ROOM = "likely.cli.verbs"
VERBS = {
    "ask": "generation.ask", "chat": "generation.chat", "generate": "generation.generate",
    "extract": "generation.extract", "scale": "generation.scale", "score": "generation.score",
    "choices": "confidence.choices", "complete": "generation.complete", "grade": "confidence.grade",
    "uncertainty": "confidence.uncertainty", "risk": "confidence.risk", "query": "generation.query",
    "serve": "project.serve", "plot": "project.plot", "models": "project.models", "datasets": "project.datasets",
    "papers": "project.papers", "reproduce": "project.reproduce", "config": "project.config",
    "convert": "project.convert", "compress": "compression.compress", "compare": "compression.compare",
    "stats": "compression.stats", "replay": "speed.replay", "bench": "speed.bench", "profile": "speed.profile",
    "eval-code": "project.eval_code", "forecast": "forecasting.forecast",
}  # fmt: skip
GROUPS = {
    "calibrate": "confidence.calibrate", "prompts": "prompts.prompts", "draft": "speed.draft",
    "batch": "project.batch", "deploy": "serving.deploy", "tools": "project.tools", "study": "compression.study",
    "align": "alignment", "audit": "audit", "sequence": "sequence", "diffusion": "diffusion",
}  # fmt: skip


def root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if version:
        typer.echo(f"likely {__version__}")
        raise typer.Exit()


@cache
def command(only: str | None = None) -> Any:
    """The command line with every verb, or with one of them: a call need not import and build the others."""
    app = typer.Typer(
        name="likely",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        pretty_exceptions_enable=False,
    )
    help_text = EPILOG + "\nThe sequence likelihood of a language model."
    app.callback(invoke_without_command=True, help=help_text)(root)
    for name, module in VERBS.items():
        if only in (None, name):
            app.command(name, cls=VerbCommand)(getattr(import_module(f"{_ROOM}.{module}"), name.replace("-", "_")))
    for name, module in GROUPS.items():
        if only in (None, name):
            app.add_typer(import_module(f"{_ROOM}.{module}").verbs, name=name)
    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code and prints at most one line about an error."""
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        verb = arguments[0] if arguments else None
        verbs = command(verb if verb in VERBS or verb in GROUPS else None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            own = {} if "config" in arguments[:1] else defaults_for(verbs, read_config())
            code = verbs.main(args=list(arguments), prog_name="likely", standalone_mode=False, default_map=own)
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
    except MemoryError as error:
        return _fail(MemoryError(f"out of memory ({error}): take a smaller model or less text at a time"), 1, debug)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (missing := missing_optional(error)):
            return _fail(missing, 1, debug)
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
    message = str(error)
    if isinstance(error, OSError) and error.strerror:  # without its number
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    typer.echo(f"Error: {_one_line(message) or type(error).__name__}", err=True)
    return code
