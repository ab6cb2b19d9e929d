"""Models of the Hugging Face hub: a repository's folder, or one GGUF file of it, kept in the hub client's own cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from likely.errors import ModelError, first_line, needs

HUB_SECONDS = 10
SAFE_FILES = ["*.json", "*.jinja", "*.safetensors", "tokenizer*"]


def check_hub(name: str) -> None:
    """ModelError at once for what is neither kept here nor found, where the hub's client would try for minutes."""
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
    except ImportError:
        return  # whoever fetches says what is missing
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception as error:  # of the network, of the hub, or of the name
        raise _not_found(name, error) from None


def hub_config(name: str) -> Path | None:
    """The folder in which the hub client keeps a model's config.json; None where it cannot say."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        return None
    check_hub(name)
    try:
        return Path(hf_hub_download(name, "config.json")).parent
    except Exception:  # a model without one, or a network that has just gone: whoever opens it says what is wrong
        return None


def hub_folder(name: str, *, local: bool) -> Path:
    """Where the hub client keeps a model's files. local: they are there, since transformers has just loaded them."""
    with needs("huggingface_hub", "torch"):
        from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name, allow_patterns=SAFE_FILES, local_files_only=local))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: cannot be fetched from the hub ({first_line(error)})") from None


def hub_gguf(name: str, wanted: str) -> Path:
    """The GGUF file of a hub repository whose name ends in `wanted`, such as Q4_K_M, in upper or lower case.

    A file that is kept here is taken without asking the hub.  ModelError for none, several or a file in parts.
    """
    with needs("huggingface_hub", "torch"):
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        found = _of_type([path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")], wanted)
        if len(found) == 1:
            return folder / found[0]
    except (OSError, ValueError):  # nothing of it is kept here
        pass
    try:
        files = [file.rfilename for file in HfApi().model_info(name, timeout=HUB_SECONDS).siblings or ()]
    except Exception as error:  # of the network, of the hub, or of the name
        raise _not_found(name, error) from None
    found = _of_type(files, wanted)
    if len(found) != 1:
        there = sorted(file for file in files if file.endswith(".gguf")) or ["none"]
        raise ModelError(f'{name} has {len(found) or "no"} GGUF file{"s" * (len(found) != 1)} "{wanted}" '
                         f"(its GGUF files: {', '.join(there)})")  # fmt: skip
    try:
        return Path(hf_hub_download(name, found[0]))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {found[0]} cannot be fetched from the hub ({first_line(error)})") from None


def _of_type(files: Sequence[str], wanted: str) -> list[str]:
    """model-Q4_K_M.gguf, model.q4_k_m.gguf: not model-Q4_K_M-00001-of-00002.gguf; for F16 not model-BF16.gguf."""
    ending = re.compile(rf"(^|[-._]){re.escape(wanted)}$", re.IGNORECASE)
    return [
        file for file in files
        if file.endswith(".gguf") and ending.search(PurePosixPath(file).stem)
    ]  # fmt: skip


def _not_found(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name}: no such file or folder, and no model of that name can be fetched from the hub ({first_line(error)})"
    )
