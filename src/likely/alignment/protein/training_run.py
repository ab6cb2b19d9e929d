"""A user's proteins become a model: both stages, one after the other, with a report before and after."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from likely.alignment.protein.format import ProteinFormat, TokenKind
from likely.alignment.protein.model import ProteinModel
from likely.alignment.protein.recipe import EMBEDDINGS, StageSettings, stage1, stage2
from likely.alignment.protein.rows import ProteinRow, balanced, read_proteins, with_superfamily
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.whole_file import write_for_user
from likely.training.lora import HasRuntime
from likely.training.policy import LoraSettings

Stages = Literal["both", "1", "2"]
UNFINISHED, RECIPE = "unfinished", "run.json"  # folder within the target while it is made, and what it depends on


@dataclass(frozen=True)
class ProteinRun:
    """What is trained on and how.

    data         file or data set of proteins, see `read_proteins`;  superfamily: the field that holds it
    stages       "both", "1" alone, or "2" on a folder that stage 1 wrote
    most         sequences of one superfamily, where some have many more than others; 0: all
    rank         of the factors of stage 1; stage 2 has half;  alpha is twice the rank
    epochs       of stage 1 and of stage 2
    """

    data: str
    stages: Stages = "both"
    test: str | None = None
    superfamily: str = "family"
    tokens: TokenKind = "residue"
    most: int = 0
    rank: int = 32
    epochs: tuple[float, float] = (1.0, 2.0)
    batch: int = 8
    piece: int = 2
    lr: float = 2e-4
    longest: int = 512
    seed: int = 0


def train_proteins(
    model: str | Path | HasRuntime, out: Path, run: ProteinRun, *, overwrite: bool = False, threads: int | None = None,
    say: Callable[[str], None] = lambda line: None, progress: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The stages of `run`; the model is written to `out` and the report, before and after, given back.

    Stopped in the middle, the same call goes on: after whole stages, and within one from its last checkpoint.
    """
    if out.exists() and not (out / UNFINISHED).exists() and not overwrite:
        raise DataError(f"{out} exists: choose another folder or overwrite it")
    rows = read_proteins(run.data, superfamily=run.superfamily)
    rows = balanced(rows, run.most) if run.most else rows
    test = read_proteins(run.test, superfamily=run.superfamily) if run.test else []
    work = out / UNFINISHED
    finished = work / "stage1"
    report: dict[str, Any] = {"data": run.data, "proteins": len(rows), "stages": run.stages}

    def settings(stage: int) -> StageSettings:
        return StageSettings(
            epochs=run.epochs[stage - 1], batch=run.batch, piece=run.piece, lr=run.lr, longest=run.longest,
            seed=run.seed, warmup=(0.05, 0.03)[stage - 1], weight_decay=(0.01, 0.0)[stage - 1],
        )  # fmt: skip

    if run.stages == "2":
        now = ProteinModel.load(str(model), runtime="torch", threads=threads)
    else:
        bare = _opened(model, threads)
        now = ProteinModel(bare.runtime, bare.tokenizer, ProteinFormat(bare.tokenizer, tokens=run.tokens), {})
    for row in rows:
        now.format.checked(row.sequence, row.where)
    if run.stages != "1":
        with_superfamily(rows, now.format.superfamily_text)
    base = str(model) if isinstance(model, str | Path) else model.runtime.revision
    told = {**asdict(run), "model": base, "content": fingerprint([(r.sequence, r.superfamily) for r in rows])}
    _begin(work, json.loads(json.dumps(told)), overwrite)
    report["before"] = quality(now, test)
    if run.stages != "2":
        if (finished / "protein.json").exists():
            now = ProteinModel.load(finished, runtime="torch", threads=threads)
        else:
            say(f"stage 1: {len(rows)} sequences")
            lora = LoraSettings(run.rank, 2 * run.rank, 0.05, fully_trained=EMBEDDINGS)
            now = stage1(
                now, [r.sequence for r in rows], lora, settings(1), tokens=run.tokens,
                checkpoints=work / "checkpoints1", progress=progress,
            )  # fmt: skip
            now.save(finished)
        report["stage1"] = {"record": _short(now.record), "quality": quality(now, test)}
    if run.stages != "1":
        say(f"stage 2: {2 * len(rows)} rows of both tasks")
        lora = LoraSettings(max(1, run.rank // 2), 2 * max(1, run.rank // 2), 0.05)
        now = stage2(now, rows, lora, settings(2), checkpoints=work / "checkpoints2", progress=progress)
        report["stage2"] = {"record": _short(now.record), "quality": quality(now, test)}
    now.save(out)
    shutil.rmtree(work)
    return report


def _begin(work: Path, told: dict[str, Any], overwrite: bool) -> None:
    """Write what the run depends on, or check it against what was begun there."""
    if overwrite:
        shutil.rmtree(work, ignore_errors=True)
    known = json.loads((work / RECIPE).read_text("utf-8")) if (work / RECIPE).exists() else told
    for name in told:
        if known.get(name) != told[name]:
            raise DataError(
                f"{work.parent} holds an unfinished run with another {name} ({known.get(name)}, now {told[name]}): "
                f"choose another folder or --overwrite"
            )
    write_for_user(work / RECIPE, json.dumps(told, indent=1).encode())


def quality(model: ProteinModel, rows: Sequence[ProteinRow]) -> dict[str, float]:
    """Perplexity per residue of bare sequences, and the share whose superfamily the likelihoods name; {} of no rows."""
    if not rows:
        return {}
    nats = np.concatenate([row[:-1] for row in model.sequence_logprobs([r.sequence for r in rows])])
    found = {"residue_perplexity": math.exp(-float(nats.mean()))}
    named = [r for r in rows if r.superfamily]
    names = sorted({r.superfamily for r in named})
    if len(names) > 1:
        table = model.determine([r.sequence for r in named], names)
        right = [names[i] == r.superfamily for i, r in zip(table.argmax(1), named, strict=True)]
        found["superfamily_accuracy"] = float(np.mean(right))
    return found


def _opened(model: str | Path | HasRuntime, threads: int | None) -> HasRuntime:
    if not isinstance(model, str | Path):
        return model
    from likely.models.load import load_local

    return load_local(str(model), runtime="torch", threads=threads)


def _short(record: dict[str, Any]) -> dict[str, Any]:
    """Without the losses of every step and the record of the stage before."""
    losses = record["losses"]
    kept = {k: v for k, v in record.items() if k not in ("losses", "before", "settings")}
    return {**kept, "first_loss": losses[0], "last_loss": losses[-1]}
