"""likely prompts reask: how risky each answer is by rules, and a second answer for the riskiest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.file_run import Advance, Chunks, FileRun, check_output, input_name
from likely.cli.help import LIST
from likely.cli.printing import print_json, progress, with_interval
from likely.errors import DataError, nearest
from likely.io.hashes import file_sha256, fingerprint
from likely.io.jsonl import Line, read_checked

if TYPE_CHECKING:
    from likely.weak_supervision.reasking import Example

HINT = 'lines like {"text": "...", "answer": "spam"} are expected'


@flags.grouped
def reask(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    items: Annotated[str, typer.Argument(help='JSONL (.gz, too) of {"text", "answer" and "label" where known}.')],
    rules: Annotated[Path, typer.Option("--rules", help='JSONL of {"label", "pattern", "text": what the rule says}.')],
    labels: Annotated[str, typer.Option("--labels", metavar=LIST, help='The answers there are, as in "ham,spam".')],
    instruction: Annotated[str, typer.Option("--instruction", help="What the model is asked to do.")],
    noun: Annotated[str, typer.Option("--noun", help="What a text is called in the prompt.")] = "Text",
    examples: Annotated[
        Path | None, typer.Option("--examples", help='Worked examples in front: JSONL of {"text", "label"}.')
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", min=0.0, max=1.0, help="Share of the items that may be asked again.")
    ] = 0.2,
    policy: Annotated[
        Literal["evidence", "reconsider", "override"],
        typer.Option("--policy", help="Show what the rules say, ask to look again, or take the harmonizer's answer."),
    ] = "evidence",
    fit: Annotated[
        Path | None,
        typer.Option("--fit", help="More texts, without labels, that the harmonizer learns from, beside the items."),
    ] = None,
    scalarizer: Annotated[
        Literal["quadratic", "linear", "euclidean", "chebyshev"],
        typer.Option("--scalarizer", help="How the sources' losses are combined."),
    ] = "quadratic",
    seed: Annotated[int, typer.Option("--seed", help="Of the harmonizer's training.")] = 0,
    as_json: flags.JsonOption = False,
) -> None:
    """A risk for each answer, from labelling rules and without labels, and a second answer where it is highest.

    Items without an "answer" are asked about first. Each line of the output has "answer", "risk", the "rules" that
    fired, whether it was "asked" again, and "final".

    Examples:

      likely prompts reask sms.jsonl --rules rules.jsonl --labels ham,spam --instruction "Spam or ham?" -o out.jsonl

      likely prompts reask sms.jsonl --rules rules.jsonl --labels ham,spam --instruction "Spam or ham?" \\
        --policy override --budget 0.1 --json
    """
    from likely.weak_supervision.labelling_rules import read_rules
    from likely.weak_supervision.reasking import LabelTask, rate_and_reask, summarise

    names = tuple(name.strip() for name in labels.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or "" in names:
        raise typer.BadParameter(
            f"at least 2 different names with commas between, got {labels!r}", param_hint="--labels"
        )
    check_output(items, out.output)
    where = input_name(items)
    lines = FileRun[None](where, _read(items, names, out.limit), {}, out.output, out.overwrite)
    used = read_rules(rules, names)
    shown = _examples(examples, names) if examples is not None else ()
    _refuse_known(where, lines.lines, shown)
    task = LabelTask(instruction, names, noun, shown)
    more = [line.record["text"] for line in _read(str(fit), names, None)] if fit is not None else []
    settings = {
        "rules_sha256": file_sha256(rules), "labels": list(names), "instruction": instruction, "noun": noun,
        "examples": [[e.text, e.label] for e in shown], "budget": budget, "policy": policy, "scalarizer": scalarizer,
        "fit_sha256": file_sha256(fit) if fit is not None else None, "seed": seed,
    }  # fmt: skip
    with model.open() as lm:
        origin = options.origin(lm)

        def rate(chunks: Chunks, _: Advance) -> Iterator[tuple[Line, dict[str, Any]]]:
            for chunk in chunks:  # one: every risk depends on all items
                given = [line.record.get("answer") for line in chunk]
                first = [-1 if answer is None else names.index(answer) for answer in given]
                prompts = first.count(-1) + int(budget * len(chunk) + 1)
                with progress(prompts * len(names), "asking", unit="prompts") as advance:
                    found = rate_and_reask(
                        lm, task, [line.record["text"] for line in chunk], first, used, budget=budget, policy=policy,
                        scalarizer=scalarizer, seed=seed, more_texts=more, progress=advance,
                    )  # fmt: skip
                for line, record in zip(chunk, found, strict=True):
                    yield line, {**record, "label": line.record.get("label")}

        items_sha256 = fingerprint(" ".join(f"{line.number}:{line.digest}" for line in lines.lines))
        header = {**origin, "kind": "reask", "items_sha256": items_sha256, "settings": settings}
        lines.run(header, rate, size=len(lines.lines), keep=True)
    summary = {"rules": len(used), **summarise(lines.records(), budget)}
    if as_json and out.output is not None:
        print_json({**origin, **settings, **summary})
    else:
        for text in _said(where, policy, summary):
            typer.echo(text, err=out.output is None)


def _read(path: str, names: Sequence[str], limit: int | None) -> Sequence[Line]:
    where = "stdin" if path == "-" else path

    def check(line: Line) -> None:
        text = line.record.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f'{where}:{line.number}: field "text" must be a text that is not empty: {HINT}')
        for field in ("answer", "label"):
            if line.record.get(field) is not None and line.record[field] not in names:  # null: not known
                found = str(line.record[field])
                raise DataError(
                    f'{where}:{line.number}: {field} "{found}"{nearest(found, names)} (allowed: {", ".join(names)})'
                )

    lines = read_checked(path, check, limit=limit).lines
    if len(lines) < 2:
        raise DataError(f"{where} holds {len(lines)} item(s), at least 2 are needed: {HINT}")
    return lines


def _examples(path: Path, names: Sequence[str]) -> Any:
    from likely.weak_supervision.reasking import Example

    lines = _read(str(path), names, None)
    for line in lines:
        if line.record.get("label") is None:
            raise DataError(f'{path}:{line.number}: a worked example needs its "label"')
    return tuple(Example(line.record["text"], list(names).index(line.record["label"])) for line in lines)


def _refuse_known(where: str, lines: Sequence[Line], shown: Sequence[Example]) -> None:
    """An item that is also a worked example would have its answer in the prompt."""
    from likely.prompting.ensembles.demonstrations import normalise_text

    known = {normalise_text(example.text): number for number, example in enumerate(shown, 1)}
    for line in lines:
        number = known.get(normalise_text(line.record["text"]))
        if number is not None:
            raise DataError(
                f"{where}:{line.number} is also worked example {number}, whose answer stands in the prompt: leave one "
                f"of the two out"
            )


def _said(where: str, policy: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"{where}: {found['items']} items, rules fire on {found['covered']}; {found['chosen']} riskiest chosen, "
        f"{found['asked']} asked again ({policy}), {found['changed']} answers changed"
    ]
    if found["labelled"]:
        texts = [
            f"{name} {with_interval(found[name]['accuracy'], found[name]['interval'])}" for name in ("before", "after")
        ]
        auroc = "-" if found["risk_auroc"] is None else f"{found['risk_auroc']:.3f}"
        lines.append(
            f"accuracy {', '.join(texts)} of {found['labelled']} with a label; risk: AUROC {auroc}, "
            f"ECE {found['risk_ece']:.3f}"
        )
    return lines
