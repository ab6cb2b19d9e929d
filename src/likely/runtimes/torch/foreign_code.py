"""What a transformers model may bring along that is code: refused before anything of it is opened.

transformers itself runs no modelling code without trust_remote_code.  Two ways remain: an index of weights that names
pickle files, which it opens with torch's restricted unpickler, and a configuration that names an attention kernel of a
hub, which it would fetch and run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from likely.errors import ModelError
from likely.tokenizers.huggingface import read_json

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
INDEX = "model.safetensors.index.json"


def check_no_foreign_code(folder_or_id: str | Path) -> None:
    """Raise ModelError if loading this folder or hub id would open pickles or run code that it names."""
    folder = Path(folder_or_id)
    if folder.is_dir():
        config, index = read_json(folder / "config.json"), read_json(folder / INDEX)
        _check_weights(folder)
    else:
        config, index = (_read_from_hub(str(folder_or_id), file) for file in ("config.json", INDEX))
    for name in _hub_code(config):
        raise ModelError(
            f'{folder_or_id}: config.json asks for the code "{name}" of a hub, which is never run: remove the setting'
        )
    shards = index.get("weight_map", {})
    for shard in shards.values() if isinstance(shards, dict) else [shards]:
        if not (isinstance(shard, str) and Path(shard).name == shard and shard.endswith(".safetensors")):
            raise ModelError(f"{folder_or_id}: {INDEX} names {shard!r}, which is no .safetensors file of the model")


def _check_weights(folder: Path) -> None:
    found = {file.name for pattern in PICKLES for file in folder.glob(pattern)}
    if any(folder.glob("*.safetensors")):
        found &= set() if (folder / "adapter_model.safetensors").exists() else {"adapter_model.bin"}
    if found:
        raise ModelError(
            f"{folder}: the weights are in {min(found)}, a pickle, which can run code when it is opened; "
            f"get the model as .safetensors"
        )


def _read_from_hub(name: str, file: str) -> dict[str, Any]:
    from transformers.utils import cached_file

    quiet = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")
    try:
        place = cached_file(name, file, **dict.fromkeys(quiet, False))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: cannot be loaded by transformers ({str(error).splitlines()[0]})") from None
    return read_json(Path(place)) if place else {}  # without a config transformers itself will refuse


def _hub_code(config: dict[str, Any]) -> Iterator[str]:
    """Hub names among the settings that choose an implementation, at any depth."""
    todo: list[Any] = [config]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            for key, value in item.items():
                if "implementation" not in key:
                    todo.append(value)
                    continue
                chosen = value.values() if isinstance(value, dict) else [value]
                yield from (name for name in chosen if isinstance(name, str) and "/" in name)
