"""likely draft: memories from which drafts are made, and which layers of a draft may run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, options
from likely.cli.help import VerbCommand
from likely.cli.printing import for_terminal, print_json, progress
from likely.decoding.drafting.table import MemoryKind, memory_kinds
from likely.errors import DataError, nearest
from likely.io.jsonl import read_lines, text_field
from likely.io.whole_file import check_target, read_text
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.tokenizers.protocol import Tokenizer

PIECE = 100_000  # characters of a .txt file that become tokens at a time

CorpusArgument = Annotated[
    list[Path], typer.Argument(help="JSONL (or .jsonl.gz) with one text per line, or .txt files.")
]
MemoryOption = Annotated[Path, typer.Option("--output", "-o", help="The memory file to write.")]
KindOption = Annotated[str, typer.Option("--kind", help=f"{', '.join(memory_kinds())}.")]
FieldOption = Annotated[str, typer.Option("--field", help="The field of a JSONL line that holds the text.")]
KindSettings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting of the kind, e.g. -s top=4 -s min_count=2."),
]
PlanOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The plan file to write.  [default: the model's own, in the cache]"),
]
TokensOption = Annotated[int, typer.Option("--tokens", min=2, max=2048, help="Tokens of the corpus to compare on.")]
LengthOption = Annotated[int, typer.Option("--draft-length", min=1, max=64, help="Tokens of a draft.")]
GroupOption = Annotated[int, typer.Option("--max-group", min=2, help="Most layers side by side.")]
AttentionOption = Annotated[
    float, typer.Option("--attention", min=0, max=1, help="Share of a draft step that attention takes.")
]
DraftCostOption = Annotated[float, typer.Option("--draft-cost", min=0, help="A draft step, in calls of the target.")]
CommunicationOption = Annotated[
    float, typer.Option("--communication", min=0, help="Of one group among its devices, in draft steps.")
]
ReplaceOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]


verbs = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Build and show the memories of drafters (--drafter), and search layer plans.",
)


@verbs.command("build", cls=VerbCommand)
def build(
    corpus: CorpusArgument,
    output: MemoryOption,
    kind: KindOption = "trigram",
    model: flags.ModelOption = DEFAULT_MODEL,
    field: FieldOption = "text",
    settings: KindSettings = None,
    limit: flags.LimitOption = None,
    overwrite: ReplaceOption = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Build a memory for the tokens of a model from a corpus of texts.

    Examples:

      likely draft build corpus.jsonl -o code.trigram --field code

      likely draft build answers.jsonl -o answers.suffix --kind suffix -m smollm2

      likely generate "def add(a, b):" --drafter trigram:code.trigram
    """
    memories = _checked_kind(kind)
    chosen = _checked_settings(kind, memories.settings, options.parse_settings(settings))
    for path in corpus:
        options.refuse_same_file(str(path), output)
    options.refuse_existing(output, overwrite)
    check_target(output)
    found = _texts(corpus, field, limit)
    with flags.ModelFlags(model).open_local() as lm:
        tokenizer, vocab_size, origin = lm.tokenizer, lm.runtime.vocab_size, options.origin(lm)
        with progress(len(found), "tokens", unit="texts") as tick:
            texts = list(_encoded(found, tokenizer, tick))
        memories.build(texts, vocab_size, chosen).save(output, tokenizer=tokenizer.fingerprint)
    size, count = output.stat().st_size, sum(map(len, texts))
    if as_json:
        record = {"file": str(output), "kind": kind, "size_bytes": size, "texts": len(texts), "tokens": count}
        print_json({**origin, **record, "settings": chosen})
        return
    typer.echo(f"{kind} memory of {len(texts):,} texts, {count:,} tokens: {output}, {size / 1e6:.1f} MB")
    typer.echo(f"use it with --drafter {kind}:{output}")


def _checked_kind(kind: str) -> MemoryKind:
    kinds = memory_kinds()
    if kind not in kinds:
        raise typer.BadParameter(
            f'unknown kind "{kind}"{nearest(kind, kinds)} (known: {", ".join(kinds)})', param_hint="--kind"
        )
    return kinds[kind]


def _checked_settings(kind: str, allowed: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if key not in allowed:
            raise typer.BadParameter(
                f'a {kind} memory has no setting "{key}"{nearest(key, allowed)} (known: {", ".join(allowed)})',
                param_hint="--set",
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise typer.BadParameter(f"{key} must be a number, got {value!r}", param_hint="--set")
    return given


def _texts(corpus: Sequence[Path], field: str, limit: int | None) -> list[str]:
    """The texts of all files; DataError if there are none."""
    found: list[str] = []
    for path in corpus:
        for text in _of_file(path, field):
            if limit is not None and len(found) >= limit:
                break
            if text:
                found.append(text)
    if not found:
        raise DataError(f"{', '.join(map(str, corpus))}: no texts, so nothing to remember")
    return found


def _of_file(path: Path, field: str) -> Iterator[str]:
    if path.suffix == ".txt":
        yield from _pieces(read_text(path))
        return
    if str(path) != "-" and not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{path}: a corpus is .jsonl, .jsonl.gz or .txt")
    for line in read_lines(path):
        yield text_field(line, field, "stdin" if str(path) == "-" else str(path))


def _pieces(text: str) -> Iterator[str]:
    """Parts of about PIECE characters that end where lines end."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE) + 1 or len(text)
        yield text[start:end]
        start = end


def _encoded(texts: Sequence[str], tokenizer: Tokenizer, tick: Callable[[int], None]) -> Iterator[list[int]]:
    for text in texts:
        yield tokenizer.encode(text)
        tick(1)


@verbs.command("show", cls=VerbCommand)
def show(file: Annotated[Path, typer.Argument(help="A memory file.")], as_json: flags.JsonOption = False) -> None:
    """Show what a memory file is: its kind, tokenizer, size and entries.

    Examples:

      likely draft show code.trigram

      likely draft show code.trigram --json
    """
    from likely.decoding.drafting.memory_file import describe_memory

    found = describe_memory(file)
    if as_json:
        print_json({"file": str(file), **asdict(found)})
        return
    size = f"{found.size_bytes / 1e6:.1f} MB" if found.size_bytes >= 1e6 else f"{found.size_bytes / 1e3:.1f} kB"
    rows = [("kind", found.kind), ("tokenizer", found.tokenizer), ("size", size), *sorted(found.settings.items())]
    rows += [(name, " x ".join(f"{n:,}" for n in shape)) for name, shape in found.arrays.items()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(for_terminal(f"{name:<{width}}  {value}"))


@verbs.command("plan", cls=VerbCommand)
def plan(
    corpus: CorpusArgument,
    output: PlanOption = None,
    model: flags.ModelOption = DEFAULT_MODEL,
    dtype: flags.DtypeOption = None,
    threads: flags.ThreadsOption = None,
    field: FieldOption = "text",
    tokens: TokensOption = 256,
    draft_length: LengthOption = 4,
    max_group: GroupOption = 4,
    attention: AttentionOption = 0.55,
    draft_cost: DraftCostOption = 0.5,
    communication: CommunicationOption = 0.0,
    overwrite: ReplaceOption = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Search which layers of a draft model may run side by side (--drafter layer_parallel), on texts like yours.

    Neighbours are merged while the predicted speed rises; predicted is drafting with a device for every layer of a
    group.  The drafter changes no text, whatever the plan.

    Examples:

      likely draft plan corpus.jsonl -m smollm2

      likely draft plan corpus.txt -o groups.json --max-group 2 --tokens 128 --threads 2

      likely generate "Once" --runtime torch --drafter layer_parallel:groups.json
    """
    from likely.decoding.drafting.layers.plans import plan_path, save_plan
    from likely.decoding.drafting.layers.search import DraftCost, search_plan

    if output is not None:
        for path in corpus:
            options.refuse_same_file(str(path), output)
        options.refuse_existing(output, overwrite)
        check_target(output)
    found = _texts(corpus, field, None)
    with flags.ModelFlags(model, "torch", dtype, threads=threads).open_local() as lm:
        ids = _first_tokens(found, lm.tokenizer, tokens)
        layers, revision, origin = lm.runtime.capabilities.layers, lm.runtime.revision, options.origin(lm)
        cost = DraftCost(attention, draft_cost, communication)
        with progress(2 * layers, "plans", unit="plans") as tick:
            search = search_plan(
                lm.runtime, ids, draft_length=draft_length, max_group=max_group, cost=cost, progress=tick
            )
    best, default = search.best, output is None
    groups = [list(group) for group in best.plan.parallel]
    path = save_plan(
        best.plan, revision, output or plan_path("layer_parallel", revision), agreement=asdict(best.agreement)
    )
    if as_json:
        steps = [{**asdict(s.agreement), "attention_depth": s.attention_depth, "speed": s.speed} for s in search.steps]
        pairs = [asdict(pair) for pair in search.pairs]
        print_json({**origin, "file": str(path), "groups": groups, "steps": steps, "pairs": pairs})
        return
    typer.echo("attentions in sequence   best token   overlap   predicted speed")
    for step in search.steps:
        same = step.agreement
        typer.echo(f"{step.attention_depth:22}   {same.top1:10.2f}   {same.overlap:7.2f}   {step.speed:15.2f}")
    named = ",".join(f"{group[0]}-{group[-1]}" for group in groups)
    typer.echo(for_terminal(f"side by side: {named or 'none'} of {layers} layers; {path}"))
    typer.echo(for_terminal(f"use it with --runtime torch --drafter layer_parallel{'' if default else f':{path}'}"))


def _first_tokens(texts: Sequence[str], tokenizer: Tokenizer, most: int) -> list[int]:
    """Of the texts, one after the other."""
    tokens: list[int] = []
    for text in texts:
        if len(tokens) >= most:
            break
        tokens += tokenizer.encode(text if not tokens else "\n" + text)
    return tokens[:most]
