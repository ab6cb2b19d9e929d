"""Convert a model between GGUF files and safetensors folders, streamed, and check it by scoring before it is kept.

The target appears under its name only when it is whole, on disk and checked; until then it has a temporary name beside.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from likely.errors import ModelError, nearest
from likely.formats import families
from likely.formats.folder import read_folder, read_json, shard_names, write_json
from likely.formats.gguf import GgufHeader, read_header
from likely.formats.safetensors_file import FLOATS
from likely.formats.weights import Step, Stored, Weight, weights_of_gguf
from likely.formats.writing import GgufWriter, Typed, encode_pair, u32, write_safetensors_header
from likely.models.verify_conversion import LikelihoodCheck, Scorer, compare_models
from likely.tokenizers.files import metadata_from_folder, save_tokenizer
from likely.tokenizers.gguf import tokenizer_from_gguf, tokenizer_from_header
from likely.tokenizers.huggingface import HFTokenizer
from likely.tokenizers.parity import compare_tokenizers, mismatch_message

TargetFormat = Literal["f32", "f16", "bf16", "q8_0", "safetensors"]
Progress = Callable[[int, int], None]  # bytes written, bytes in all

FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
FORMATS = (*FILE_TYPE, "safetensors")
# small or sensitive matrices that llama.cpp, too, keeps in fp32
_KEPT_F32 = ("_norm.", "ffn_gate_inp.", "ssm_conv1d.", "shortconv.conv.", "position_embd.", "token_types.")
_NO_FLOATS = ("I8", "I16", "I32", "I64", "F64")

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
    _check_places(source, target, to, overwrite)
    if source.is_dir() and to == "safetensors":
        raise ModelError(f"{source} is a safetensors folder already; convert it to {', '.join(FILE_TYPE)}")
    plan = _plan(source, to)
    _check_room(target, sum(step.nbytes for step in plan.steps))
    with _temporary(target) as partial:
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
        source_bytes=sum(f.stat().st_size for f in ([source] if source.is_file() else source.glob("*.safetensors"))),
        target_bytes=size,
        check=check,
        seconds=time.monotonic() - started,
    )


# --- plans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConversionPlan:
    """The tensors of the target, and how it is written around them."""

    steps: list[Step]
    write: Callable[[Path, Callable[[int], None]], None]
    quantised: bool  # whether any weight of the source is
    context_length: int


def _plan(source: Path, to: str) -> ConversionPlan:
    if source.is_dir():
        return _folder_to_gguf(source, to)
    header = read_header(source)
    if int(header.metadata.get("split.count", 0) or 0) > 1:
        raise ModelError(f"{source}: one part of a split model; join the parts with llama-gguf-split --merge first")
    try:
        return _gguf_to_folder(source, header) if to == "safetensors" else _gguf_to_gguf(source, header, to)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None


def _gguf_to_gguf(source: Path, header: GgufHeader, to: str) -> ConversionPlan:
    stored = Stored.in_gguf(source, header)
    steps = [Step(name, _target_type(name, t.shape, t.type, to), Weight(t)) for name, t in stored.items()]
    dropped = ("general.file_type", "split.", "quantize.imatrix.")
    with source.open("rb") as file:
        pairs = [
            os.pread(file.fileno(), end - start, start)
            for key, (start, end) in header.spans.items()
            if not key.startswith(dropped)
        ]
    pairs.append(encode_pair("general.file_type", u32(FILE_TYPE[to])))
    return ConversionPlan(
        steps,
        lambda path, count: _write_gguf(path, pairs, steps, count, header.alignment),
        _is_quantised(stored.values()),
        header.hparam("context_length", 512),
    )


def _target_type(name: str, shape: tuple[int, ...], type_name: str, to: str) -> str:
    """The type of a tensor in a GGUF file that is converted to `to`."""
    if type_name in _NO_FLOATS:
        return type_name
    if len(shape) < 2 or not name.endswith("weight") or any(part in name for part in _KEPT_F32):
        return "F32"
    if to == "q8_0" and shape[-1] % 32:
        return "F16"
    return to.upper()


def _gguf_to_folder(source: Path, header: GgufHeader) -> ConversionPlan:
    weights, factors = weights_of_gguf(source, header)
    config = families.config_from_header(header, factors)
    stored = [weight.stored for weight in weights.values()]
    kept = [tensor.type if tensor.type in FLOATS and len(tensor.shape) > 1 else "F32" for tensor in stored]
    steps = [Step(name, type_name, weight) for (name, weight), type_name in zip(weights.items(), kept, strict=True)]
    matrices = {step.type for step in steps if len(step.shape) > 1}
    config["dtype"] = {"F16": "float16", "BF16": "bfloat16"}.get("".join(matrices), "float32")
    tokenizer = tokenizer_from_header(header)

    def write(folder: Path, count: Callable[[int], None]) -> None:
        folder.mkdir()
        _write_shards(folder, steps, count)
        write_json(folder / "config.json", config)
        save_tokenizer(tokenizer, folder, context_length=config["max_position_embeddings"])

    return ConversionPlan(steps, write, _is_quantised(stored), config["max_position_embeddings"])


def _folder_to_gguf(source: Path, to: str) -> ConversionPlan:
    config = read_json(source / "config.json")
    if not config:
        raise ModelError(f"{source}: config.json is missing or empty")
    try:
        family = families.family_of_config(config)
        metadata, factors = families.metadata_from_config(config)
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        steps = []
        for name, entry in read_folder(source).items():
            if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and _is_tied(config)):
                continue
            if entry.dtype not in FLOATS:
                raise ModelError(f'tensor "{name}" has type {entry.dtype} (known: {", ".join(FLOATS)})')
            ours = families.gguf_name(family, name)
            change = families.change_to_gguf(family, ours, heads, kv_heads)
            kind = _target_type(ours, entry.shape, entry.dtype, to)
            steps.append(Step(ours, kind, Weight(Stored.in_safetensors(entry), change)))
    except ModelError as error:
        raise ModelError(str(error) if str(error).startswith(str(source)) else f"{source}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{source}: config.json lacks a setting or has one of another kind ({error})") from None
    if factors is not None:
        steps.append(Step(families.ROPE_FACTORS, "F32", factors))
    steps.sort(key=lambda step: _reading_order(step.name))
    embedding = next((step for step in steps if step.name == "token_embd.weight"), None)
    if embedding is None:
        raise ModelError(f'{source}: the tensor "model.embed_tokens.weight" is missing')
    architecture = family.gguf
    named: dict[str, Any] = metadata | {
        "general.name": source.resolve().name,
        "general.file_type": u32(FILE_TYPE[to]),
        "general.quantization_version": u32(2),
        f"{architecture}.vocab_size": u32(embedding.shape[0]),
    }
    named |= metadata_from_folder(source, vocab_size=embedding.shape[0])
    pairs = [encode_pair(key, value) for key, value in named.items()]
    length = named[f"{architecture}.context_length"]
    assert isinstance(length, Typed)
    return ConversionPlan(steps, lambda path, count: _write_gguf(path, pairs, steps, count), False, int(length.value))


def _is_tied(config: dict[str, Any]) -> bool:
    default = config.get("model_type") == "gemma3_text"  # the default of its configuration class
    return bool(config.get("tie_word_embeddings", default))


def _reading_order(name: str) -> tuple[int, int, str]:
    """Embedding first, then block by block, then the rest: the order in which they are used."""
    if name.startswith("blk."):
        return 1, int(name.split(".")[1]), name
    return (0 if name in ("token_embd.weight", families.ROPE_FACTORS) else 2), 0, name


def _is_quantised(tensors: Iterable[Stored]) -> bool:
    return any(tensor.type not in (*FLOATS, *_NO_FLOATS) for tensor in tensors)


# --- writing ---------------------------------------------------------------------------------------------------------


def _write_gguf(
    path: Path, pairs: list[bytes], steps: list[Step], count: Callable[[int], None], alignment: int = 32
) -> None:
    with path.open("xb") as file:
        tensors = [(step.name, step.shape, step.type) for step in steps]
        writer = GgufWriter(file, pairs, tensors, alignment=alignment)
        for step in steps:
            writer.begin_tensor()
            for piece in step.pieces():
                writer.write(piece)
                count(len(piece))
        writer.close()


def _write_shards(folder: Path, steps: list[Step], count: Callable[[int], None]) -> None:
    """model.safetensors, or shards of at most 4 GB with an index."""
    names = shard_names([step.nbytes for step in steps])
    for name in dict.fromkeys(names):
        inside = [step for step, shard in zip(steps, names, strict=True) if shard == name]
        with (folder / name).open("xb") as file:
            write_safetensors_header(file, [(step.name, step.shape, step.type) for step in inside])
            for step in inside:
                for piece in step.pieces():
                    file.write(piece)
                    count(len(piece))
    if len(set(names)) > 1:
        weight_map = {step.name: name for step, name in zip(steps, names, strict=True)}
        total = {"total_size": sum(step.nbytes for step in steps)}
        write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": weight_map})


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


def _check_places(source: Path, target: Path, to: str, overwrite: bool) -> None:
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
    if target.exists() and not overwrite:
        raise ModelError(f"{target} exists already; use --overwrite (overwrite=True) to replace it")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise ModelError(f"{target} is no model folder (it holds no config.json), so it is not replaced")


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ModelError(f"{target.parent}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside the target that nobody uses. Whatever is still there afterwards is removed."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


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
