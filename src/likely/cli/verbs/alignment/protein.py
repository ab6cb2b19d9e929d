"""likely align protein: teach a model protein families, then generate, name and judge sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from likely.cli import flags
from likely.cli.help import VerbCommand
from likely.cli.printing import print_json, print_table, reporter

verbs = typer.Typer(no_args_is_help=True, help="Proteins: sequences of a family, the family of a sequence, mutations.")

ProteinFolder = Annotated[str, typer.Argument(metavar="FOLDER", help="What `likely align protein train` wrote.")]


@verbs.command(cls=VerbCommand)
def train(
    data: Annotated[
        str, typer.Argument(help='JSONL of {"sequence", "family"}, or a data set: protein-families:train.')
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder to write the model to.")],
    model: Annotated[
        str, typer.Option("-m", "--model", help="Known model, folder, GGUF file; of --stages 2 a folder of stage 1.")
    ] = "smollm2",
    stages: Annotated[
        Literal["both", "1", "2"], typer.Option("--stages", help="1: sequences; 2: both tasks, given a superfamily.")
    ] = "both",
    test: Annotated[str | None, typer.Option("--test", help="Proteins to report on, before and after.")] = None,
    superfamily: Annotated[str, typer.Option("--superfamily-field", help="Field of the superfamily.")] = "family",
    tokens: Annotated[
        Literal["residue", "bpe"], typer.Option("--tokens", help="One token a residue, or as the tokenizer likes.")
    ] = "residue",
    most: Annotated[int, typer.Option("--most", min=0, help="Sequences of one superfamily; 0: all.")] = 0,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of LoRA in stage 1; stage 2 has half.")] = 32,
    epochs: Annotated[tuple[float, float], typer.Option("--epochs", min=0.01, help="Of stage 1 and of stage 2.")] = (
        1.0,
        2.0,
    ),
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of one step.")] = 8,
    piece: Annotated[int, typer.Option("--piece", min=1, help="Rows in memory together; changes no numbers.")] = 2,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.")] = 2e-4,
    longest: Annotated[int, typer.Option("--longest", min=8, help="Tokens of a row; longer ones are left out.")] = 512,
    threads: flags.ThreadsOption = None,
    seed: flags.SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is there.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Teach a model proteins in two stages (ProLLaMA): sequences, then sequence <-> superfamily.

    Stopped in the middle, the same command goes on.  likely.load and transformers open the folder, too.

    Examples:

      likely align protein train protein-families:train --test protein-families:test --most 40 -o proteins

      likely align protein train families.jsonl -m smollm2 --epochs 3 4 -o proteins

      likely align protein train uniref.jsonl --stages 1 -o stage1

      likely align protein train families.jsonl --stages 2 -m stage1 -o proteins
    """
    from likely.alignment.protein import ProteinRun, train_proteins

    run = ProteinRun(
        data, stages, test, superfamily, tokens, most, rank, epochs, batch, piece, lr, longest, seed,
    )  # fmt: skip
    watched = reporter("protein")
    report = train_proteins(
        model, out, run, overwrite=overwrite, threads=threads, say=watched or (lambda line: None),
        progress=(lambda step, loss: watched(f"step {step + 1}, loss {loss:.3f}")) if watched else None,
    )  # fmt: skip
    if as_json:
        print_json({**report, "written": str(out)})
        return
    shown = {"before": report["before"]}
    shown |= {name: report[name]["quality"] for name in ("stage1", "stage2") if name in report}
    if test is not None:
        names = list(shown["before"])
        print_table(("", *names), [(when, *(f"{found[name]:.3f}" for name in names)) for when, found in shown.items()])
    for name in ("stage1", "stage2"):
        if name in report:
            record = report[name]["record"]
            typer.echo(
                f"{name}: {record['steps']} steps, loss {record['first_loss']:.3f} to {record['last_loss']:.3f}, "
                f"{record['trained_share']:.1%} of the weights trained, {record['left_out']} rows left out as too long"
            )
    typer.echo(f"written: {out}")


@verbs.command(cls=VerbCommand)
def generate(
    folder: ProteinFolder,
    superfamily: Annotated[
        str | None, typer.Option("--superfamily", help="Which sequences are wanted.  [default: any]")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 1,
    prefix: Annotated[str, typer.Option("--prefix", help="First residues, as given.")] = "",
    temperature: flags.TemperatureOption = 0.2,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="0: all.")] = 40,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="1: all.")] = 0.9,
    max_residues: Annotated[int, typer.Option("--max-residues", min=1, help="Of a sequence.")] = 400,
    runtime: flags.RuntimeOption = None,
    threads: flags.ThreadsOption = None,
    seed: flags.SeedOption = 0,
    as_json: flags.JsonOption = False,
) -> None:
    """Write sequences of a superfamily, as FASTA: residues alone can be written.

    Examples:

      likely align protein generate proteins --superfamily Metallothionein -n 5 --temperature 0.8

      likely align protein generate proteins --superfamily Metallothionein --prefix MDPNC --json
    """
    from likely.alignment.protein import ProteinModel

    model = ProteinModel.load(folder, runtime=runtime, threads=threads)
    found = model.generate(
        superfamily, n=n, prefix=prefix, max_residues=max_residues, temperature=temperature, top_k=top_k, top_p=top_p,
        seed=seed,
    )  # fmt: skip
    if as_json:
        print_json([
            {"superfamily": superfamily, "sequence": p.sequence, "finished": p.finished, "logprob": p.logprob}
            for p in found
        ])  # fmt: skip
        return
    for number, protein in enumerate(found, 1):
        cut = "" if protein.finished else " unfinished"
        typer.echo(f">{number} {superfamily or 'any'} logprob={protein.logprob:.2f}{cut}\n{protein.sequence}")


@verbs.command(cls=VerbCommand)
def determine(
    folder: ProteinFolder,
    sequences: Annotated[list[str], typer.Argument(metavar="SEQUENCE...", help="Residues.")],
    superfamily: Annotated[
        list[str] | None,
        typer.Option("--superfamily", help="To choose from (repeatable).  [default: all that were learned]"),
    ] = None,
    runtime: flags.RuntimeOption = None,
    threads: flags.ThreadsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Name the superfamily of sequences, with the probability of each one by its likelihood.

    Examples:

      likely align protein determine proteins MDPNCSCATGGSCTCTGSCKCKECKCTSCKKSCCSCCPMSCAKCAQGCICKGASEKCSCCA

      likely align protein determine proteins MKRVLL --superfamily Metallothionein --superfamily "HPr domain" --json
    """
    from likely.alignment.protein import ProteinModel

    model = ProteinModel.load(folder, runtime=runtime, threads=threads)
    found = model.probabilities(sequences, superfamily)
    if as_json:
        print_json([{"sequence": s, "probabilities": p} for s, p in zip(sequences, found, strict=True)])
        return
    for sequence, probabilities in zip(sequences, found, strict=True):
        typer.echo(f"{sequence[:40]}{'...' if len(sequence) > 40 else ''}")
        print_table(("superfamily", "probability"), [(name, f"{p:.3f}") for name, p in probabilities.items()])


@verbs.command(cls=VerbCommand)
def fitness(
    folder: ProteinFolder,
    wild: Annotated[str, typer.Argument(help="The wild type's residues.")],
    mutations: Annotated[
        list[str], typer.Argument(metavar="MUTATION...", help="Substitutions such as K2R, several at once as K2R:L5V.")
    ],
    superfamily: Annotated[str | None, typer.Option("--superfamily", help="Given to the model first.")] = None,
    reduction: Annotated[
        Literal["sum", "mean"], typer.Option("--reduction", help="Log-odds of the sequence, or per token.")
    ] = "sum",
    runtime: flags.RuntimeOption = None,
    threads: flags.ThreadsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """How likely mutants are against the wild type, in nats; above 0 the model likes the mutant better.

    Examples:

      likely align protein fitness proteins MDPNCSCATGG D2E P3A D2E:P3A
    """
    from likely.alignment.protein import ProteinModel, mutated

    mutants = [mutated(wild, m) for m in mutations]
    model = ProteinModel.load(folder, runtime=runtime, threads=threads)
    values = model.fitness(wild, mutants, superfamily=superfamily, reduction=reduction)
    if as_json:
        print_json([{"mutation": m, "fitness": float(v)} for m, v in zip(mutations, values, strict=True)])
        return
    print_table(("mutation", "fitness (nats)"), [(m, f"{v:+.3f}") for m, v in zip(mutations, values, strict=True)])
