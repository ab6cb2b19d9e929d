"""A transformers folder or hub id as a module.  What may bring along code is refused before anything is opened.

transformers itself runs no modelling code without trust_remote_code.  Two ways remain: an index of weights that names
pickle files, which it opens with torch's restricted unpickler, and a configuration that names an attention kernel of a
hub, which it would fetch and run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from likely.errors import ModelError
from likely.formats.folder import read_folder, read_json
from likely.formats.safetensors_file import Entry, read_entries
from likely.runtimes.machine import check_weights_fit

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
INDEX = "model.safetensors.index.json"


def load_pretrained(folder_or_id: str | Path, *, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The model of a folder with safetensors weights, or of a hub id.  Code from a model is never run."""
    from huggingface_hub.errors import StrictDataclassError  # of a setting that is out of bounds
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    import likely.sequence.backbone  # noqa: F401  transformers then knows its models

    check_no_foreign_code(folder_or_id)
    entries: dict[str, Entry] = {}
    whole = Path(folder_or_id) / "model.safetensors"  # transformers reads it alone, before an index
    if device.type == "cpu" and (whole.is_file() or (Path(folder_or_id) / INDEX).is_file()):
        entries = read_entries(whole) if whole.is_file() else read_folder(Path(folder_or_id))
        check_weights_fit(
            folder_or_id, sum(math.prod(entry.shape) for entry in entries.values()) * dtype.itemsize,
            "a dtype of fewer bits, or runtime='native' on a GGUF file",
        )  # fmt: skip
        layers = read_json(Path(folder_or_id) / "config.json").get("num_hidden_layers")
        if isinstance(layers, int) and layers > len(entries):  # transformers would make them all
            raise ModelError(f"{folder_or_id}: config.json names {layers} layers, and there are {len(entries)} tensors")
    try:
        with quiet():
            _check_shapes(folder_or_id, entries)
            module, found = AutoModelForCausalLM.from_pretrained(
                str(folder_or_id), dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except (
        OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, ImportError, SafetensorError,
        StrictDataclassError,
    ) as error:  # fmt: skip
        raise ModelError(f"{folder_or_id}: cannot be loaded by transformers ({one_line(error)})") from error
    if bad := [*found["missing_keys"], *found["mismatched_keys"]]:
        raise ModelError(f"{folder_or_id}: {len(bad)} weights are missing or misshapen, for instance {bad[0]}")
    return module.to(device)


def _check_shapes(folder: str | Path, entries: Mapping[str, Entry]) -> None:
    """ModelError for a tensor that config.json gives another shape: transformers would first make it, of any size."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # quantised weights have shapes of their own
    if not entries or read_json(Path(folder) / "config.json").get("quantization_config"):
        return
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
    for name, tensor in module.state_dict().items():
        if name in entries and tuple(tensor.shape) != tuple(entries[name].shape):
            raise ModelError(
                f"{folder}: {name} has shape {tuple(entries[name].shape)}, and {tuple(tensor.shape)} by config.json"
            )


def check_no_foreign_code(folder_or_id: str | Path) -> None:
    """Raise ModelError if loading this folder or hub id would open pickles or run code that it names."""
    folder = Path(folder_or_id)
    if folder.is_dir():
        config, index = read_json(folder / "config.json"), read_json(folder / INDEX)
        _check_weights(folder)
    else:
        config, index = (read_from_hub(str(folder_or_id), file) for file in ("config.json", INDEX))
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


def read_from_hub(name: str, file: str) -> dict[str, Any]:
    """The object in a JSON file of a hub model; {} if it has none."""
    from transformers.utils import cached_file

    quiet = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")
    try:
        place = cached_file(name, file, **dict.fromkeys(quiet, False))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: cannot be loaded by transformers ({one_line(error)})") from None
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' progress bars and the hub client's notes about retries stay off the terminal."""
    import huggingface_hub.utils.logging as hub
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), hub.get_verbosity()
    logging.disable_progress_bar()
    hub.set_verbosity_error()
    try:
        yield
    finally:
        hub.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
