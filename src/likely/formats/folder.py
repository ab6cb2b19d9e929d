"""A transformers folder: its JSON files, its safetensors files, and how weights are spread over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from likely.errors import ModelError
from likely.formats.safetensors_file import Entry, read_entries

MAX_JSON_BYTES = 256 << 20
SHARD_BYTES = 4 << 30


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no file."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are allowed")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: an object was expected, found {type(found).__name__}")
    return found


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_folder(folder: Path) -> dict[str, Entry]:
    """The tensors of a model folder: those of its index if it has one, else of all its .safetensors files."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ModelError(f"{index}: no weight_map") from None
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ModelError(f"{index}: a shard lies outside the folder")
        files = [folder / name for name in sorted(names)]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no .safetensors files")
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_entries(file).items():
            if name in entries:
                raise ModelError(f'{folder}: the tensor "{name}" is in {entries[name].file.name} and {file.name}')
            entries[name] = entry
    return entries


def weight_bytes(source: str | Path) -> int:
    """Of a model's file, or of all weights in its folder."""
    path = Path(source)
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.glob("*.safetensors")))


def shard_names(sizes: Sequence[int], *, limit: int = SHARD_BYTES) -> list[str]:
    """The file of each tensor: model.safetensors, or model-00001-of-0000N.safetensors of at most `limit` bytes each."""
    shard, filled, numbers = 0, 0, []
    for size in sizes:
        if filled and filled + size > limit:
            shard, filled = shard + 1, 0
        numbers.append(shard)
        filled += size
    if shard == 0:
        return ["model.safetensors"] * len(numbers)
    return [f"model-{n + 1:05d}-of-{shard + 1:05d}.safetensors" for n in numbers]
