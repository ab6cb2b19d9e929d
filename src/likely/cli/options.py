"""Options that several verbs share, and how a verb opens its model."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from likely.decoding.drafting.table import drafter_help
from likely.lm.options import FORMS, OPTIONS, SAMPLER
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.lm.model import Model
    from likely.lm.remote.model import RemoteModel

# settings of every verb that generates, which have no flag of their own and can be written as text
_NOT_NAMED = {"max_tokens", "temperature", "seed", "stop", "n", "drafter", "draft_budget", "heal", *FORMS, *SAMPLER}
_OTHERS = ", ".join(name for name, option in OPTIONS.items() if name not in _NOT_NAMED and not option.of_tokens)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name (likely models), GGUF file, folder, hub id, or URL of a server.")
]
RuntimeOption = Annotated[
    str | None,
    typer.Option("--runtime", help="{runtimes}, or auto: the fastest measured.  [default: by the model]"),
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="{dtypes} (int8: native alone).")]
ContextOption = Annotated[int | None, typer.Option("--context", min=8, help="Tokens of context to make room for.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the engine.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _check_seed(seed: int) -> int:
    if not -(2**63) <= seed < 2**64:
        raise typer.BadParameter(f"a whole number of 64 bits (-2^63 to 2^64 - 1), got {seed}")
    return seed


SeedOption = Annotated[
    int, typer.Option("--seed", callback=_check_seed, help="Of the sampling noise: same seed, same text.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens to generate.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", "-t", min=0.0, help="0 is greedy.")]
DrafterOption = Annotated[
    str | None,
    typer.Option("--drafter", help=drafter_help()),
]
BudgetOption = Annotated[
    str, typer.Option("--draft-budget", metavar="N", help="Most guessed tokens per call; auto: as many as pay.")
]
StatsOption = Annotated[bool, typer.Option("--stats", help="Calls, drafts and time, to stderr.")]
StopOption = Annotated[list[str] | None, typer.Option("--stop", help="A string that ends the text (repeatable).")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help=f"Any other setting, e.g. -s top_p=0.9: {_OTHERS}."),
]
ShowPrompt = Annotated[bool, typer.Option("--show-prompt", help="Print what the model really sees, to stderr.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Results file; a run that was stopped goes on where it ended.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Begin the results file anew.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first lines of the input.")]
DEFAULT = DEFAULT_MODEL


def open_model(
    name: str, *, runtime: str | None = None, dtype: str | None = None, context: int | None = None,
    threads: int | None = None, use: Literal["single", "batch", "scoring"] = "single",
) -> Model | RemoteModel:  # fmt: skip
    """`likely.load` with the options that were given, its warnings on stderr."""
    from likely.lm.api import load
    from likely.models.load import is_url

    sizes = (("context", context), ("threads", threads))
    given: dict[str, Any] = {key: value for key, value in sizes if value is not None}
    with warnings_shown(), ExitStack() as shown:
        if runtime in ("native", "auto"):
            given["progress"] = _first_use(shown)
        model = load(name, runtime=runtime, dtype=dtype, use=use, **given)
    model.opened.opener = lambda other: (
        open_model(other)
        if is_url(other)
        else open_model(other, runtime=runtime, dtype=dtype, context=context, threads=threads)
    )
    return model


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Warnings for users become lines on stderr."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            typer.echo(f"Warning: {warning.message}", err=True)


def _first_use(shown: ExitStack) -> Callable[[int, int], None]:
    """What the native runtime does once is told on a terminal: compiling, and packing weights (bytes, bytes in all)."""
    from likely.cli.printing import progress
    from likely.runtimes.native.build import can_build, is_built

    if sys.stderr.isatty() and can_build() and not is_built():
        typer.echo("Compiling the native runtime (once, some ten seconds)", err=True)
    tick: Callable[[int], None] | None = None
    percent = 0

    def advance(done: int, total: int) -> None:
        nonlocal tick, percent
        if tick is None:
            tick = shown.enter_context(progress(100, "packing the weights, once", unit="%"))
        now = 100 * done // max(total, 1)
        tick(now - percent)
        percent = now

    return advance


def local_model(
    name: str, *, runtime: str | None = None, dtype: str | None = None, context: int | None = None,
    threads: int | None = None, use: Literal["single", "batch", "scoring"] = "single",
) -> Model:  # fmt: skip
    """A model on this machine; a URL is refused with a reason."""
    from likely.errors import CapabilityError
    from likely.models.load import is_url

    if is_url(name):
        raise CapabilityError(f"this command needs a model on this machine, not a server ({name})")
    lm = open_model(name, runtime=runtime, dtype=dtype, context=context, threads=threads, use=use)
    return cast("Model", lm)


def parse_settings(pairs: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs as Python values (true and false as JSON has them, too); what is no literal is a string."""
    out: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"expected KEY=VALUE, got {pair!r}", param_hint="--set")
        try:
            out[key.strip().replace("-", "_")] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError):
            out[key.strip().replace("-", "_")] = value
    return out


def drafting(drafter: str | None, budget: str) -> dict[str, Any]:
    """The options of speculation that were given; a wrong name or number is refused before a model is loaded."""
    from likely.decoding.drafting.table import check_name

    given: dict[str, Any] = {}
    if drafter is not None:
        try:
            check_name(drafter)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--drafter") from None
        given["drafter"] = drafter
    if budget != "auto":
        if not budget.isdecimal() or int(budget) > 1024:
            raise typer.BadParameter(
                f'"auto" or a whole number in 0..1024, got {budget!r}', param_hint="--draft-budget"
            )
        given["draft_budget"] = int(budget)
    return given


def print_stats(result: Any) -> None:
    """One line about a generation's calls, drafts and time, to stderr."""
    tokens = len(result.token_ids or [])
    if not tokens or result.tokens_per_call is None:
        return
    line = f"{tokens} tokens, {result.tokens_per_call:.2f} per call, {1e3 * result.seconds / tokens:.1f} ms per token"
    if result.proposed:
        line += f"; drafted {result.proposed}, kept {result.accepted} ({result.accepted / result.proposed:.0%})"
    typer.echo(line, err=True)


def text_or_stdin(text: str | None, what: str) -> str:
    """The argument, or all of standard input where it is a pipe or "-"."""
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise typer.BadParameter(f"give a {what}, or pipe one in", param_hint=what.upper())
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"standard input is not UTF-8 (byte {error.start})", param_hint=what.upper()) from None


def origin(model: Any) -> dict[str, Any]:
    """What a number depends on, for JSON output and headers of results files."""
    from likely import __version__

    info = model.info
    return {
        "likely": __version__,
        "model": info.name,
        "runtime": info.runtime,
        "dtype": info.dtype,
        "sha256": info.sha256,
        "tokenizer": info.tokenizer,
    }


def same_file(one: str, other: Path) -> bool:
    """Whether the output would replace the input."""
    try:
        return other.samefile(one)
    except OSError:
        return False


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Refuse a target that is there already, unless it may be replaced."""
    if output.exists() and not overwrite:
        raise typer.BadParameter(f"{output} exists: choose another file or --overwrite", param_hint="--output")


def read_text(path: str | Path, *, encoding: str = "utf-8") -> str:
    """The text of a file; DataError in one line for one that cannot be read or is not UTF-8."""
    from likely.errors import DataError

    try:
        return Path(path).read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def refuse_same_file(file: str, output: Path | None) -> None:
    if output is not None and same_file(file, output):
        raise typer.BadParameter("the output would replace the input: choose another file", param_hint="--output")
