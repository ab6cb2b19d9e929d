"""Options that several verbs share, as groups: an argument of a verb may be a group, whose flags its help lists."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_type_hints

import typer

from likely.cli import options
from likely.cli.config import read_config
from likely.cli.help import names
from likely.cli.printing import percent
from likely.decoding.drafting.table import drafter_help
from likely.errors import CapabilityError, nearest
from likely.lm.options import FORMS, OPTIONS, SAMPLER
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.lm.diffusion.model import DiffusionModel
    from likely.lm.model import Model
    from likely.lm.remote.model import RemoteModel

Use = Literal["single", "batch", "scoring"]
# settings of every verb that generates, which have no flag of their own and can be written as text
_NOT_NAMED = {"max_tokens", "temperature", "seed", "stop", "n", "drafter", "draft_budget", "heal", *FORMS, *SAMPLER}
_OTHERS = ", ".join(name for name, option in OPTIONS.items() if name not in _NOT_NAMED and not option.of_tokens)


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer reads it: each argument that is a group (a dataclass) stands for the options in its fields.

    A group's default is an instance, which holds the defaults of its options in this verb.  Help lists them last.
    """
    groups: dict[str, type[Any]] = {}
    own: list[inspect.Parameter] = []
    shared: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        group = parameter.annotation
        if not is_dataclass(group):
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        assert isinstance(group, type)
        groups[parameter.name] = group
        defaults = group() if parameter.default is parameter.empty else parameter.default
        hints = get_type_hints(group, include_extras=True)
        shared += [
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(defaults, f.name), annotation=hints[f.name]
            )
            for f in fields(group)
        ]

    @wraps(verb)
    def call(**given: Any) -> None:
        made = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        verb(**given, **made)

    call.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return call


def one_of(table: str, *more: str) -> Callable[[str | None], str | None]:
    """A check of an option: one of the names of a table (of `help.TABLES`), or of these."""

    def check(given: str | None) -> str | None:
        allowed = [*names(table), *more] if given is not None else []
        if given is not None and given not in allowed:
            raise typer.BadParameter(f'unknown name "{given}"{nearest(given, allowed)} (allowed: {", ".join(allowed)})')
        return given

    return check


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Name (likely models), GGUF file, folder, hub id (org/name, org/name:Q4_K_M), or URL of a server.",
    ),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        callback=one_of("runtimes", "auto"),
        help="{runtimes}, or auto: the fastest measured.  [default: by the model]",
    ),
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", callback=one_of("dtypes"), help="{dtypes} (int8, file, int4: native alone).")
]
ContextOption = Annotated[int | None, typer.Option("--context", min=8, help="Tokens of context to make room for.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the engine.")]
KvDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--kv-dtype", metavar="FORMAT", help="Form of kept keys and values: f32, bf16, f16, q8_0, or blocks (bfp12)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class ModelFlags:
    """Which model, and how it is run."""

    model: ModelOption = DEFAULT_MODEL
    runtime: RuntimeOption = None
    dtype: DtypeOption = None
    context: ContextOption = None
    threads: ThreadsOption = None
    kv_dtype: KvDtypeOption = None

    def named(self, source: str | None) -> ModelFlags:
        """The model that an argument of the verb names, beside -m, whose value may be a default of the user's own."""
        if source is None:
            return self
        if self.model not in (DEFAULT_MODEL, source, read_config().get("model")):
            raise typer.BadParameter(f"give the model once, got {source} and -m {self.model}", param_hint="MODEL")
        return replace(self, model=source)

    def open(self, use: Use = "single") -> Model | RemoteModel:
        """`likely.load` with the options that were given."""
        from likely.lm.api import load
        from likely.models.load import is_url

        names = ("runtime", "dtype", "context", "threads", "kv_dtype")
        given: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        if is_url(self.model):  # a user's own defaults are for models on this machine
            own = read_config()
            given = {name: value for name, value in given.items() if own.get(name) != value}
        elif self.runtime in (None, "native", "auto"):
            given["progress"] = _first_use()
        return load(self.model, use=use, **given)

    def open_local(self, use: Use = "single") -> Model:
        """A model on this machine; a URL is refused with a reason."""
        from likely.models.load import is_url

        if is_url(self.model):
            raise CapabilityError(f"this command needs a model on this machine, not a server ({self.model})")
        return cast("Model", self.open(use))

    def open_diffusion(self) -> DiffusionModel:
        """A masked diffusion language model; CapabilityError for another one."""
        from likely.lm.diffusion.model import DiffusionModel

        lm = self.open_local()
        if not isinstance(lm, DiffusionModel):
            lm.close()
            raise CapabilityError(f"{self.model} is no diffusion model: likely diffusion train makes a tiny one")
        return lm


def _first_use() -> Callable[[int, int], None]:
    """What the native runtime does once is told on a terminal: compiling, and packing weights (bytes, bytes in all)."""
    from likely.runtimes.native.build import can_build, is_built

    if sys.stderr.isatty() and can_build() and not is_built():
        typer.echo("Compiling the native runtime (once, some ten seconds)", err=True)
    return percent("packing the weights, once")


def _check_seed(seed: int) -> int:
    if not -(2**63) <= seed < 2**64:
        raise typer.BadParameter(f"a whole number of 64 bits (-2^63 to 2^64 - 1), got {seed}")
    return seed


SeedOption = Annotated[
    int, typer.Option("--seed", callback=_check_seed, help="Of the sampling noise: same seed, same text.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens to generate.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", "-t", min=0.0, help="0 is greedy.")]
DrafterOption = Annotated[str | None, typer.Option("--drafter", help=drafter_help())]
StopOption = Annotated[list[str] | None, typer.Option("--stop", help="A string that ends the text (repeatable).")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help=f"Any other setting, e.g. -s top_p=0.9: {_OTHERS}."),
]


@dataclass(frozen=True)
class TextFlags:
    """How a text is decoded."""

    max_tokens: MaxTokens
    temperature: TemperatureOption
    seed: SeedOption = 0
    stop: StopOption = None
    drafter: DrafterOption = None
    draft_budget: Annotated[
        str,
        typer.Option(
            "--draft-budget", metavar="N", help="Most guessed tokens per call; auto: as many as pay; off: none."
        ),
    ] = "auto"
    settings: SettingsOption = None

    @classmethod
    def of(cls, defaults: Mapping[str, Any]) -> TextFlags:
        """With a verb's defaults in Python."""
        return cls(max_tokens=defaults["max_tokens"], temperature=defaults["temperature"])

    def given(self) -> dict[str, Any]:
        """Options of `generate`; a wrong name, drafter or number is refused before a model is loaded."""
        from likely.lm.confidence import ConfidenceOptions
        from likely.lm.requests import check_options

        given: dict[str, Any] = {
            "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed,
            **options.parse_settings(self.settings), **options.drafting(self.drafter, self.draft_budget),
        }  # fmt: skip
        given |= {"stop": tuple(self.stop)} if self.stop else {}
        check_options(given, [*ConfidenceOptions.__annotations__, "instruction"])
        return given


StatsOption = Annotated[bool, typer.Option("--stats", help="Calls, drafts and time, to stderr.")]
SystemOption = Annotated[str | None, typer.Option("--system", help="A system message.")]
ShowPrompt = Annotated[bool, typer.Option("--show-prompt", help="Print what the model really sees, to stderr.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Begin the results file anew.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first lines of the input.")]


@dataclass(frozen=True)
class FileFlags:
    """Where the results of a file go."""

    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results file; a run that was stopped goes on where it ended.")
    ] = None
    overwrite: OverwriteOption = False
    limit: LimitOption = None

    @property
    def given(self) -> bool:
        return self.output is not None or self.overwrite or self.limit is not None
