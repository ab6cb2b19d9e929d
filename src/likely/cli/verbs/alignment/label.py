"""likely align label: train a model to label spans of sentences, label a file, and measure the labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, options
from likely.cli.file_run import Advance, Chunks, FileRun, check_output
from likely.cli.help import VerbCommand
from likely.cli.printing import print_json, print_table, progress, with_interval
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line

if TYPE_CHECKING:
    from likely.alignment.labelling.labeller import LabellingReport, SpanLabeller
    from likely.alignment.labelling.sentences import Sentence
    from likely.lm.model import Model

EXAMPLES = """Label names, slots, aspects in sentences: train on your file, label, measure.

Examples:

  likely align label train train.conll -o labeller

  likely align label predict sentences.jsonl --adapter labeller -o labelled.jsonl

  likely align label evaluate test.conll --adapter labeller

  likely align label evaluate snips-slots:test --demonstrations snips-slots:train --limit 50

Files: CoNLL columns (word first, tag last, a blank line between sentences), JSON lines of {"tokens": [...], "tags":
[...]} or {"text": "...", "spans": [{"start": 0, "end": 4, "label": "city"}]}, or NAME:SPLIT of a data set.
"""
SentencesArgument = Annotated[str, typer.Argument(help="CoNLL columns, JSON lines, or NAME:SPLIT of a data set.")]
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", help="A folder that `likely align label train` wrote.")
]
DemonstrationsOption = Annotated[
    str | None,
    typer.Option("--demonstrations", help="Without an adapter: labelled sentences to show in the prompt, as FILE."),
]
ShownOption = Annotated[
    int | None, typer.Option("--k", min=0, help="Demonstrations before a sentence.  [default: as trained, or 4]")
]
NearestOption = Annotated[
    bool, typer.Option("--nearest", help="Demonstrations that share words with the sentence, not the same for all.")
]
FreeOption = Annotated[
    bool, typer.Option("--free", help="Do not hold responses to the sentence's words: what cannot be read is dropped.")
]
verbs = typer.Typer(no_args_is_help=True, help=EXAMPLES, rich_markup_mode=None)


@verbs.command("train", cls=VerbCommand)
@flags.grouped
def train(
    model: flags.ModelFlags,
    file: SentencesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the adapter; a stopped run goes on there.")],
    strategy: Annotated[
        str,
        typer.Option("--strategy", help="Loss on all responses (mrc), the last one (src), or all tokens (vanilla)."),
    ] = "mrc",
    k: Annotated[int, typer.Option("--k", min=0, help="Demonstrations before each query.")] = 4,
    instruction: Annotated[
        bool, typer.Option("--instruction", help="Begin prompts with the task and the labels (rarely of use).")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the optimiser.")] = 200,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Prompts of a step.")] = 4,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.")] = 2e-4,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the LoRA matrices.")] = 16,
    seed: flags.SeedOption = 0,
    limit: flags.LimitOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin the folder anew.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Supervised in-context fine-tuning: LoRA on prompts with demonstrations from the file itself.

    Examples:

      likely align label train train.conll -o labeller

      likely align label train snips-slots:train -o labeller --steps 300 --lr 5e-4 --json
    """
    from likely.alignment.labelling.prompt import TASK
    from likely.alignment.labelling.sentences import labels_of, read_sentences
    from likely.alignment.labelling.sift import SiftSettings, remove_labeller, train_labeller
    from likely.training.fit import TrainingSettings
    from likely.training.policy import LoraSettings

    settings = SiftSettings(strategy, k, TASK if instruction else None, seed)  # type: ignore[arg-type]
    training = TrainingSettings(steps=steps, batch=batch, lr=lr, seed=seed)
    sentences = read_sentences(file, limit=limit)
    if overwrite:
        remove_labeller(output)
    with _with_gradients(model) as lm, progress(steps, "training", unit="steps") as advance:
        losses = train_labeller(
            lm, sentences, output, settings=settings, training=training,
            lora=LoraSettings(rank=rank, alpha=2 * rank), progress=lambda step, loss: advance(1),
        )  # fmt: skip
        origin = options.origin(lm)
    labels = labels_of(sentences)
    if as_json:
        print_json({
            **origin, "file": file, "sentences": len(sentences), "labels": labels, "written": str(output),
            "steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1],
        })  # fmt: skip
        return
    typer.echo(
        f"{len(sentences)} sentences, {len(labels)} labels: {losses[0]:.3f} nats per token at first, {losses[-1]:.3f} "
        f"after {len(losses)} steps"
    )
    typer.echo(f"written: {output}")


@verbs.command("predict", cls=VerbCommand)
@flags.grouped
def predict(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    file: SentencesArgument,
    adapter: AdapterOption = None,
    demonstrations: DemonstrationsOption = None,
    k: ShownOption = None,
    nearest: NearestOption = False,
    free: FreeOption = False,
) -> None:
    """Label every sentence: tags, spans with their log-probabilities, and what was written, a JSON line each.

    Examples:

      likely align label predict sentences.jsonl --adapter labeller -o labelled.jsonl

      likely align label predict sentences.conll --demonstrations train.conll > labelled.jsonl
    """
    from likely.alignment.labelling.sentences import read_sentences

    if Path(file).exists():
        check_output(file, out.output)
    sentences = read_sentences(file, labelled=False, limit=out.limit)
    items = {line.number: sentence for sentence in sentences if (line := sentence.line) is not None}
    lines: FileRun[Sentence] = FileRun(
        file, [s.line for s in sentences if s.line is not None], items, out.output, out.overwrite
    )
    with _opened(model, adapter, demonstrations, k, nearest) as (lm, labeller):
        settings = {**_about(labeller, adapter, demonstrations, nearest), "constrained": not free}
        header = {**options.origin(lm), "kind": "label", "settings": settings, "settings_hash": fingerprint(settings)}

        def work(chunks: Chunks, advance: Advance) -> Iterator[tuple[Line, dict[str, Any]]]:
            for chunk in chunks:
                found = labeller.predict([lines.item(line) for line in chunk], constrained=not free)
                for line, one in zip(chunk, found, strict=True):
                    yield line, one.to_dict()
                advance(len(chunk))

        lines.run(header, work, label="labelling", unit="sentences", size=32)


@verbs.command("evaluate", cls=VerbCommand)
@flags.grouped
def evaluate(
    model: flags.ModelFlags,
    file: SentencesArgument,
    adapter: AdapterOption = None,
    demonstrations: DemonstrationsOption = None,
    k: ShownOption = None,
    nearest: NearestOption = False,
    free: FreeOption = False,
    limit: flags.LimitOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Strict span F1 on labelled sentences (both boundaries and the label), as seqeval counts it, with a 95 % interval.

    Examples:

      likely align label evaluate test.conll --adapter labeller

      likely align label evaluate test.conll --demonstrations train.conll --free --json
    """
    from likely.alignment.labelling.sentences import read_sentences

    sentences = read_sentences(file, limit=limit)
    with _opened(model, adapter, demonstrations, k, nearest) as (lm, labeller):
        with progress(len(sentences), "labelling", unit="sentences") as advance:
            report = labeller.evaluate(sentences, constrained=not free, progress=advance)
        about = {**options.origin(lm), **_about(labeller, adapter, demonstrations, nearest), "constrained": not free}
    if as_json:
        print_json({**about, "file": file, **report.to_dict()})
        return
    _print_report(file, report)


def _with_gradients(model: flags.ModelFlags) -> Model:
    return replace(model, runtime=model.runtime or "torch").open_local()


class _Opened:
    """The model and a labeller on it, in a with block."""

    def __init__(self, lm: Any, labeller: SpanLabeller):
        self.lm, self.labeller = lm, labeller

    def __enter__(self) -> tuple[Any, SpanLabeller]:
        return self.lm, self.labeller

    def __exit__(self, *_: object) -> None:
        self.labeller.close()
        self.lm.close()


def _opened(
    model: flags.ModelFlags, adapter: Path | None, demonstrations: str | None, k: int | None, nearest: bool
) -> _Opened:
    from likely.alignment.labelling.codec import SpanCodec
    from likely.alignment.labelling.labeller import SpanLabeller
    from likely.alignment.labelling.prompt import TASK, NearestDemonstrations, RandomDemonstrations
    from likely.alignment.labelling.sentences import labels_of, read_sentences
    from likely.alignment.labelling.sift import open_labeller

    if (adapter is None) == (demonstrations is None):
        raise typer.BadParameter(
            "give --adapter FOLDER (of likely align label train), or --demonstrations FILE to label without training",
            param_hint="--adapter",
        )
    if adapter is not None:
        lm = _with_gradients(model)
        return _Opened(lm, open_labeller(lm, adapter, k=k, selector=NearestDemonstrations() if nearest else None))
    pool = read_sentences(demonstrations or "")
    if not labels_of(pool):
        raise DataError(f"{demonstrations} has no labelled span: there is nothing to demonstrate")
    selector = NearestDemonstrations() if nearest else RandomDemonstrations()
    lm = model.open_local("batch")
    return _Opened(lm, SpanLabeller(lm, SpanCodec(labels_of(pool)), pool, 4 if k is None else k, selector, TASK))


def _about(labeller: SpanLabeller, adapter: Path | None, demonstrations: str | None, nearest: bool) -> dict[str, Any]:
    return {
        "adapter": None if adapter is None else str(adapter), "demonstrations": demonstrations, "k": labeller.k,
        "nearest": nearest, "labels": list(labeller.codec.labels), "instruction": labeller.instruction,
    }  # fmt: skip


def _print_report(file: str, report: LabellingReport) -> None:
    whole = report.total
    typer.echo(f"{file}: {len(report.counts)} sentences, strict span F1 {with_interval(whole.f1, report.interval)}")
    rows = [("all", whole.to_dict()), *report.per_type.items()]
    print_table(
        ("label", "precision", "recall", "F1", "spans"),
        [(name, *(f"{r[key]:.3f}" for key in ("precision", "recall", "f1")), r["support"]) for name, r in rows],
    )
    if report.unread or report.cut:
        kinds = ", ".join(f"{kind} {count}" for kind, count in report.problems.items())
        typer.echo(f"{report.unread} responses could not be read in full ({kinds}), {report.cut} had no end")
