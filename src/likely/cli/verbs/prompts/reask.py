"""likely prompts reask: how risky each answer is by rules, and a second answer for the riskiest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.io.jsonl import Line
    from likely.weak_supervision.reasking import Example

HINT = 'lines like {"text": "...", "answer": "spam"} are expected'


def reask(
    items: Annotated[str, typer.Argument(help='JSONL (.gz, too) of {"text", "answer" and "label" where known}.')],
    rules: Annotated[Path, typer.Option("--rules", help='JSONL of {"label", "pattern", "text": what the rule says}.')],
    labels: Annotated[str, typer.Option("--labels", help='The answers there are, as in "ham,spam".')],
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
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    limit: opt.LimitOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the harmonizer's training.")] = 0,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """A risk for each answer, from labelling rules and without labels, and a second answer where it is highest.

    Items without an "answer" are asked about first. Each line of the output has "answer", "risk", the "rules" that
    fired, whether it was "asked" again, and "final".

    Examples:

      likely prompts reask sms.jsonl --rules rules.jsonl --labels ham,spam --instruction "Spam or ham?" -o out.jsonl

      likely prompts reask sms.jsonl --rules rules.jsonl --labels ham,spam --instruction "Spam or ham?" \\
        --policy override --budget 0.1 --json
    """
    import numpy as np

    from likely.cli.printing import print_json, progress
    from likely.io.jsonl import Results, read_lines
    from likely.weak_supervision.harmonizer import Harmonizer
    from likely.weak_supervision.labelling_rules import Votes, read_rules
    from likely.weak_supervision.reasking import LabelTask, budget_threshold, fired, label_scores
    from likely.weak_supervision.reasking import reask as ask_again

    names = tuple(name.strip() for name in labels.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or "" in names:
        raise typer.BadParameter(
            f"at least 2 different names with commas between, got {labels!r}", param_hint="--labels"
        )
    opt.refuse_same_file(items, output)
    where = "stdin" if items == "-" else items
    lines = _read(items, names, limit)
    used = read_rules(rules, names)
    shown = _examples(examples, names) if examples is not None else ()
    _refuse_known(where, lines, shown)
    task = LabelTask(instruction, names, noun, shown)
    texts = [line.record["text"] for line in lines]
    more = [line.record["text"] for line in _read(str(fit), names, None)] if fit is not None else []
    first = np.array(
        [-1 if line.record.get("answer") is None else names.index(line.record["answer"]) for line in lines]
    )
    settings = {
        "rules_sha256": _digest(rules), "labels": list(names), "instruction": instruction, "noun": noun,
        "examples": [[e.text, e.label] for e in shown], "budget": budget, "policy": policy, "scalarizer": scalarizer,
        "fit_sha256": _digest(fit) if fit is not None else None, "seed": seed,
    }  # fmt: skip

    def records(lm: Any) -> list[dict[str, Any]]:
        unasked = np.flatnonzero(first < 0).tolist()
        if unasked:
            with progress(len(unasked) * len(names), "answering", unit="prompts") as tick:
                prompts = [task.prompt(texts[i]) for i in unasked]
                first[unasked] = label_scores(lm, prompts, names, progress=tick).probs().argmax(axis=1)
        every = [*texts, *more]
        votes = Votes.of(used, every, names).with_answers(np.append(first, np.full(len(more), -1)))
        harmonizer = Harmonizer(names, scalarizer=scalarizer, seed=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            harmonizer.fit(every, votes)
        for warning in caught:
            typer.echo(f"Warning: {warning.message}", err=True)
        fused = harmonizer.predict_proba(texts)
        risk = harmonizer.polar(texts, first).values
        with progress(int(budget * len(texts) + 1) * len(names), "asking again", unit="prompts") as tick:
            found = ask_again(
                lm, task, texts, first, risk, threshold=budget_threshold(risk, budget), policy=policy, rules=used,
                fused=fused, progress=tick,
            )  # fmt: skip
        return [
            {
                "line": line.number, "input": line.digest, "answer": names[first[i]], "risk": float(risk[i]),
                "rules": [rule.name for rule in fired(used, texts[i])], "chosen": bool(found.chosen[i]),
                "asked": bool(found.asked[i]), "final": names[found.answers[i]], "label": line.record.get("label"),
                "harmonizer": dict(zip(names, fused[i].tolist(), strict=True)),
                "probs": None if np.isnan(found.probs[i]).any() else found.probs[i].tolist(),
            }
            for i, line in enumerate(lines)
        ]  # fmt: skip

    with opt.open_model(model, runtime=runtime, context=context, threads=threads) as lm:
        origin = opt.origin(lm)
        # every risk depends on all items, so that a file belongs to just these
        header = {**origin, "kind": "reask", "items_sha256": _digest_of(lines), "settings": settings}
        with Results(output, header, overwrite=overwrite) as results:
            made = [] if all([results.is_done(line, where) for line in lines]) else records(lm)
            results.write([r for r, line in zip(made, lines, strict=False) if not results.is_done(line, where)])
    told = made if output is None else [line.record for line in read_lines(output) if "line" in line.record]
    summary = _summary(told, len(used), budget_threshold([r["risk"] for r in told], budget))
    if as_json and output is not None:
        print_json({**origin, **settings, **summary})
    else:
        for text in _said(where, policy, summary):
            typer.echo(text, err=output is None)


def _read(path: str, names: Sequence[str], limit: int | None) -> Sequence[Line]:
    from likely.errors import DataError, nearest
    from likely.io.jsonl import read_checked

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
    from likely.errors import DataError
    from likely.weak_supervision.reasking import Example

    lines = _read(str(path), names, None)
    for line in lines:
        if line.record.get("label") is None:
            raise DataError(f'{path}:{line.number}: a worked example needs its "label"')
    return tuple(Example(line.record["text"], list(names).index(line.record["label"])) for line in lines)


def _refuse_known(where: str, lines: Sequence[Line], shown: Sequence[Example]) -> None:
    """An item that is also a worked example would have its answer in the prompt."""
    from likely.errors import DataError
    from likely.prompting.ensembles.demonstrations import normalise_text

    known = {normalise_text(example.text): number for number, example in enumerate(shown, 1)}
    for line in lines:
        number = known.get(normalise_text(line.record["text"]))
        if number is not None:
            raise DataError(
                f"{where}:{line.number} is also worked example {number}, whose answer stands in the prompt: leave one "
                f"of the two out"
            )


def _digest_of(lines: Sequence[Line]) -> str:
    import hashlib

    return hashlib.sha256(" ".join(f"{line.number}:{line.digest}" for line in lines).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    from likely.io.hashes import file_sha256

    return file_sha256(path)


def _summary(records: Sequence[dict[str, Any]], rules: int, threshold: float) -> dict[str, Any]:
    """Counts; accuracy before and after, and AUROC of the risk, where labels are known."""
    import math

    from likely.metrics.intervals import Accuracy
    from likely.weak_supervision.risk import risk_quality

    known = [r for r in records if r["label"] is not None]
    out: dict[str, Any] = {
        "items": len(records), "rules": rules, "covered": sum(bool(r["rules"]) for r in records),
        "chosen": sum(r["chosen"] for r in records), "asked": sum(r["asked"] for r in records),
        "changed": sum(r["final"] != r["answer"] for r in records),
        "threshold": threshold if math.isfinite(threshold) else None, "labelled": len(known),
    }  # fmt: skip
    if known:
        for name, field in (("before", "answer"), ("after", "final")):
            right = Accuracy(sum(r[field] == r["label"] for r in known), len(known))
            out[name] = {"accuracy": right.value, "interval": list(right.interval)}
        wrong = [int(r["answer"] != r["label"]) for r in known]
        quality = risk_quality([r["risk"] for r in known], wrong)
        out["risk_ece"], out["risk_auroc"] = quality.ece, None if math.isnan(quality.auroc) else quality.auroc
    return out


def _said(where: str, policy: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"{where}: {found['items']} items, rules fire on {found['covered']}; {found['chosen']} riskiest chosen, "
        f"{found['asked']} asked again ({policy}), {found['changed']} answers changed"
    ]
    if found["labelled"]:
        texts = []
        for name in ("before", "after"):
            low, high = found[name]["interval"]
            texts.append(f"{name} {found[name]['accuracy']:.3f} [{low:.3f}, {high:.3f}]")
        auroc = "-" if found["risk_auroc"] is None else f"{found['risk_auroc']:.3f}"
        lines.append(
            f"accuracy {', '.join(texts)} of {found['labelled']} with a label; risk: AUROC {auroc}, "
            f"ECE {found['risk_ece']:.3f}"
        )
    return lines
