"""Convert a model between GGUF files and safetensors folders, streamed, and check it by scoring before it is kept.

The target appears under its name only when it is whole, on disk and checked; until then it has a temporary name beside.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from likely.errors import ModelError, nearest
from likely.formats.folder import weight_bytes
from likely.io.whole_file import partial_beside
from likely.models.plans import FILE_TYPE, Changes, ConversionPlan, conversion_plan, rewriting_plan
from likely.models.verify_conversion import LikelihoodCheck, Scorer, compare_models
from likely.tokenizers.gguf import tokenizer_from_gguf
from likely.tokenizers.huggingface import HFTokenizer
from likely.tokenizers.parity import compare_tokenizers, mismatch_message

TargetFormat = Literal["f32", "f16", "bf16", "q8_0", "safetensors"]
Progress = Callable[[int, int], None]  # bytes written, bytes in all

FORMATS = (*FILE_TYPE, "safetensors")
# Bounds on the mean |difference| of log-probabilities, nats per token, between source and target. llama.cpp rounds
# activations to 8 bit where weights are quantised and not where they are floats. Measured on SmolLM2-135M (Q4_1) and
# Gemma 3 270M (Q4_K_M): any target of the quantised file 0.06 to 0.10, F32 to Q8_0 0.085, F32 to BF16 0.014, folder to
# F32 at most 0.0006. Heads in a wrong order or norms off by one give more than 1.
BOUND_BETWEEN_FLOATS = {"f32": 0.02, "f16": 0.02, "bf16": 0.05, "q8_0": 0.2, "safetensors": 0.02}
BOUND_FROM_QUANTISED = 0.25


@dataclass(frozen=True)
class ConversionReport:
    """What was written, and how far its likelihoods are from the source's. check: None with verify=False."""

    source: str
    target: str
    to: str
    tensors: int
    types: dict[str, int]  # how many tensors have which type
    source_bytes: int
    target_bytes: int
    check: LikelihoodCheck | None
    seconds: float

    def __str__(self) -> str:
        size = f"{self.source_bytes / 1e6:,.0f} MB -> {self.target_bytes / 1e6:,.0f} MB"
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        if self.check is None:
            checked = "not checked"
        else:
            c = self.check
            checked = (
                f"|difference| {c.mean_abs_difference:.2g} nats per token on average (allowed {c.bound:g}), "
                f"{c.max_abs_difference:.2g} at most, {c.tokens} tokens"
            )
        return f"{self.target}: {size}, {types}; {checked}"


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: TargetFormat | str,
    progress: Progress | None = None,
    verify: bool = True,
    overwrite: bool = False,
    scorer: Scorer | None = None,
) -> ConversionReport:
    """Write `source` (a GGUF file or a safetensors folder) as `target`.

    to         f32, f16, bf16, q8_0: a GGUF file whose matrices have that type, all else F32.  safetensors: a folder
               that transformers loads; F16 and BF16 weights keep their type, all others become F32
    verify     score fixed strings on both (llama.cpp for GGUF files, torch for folders); refuse a target that differs
    scorer     scores sequences of ids on a path; default: what is installed
    Memory: 32 MiB beside the largest matrix whose rows change places (Llama's queries and keys).
    """
    source, target, started = Path(source), Path(target), time.monotonic()
    if to not in FORMATS:
        raise ModelError(f'cannot convert to "{to}"{nearest(to, FORMATS)} (allowed: {", ".join(FORMATS)})')
    check_places(source, target, to, overwrite)
    if source.is_dir() and to == "safetensors":
        raise ModelError(f"{source} is a safetensors folder already; convert it to {', '.join(FILE_TYPE)}")
    plan = conversion_plan(source, to)
    check_room(target, sum(step.nbytes for step in plan.steps))
    with _temporary(target, to) as partial:
        plan.write(partial, _counted(progress, sum(step.nbytes for step in plan.steps)))
        check = _verify(source, partial, plan, to, scorer) if verify else None
        size = _sync(partial)
        _rename(partial, target)
    return ConversionReport(
        source=str(source),
        target=str(target),
        to=to,
        tensors=len(plan.steps),
        types=dict(Counter(step.type for step in plan.steps)),
        source_bytes=weight_bytes(source),
        target_bytes=size,
        check=check,
        seconds=time.monotonic() - started,
    )


def rewrite(
    source: str | Path,
    target: str | Path,
    changes: Changes,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> int:
    """Write `source` (a GGUF file or a safetensors folder) as `target` with other tensors; returns the target's bytes.

    A target that ends in .gguf is a GGUF file, any other a folder.  All that is not changed keeps its numbers, and in
    the same format its type.  The target appears under its name only when it is whole.
    """
    source, target = Path(source), Path(target)
    to = "gguf" if target.suffix == ".gguf" else "safetensors"
    check_places(source, target, to, overwrite)
    plan = rewriting_plan(source, to, changes)
    total = sum(step.nbytes for step in plan.steps)
    check_room(target, total)
    with _temporary(target, to) as partial:
        plan.write(partial, _counted(progress, total))
        if partial.is_dir():
            for name, text in changes.files.items():
                (partial / name).write_text(text, "utf-8")
        size = _sync(partial)
        _rename(partial, target)
    return size


def _counted(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(written: int) -> None:
        nonlocal done
        done += written
        if progress is not None:
            progress(done, total)

    return count


# --- checking --------------------------------------------------------------------------------------------------------


def _verify(source: Path, partial: Path, plan: ConversionPlan, to: str, scorer: Scorer | None) -> LikelihoodCheck:
    before = HFTokenizer.from_folder(source) if source.is_dir() else tokenizer_from_gguf(source)
    after = HFTokenizer.from_folder(partial) if partial.is_dir() else tokenizer_from_gguf(partial)
    if mismatches := compare_tokenizers(before, after):
        raise ModelError(mismatch_message(mismatches, a=str(source), b="the converted model"))
    bound = max(BOUND_BETWEEN_FLOATS[to], BOUND_FROM_QUANTISED if plan.quantised else 0.0)
    length = min(plan.context_length, 512)
    return compare_models(source, partial, before, bound=bound, scorer=scorer, context_length=length)


# --- places ----------------------------------------------------------------------------------------------------------


def check_places(source: Path, target: Path, to: str, overwrite: bool) -> None:
    """ModelError where a model at `source` cannot be written as `target`."""
    if not source.exists():
        raise ModelError(f"{source} does not exist")
    if to != "safetensors" and target.is_dir():
        raise ModelError(f"{target} is a folder; give the name of the GGUF file to write")
    if to == "safetensors" and target.is_file():
        raise ModelError(f"{target} is a file; give the name of the folder to write")
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ModelError(f"{target} and {source} lie inside each other; choose another target")
    if not target.parent.is_dir():
        raise ModelError(f"{target.parent} is not a folder; create it first")
    if not os.access(target.parent, os.W_OK):
        raise ModelError(f"cannot write {target}: the folder {target.parent} is read-only")
    if target.exists() and not overwrite:
        raise ModelError(f"{target} exists already; use --overwrite (overwrite=True) to replace it")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise ModelError(f"{target} is no model folder (it holds no config.json), so it is not replaced")


def check_room(target: Path, needed: int) -> None:
    """ModelError where the disk of a file or folder to be written has fewer bytes free."""
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ModelError(f"cannot write {target}: {needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")


@contextmanager
def _temporary(target: Path, to: str) -> Iterator[Path]:
    """Where it is made; ModelError, in one line, where it cannot be written."""
    try:
        with partial_beside(target, folder=to == "safetensors") as partial:
            yield partial
    except OSError as error:
        raise ModelError(f"cannot write {target}: {error.strerror or error}") from None


def _sync(path: Path) -> int:
    """Force a file, or every file of a folder, to disk; returns the size in bytes."""
    size = 0
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        size += file.stat().st_size
    return size


def _rename(partial: Path, target: Path) -> None:
    """Give the target its name; an old folder steps aside first and is removed last."""
    aside = None
    if target.is_dir():
        aside = partial.with_suffix(".replaced")
        target.rename(aside)
    try:
        partial.replace(target)
    except BaseException:
        if aside is not None:
            aside.rename(target)
        raise
    if aside is not None:
        shutil.rmtree(aside)
    if os.name == "posix":
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
