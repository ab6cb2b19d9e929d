"""An adapter of peft added to the weights of a model that runs in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from likely.errors import ModelError, first_line, needs
from likely.formats.folder import read_json
from likely.io.hashes import file_sha256, fingerprint
from likely.runtimes.torch.runtime import TorchRuntime

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "likely_adapter.json"


def adapter_base(folder: Path) -> str:
    """The name of the model that an adapter's folder names; ModelError where it names none, or has no safetensors."""
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: {WEIGHTS} is missing; adapters in other formats are not opened")
    config = read_json(folder / CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder}: {CONFIG} does not name the model that the adapter belongs to")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: adapters of peft_type LORA are opened, this is {config.get('peft_type')!r}")
    if (Path(base) / CONFIG).is_file():
        raise ModelError(f"{folder}: the model that it names, {base}, is an adapter, too: merge that one first")
    return base


def add_adapter(runtime: TorchRuntime, folder: Path) -> str:
    """Add the adapter to the weights for good; gives its digest.

    ModelError where the folder says that it was trained on other weights, or where shapes do not fit.
    """
    about = read_json(folder / ABOUT)
    made_on = about.get("base_revision")
    if made_on is not None and made_on != runtime.revision:
        raise ModelError(
            f"{folder}: the adapter was trained on other weights (revision {made_on}, this model's is "
            f"{runtime.revision}): load the same model in the same dtype"
        )
    with needs("peft", "train"):
        from peft import PeftModel
    base: Any = runtime.module
    try:
        merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: the adapter cannot be added to this model ({first_line(error)})") from None
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    digest = fingerprint(file_sha256(folder / WEIGHTS))
    runtime.refresh(f"{runtime.revision}+lora-{digest}")
    return digest
