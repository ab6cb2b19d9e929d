"""What a converted or rewritten model holds: its tensors, in order, and how the file around them is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likely.errors import ModelError
from likely.formats import families
from likely.formats.folder import read_folder, read_json, shard_names, write_json
from likely.formats.gguf import GgufHeader, read_header
from likely.formats.safetensors_file import FLOATS
from likely.formats.weights import Step, Stored, Weight, weights_of_gguf
from likely.formats.writing import GgufWriter, Typed, encode_pair, u32, write_safetensors_header
from likely.tokenizers.files import metadata_from_folder, save_tokenizer
from likely.tokenizers.gguf import tokenizer_from_header

FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
# small or sensitive matrices that llama.cpp, too, keeps in fp32
_KEPT_F32 = ("_norm.", "ffn_gate_inp.", "ssm_conv1d.", "shortconv.conv.", "position_embd.", "token_types.")
_NO_FLOATS = ("I8", "I16", "I32", "I64", "F64")


@dataclass(frozen=True)
class Changes:
    """What a rewritten model has instead of its source's, by the names of the target's format.

    tensors   replaced, or added where the source has none of that name
    metadata  of a GGUF target;  config  of a folder's config.json;  files  further texts in a folder, by name
    dropped   tensors of the source, by the target's names, that the target does not have
    """

    tensors: Mapping[str, Step]
    metadata: families.Metadata
    config: Mapping[str, Any]
    files: Mapping[str, str]
    dropped: Collection[str] = ()


NO_CHANGES = Changes({}, {}, {}, {})


@dataclass(frozen=True)
class ConversionPlan:
    """The tensors of the target, and how it is written around them."""

    steps: list[Step]
    write: Callable[[Path, Callable[[int], None]], None]
    quantised: bool  # whether any weight of the source is
    context_length: int


def conversion_plan(source: Path, to: str) -> ConversionPlan:
    """Every tensor of the source as `to` has it: see `convert`."""
    if source.is_dir():
        return _folder_to_gguf(source, to)
    header = read_header(source)
    if int(header.metadata.get("split.count", 0) or 0) > 1:
        raise ModelError(f"{source}: one part of a split model; join the parts with llama-gguf-split --merge first")
    try:
        return _gguf_to_folder(source, header) if to == "safetensors" else _gguf_to_gguf(source, header, to)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None


def rewriting_plan(source: Path, to: str, changes: Changes) -> ConversionPlan:
    """The source with other tensors, as a "gguf" file or a "safetensors" folder."""
    if source.is_dir():
        return _folder_to_folder(source, changes) if to == "safetensors" else _folder_to_gguf(source, "f16", changes)
    header = read_header(source)
    if to == "safetensors":
        return _gguf_to_folder(source, header, changes)
    stored = Stored.in_gguf(source, header)
    steps = _changed([Step(name, t.type, Weight(t)) for name, t in stored.items()], changes)
    return _written_like(source, header, steps, changes.metadata)


def _gguf_to_gguf(source: Path, header: GgufHeader, to: str) -> ConversionPlan:
    stored = Stored.in_gguf(source, header)
    steps = [Step(name, _target_type(name, t.shape, t.type, to), Weight(t)) for name, t in stored.items()]
    return _written_like(source, header, steps, {"general.file_type": u32(FILE_TYPE[to])})


def _changed(steps: list[Step], changes: Changes) -> list[Step]:
    there = {step.name for step in steps}
    replaced = [changes.tensors.get(step.name, step) for step in steps if step.name not in changes.dropped]
    return [*replaced, *(step for name, step in changes.tensors.items() if name not in there)]


def _written_like(source: Path, header: GgufHeader, steps: list[Step], metadata: families.Metadata) -> ConversionPlan:
    """A GGUF file with the key-value pairs of the source, but for these."""
    stored = Stored.in_gguf(source, header)
    dropped = ("general.file_type", "split.", "quantize.imatrix.")
    with source.open("rb") as file:
        pairs = [
            os.pread(file.fileno(), end - start, start)
            for key, (start, end) in header.spans.items()
            if not key.startswith(dropped) and key not in metadata
        ]
    pairs += [encode_pair(key, value) for key, value in metadata.items()]
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


def _gguf_to_folder(source: Path, header: GgufHeader, changes: Changes = NO_CHANGES) -> ConversionPlan:
    weights, factors = weights_of_gguf(source, header)
    config = families.config_from_header(header, factors)
    stored = [weight.stored for weight in weights.values()]
    kept = [tensor.type if tensor.type in FLOATS and len(tensor.shape) > 1 else "F32" for tensor in stored]
    steps = [Step(name, type_name, weight) for (name, weight), type_name in zip(weights.items(), kept, strict=True)]
    steps, config = _changed(steps, changes), config | dict(changes.config)
    matrices = {step.type for step in steps if len(step.shape) > 1}
    config["dtype"] = {"F16": "float16", "BF16": "bfloat16"}.get("".join(matrices), "float32")
    tokenizer = tokenizer_from_header(header)

    def write(folder: Path, count: Callable[[int], None]) -> None:
        _write_shards(folder, steps, count)
        write_json(folder / "config.json", config)
        save_tokenizer(tokenizer, folder, context_length=config["max_position_embeddings"])

    return ConversionPlan(steps, write, _is_quantised(stored), config["max_position_embeddings"])


def _folder_to_folder(source: Path, changes: Changes) -> ConversionPlan:
    config = read_json(source / "config.json") | dict(changes.config)
    steps = [
        Step(name, entry.dtype, Weight(Stored.in_safetensors(entry))) for name, entry in read_folder(source).items()
    ]
    steps = _changed(steps, changes)
    beside = [p for p in source.iterdir() if p.is_file() and p.suffix in (".json", ".jinja", ".model", ".txt")]

    def write(folder: Path, count: Callable[[int], None]) -> None:
        _write_shards(folder, steps, count)
        for file in beside:
            if not file.name.endswith(".safetensors.index.json"):
                shutil.copyfile(file, folder / file.name)
        write_json(folder / "config.json", config)

    return ConversionPlan(steps, write, False, config.get("max_position_embeddings", 512))


def _folder_to_gguf(source: Path, to: str, changes: Changes = NO_CHANGES) -> ConversionPlan:
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
    steps = _changed(steps, changes)
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
    named |= metadata_from_folder(source, vocab_size=embedding.shape[0]) | changes.metadata
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
    with path.open("wb") as file:
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
