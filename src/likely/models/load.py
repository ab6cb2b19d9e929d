"""From a name, file, folder, hub id to a running model: which engine, which tokenizer, and what it is."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likely.errors import CapabilityError, ModelError, nearest
from likely.models.catalog import KNOWN, find_model, known_model
from likely.models.runtime import Runtime
from likely.models.tokenizer import Tokenizer

RUNTIMES = ("llamacpp", "torch")
ALIGN = ("mask", "repad", "group")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded, so that a number can be traced to it."""

    name: str
    source: str  # file, folder or hub id
    runtime: str
    dtype: str
    sha256: str  # of the weights
    tokenizer: str  # fingerprint
    template: bool
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    runtime: Runtime
    tokenizer: Tokenizer
    info: ModelInfo


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def available_runtimes() -> dict[str, bool]:
    """Which engines this environment can run."""
    return {"llamacpp": installed("llama_cpp"), "torch": installed("torch") and installed("transformers")}


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def resolve(source: str) -> tuple[str, Path | str]:
    """("gguf", file) | ("folder", folder) | ("hub", id).  ModelError with the nearest name otherwise."""
    if known_model(source):
        return "gguf", find_model(source)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            found = sorted(p.name for p in path.glob("*.gguf"))
            hint = f"; did you mean {path / found[0]}?" if found else ""
            raise ModelError(f"{path} holds no config.json, so it is not a transformers model{hint}")
        return "folder", path
    if path.exists():
        return "gguf", path  # the header check says what else it is
    if path.suffix == ".gguf" or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(f"{source} does not exist")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return "hub", source
    names = [entry.name for entry in KNOWN]
    raise ModelError(
        f'no model is called "{source}"{nearest(source, names)} (known: {", ".join(names)}; or give a GGUF file, a '
        f"folder, a hub id like org/name, or the URL of a server)"
    )


def load_local(source: str, *, runtime: str | None = None, dtype: str | None = None, **options: Any) -> Loaded:
    """Open a model on this machine.

    runtime  "llamacpp", "torch", or None: llama.cpp for GGUF files where it is installed, torch otherwise
    dtype    of the torch runtime ("float32" is the oracle); llama.cpp computes in the types of its file
    options  passed to the runtime (context=, threads=, sequences=, ...); align= of the torch runtime says how rows of
             a batch are kept in step: "mask" (default: nothing moves), "repad" or "group" (see torch_aligned)
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise ModelError(f'unknown runtime "{runtime}"{nearest(runtime, RUNTIMES)} (allowed: {", ".join(RUNTIMES)})')
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f'unknown dtype "{dtype}"{nearest(dtype, DTYPES)} (allowed: {", ".join(DTYPES)})')
    kind, place = resolve(source)
    have = available_runtimes()
    if runtime is None:
        runtime = "llamacpp" if kind == "gguf" and have["llamacpp"] and dtype is None else "torch"
        if kind == "gguf" and not any(have.values()):
            raise ModelError("no engine is installed. Run: pip install 'likely[local]' (llama.cpp) or 'likely[torch]'")
    if not have[runtime]:
        extra = {"llamacpp": "local", "torch": "torch"}[runtime]
        raise CapabilityError(f"runtime {runtime} is not installed. Run: pip install 'likely[{extra}]'")
    if (align := options.get("align", "mask")) not in ALIGN:
        raise ModelError(f'unknown align "{align}"{nearest(align, ALIGN)} (allowed: {", ".join(ALIGN)})')
    if runtime == "llamacpp":
        if options.pop("align", "mask") != "mask":
            raise CapabilityError(f'align="{align}" is for the torch runtime; llama.cpp needs none: leave it out')
        if kind != "gguf":
            raise CapabilityError(
                f"llamacpp reads GGUF files; {place} is not one. Run: likely convert {place} out.gguf"
            )
        if dtype is not None:
            raise CapabilityError(
                f'llamacpp computes in the types of its file; for dtype="{dtype}" use runtime="torch", '
                f"or likely convert --to f32"
            )
        return _llamacpp(source, Path(place), options)
    return _torch(source, kind, place, dtype, options)


def _llamacpp(name: str, path: Path, options: dict[str, Any]) -> Loaded:
    from likely.models.hashes import file_sha256
    from likely.models.llamacpp import LlamaCppRuntime

    runtime = LlamaCppRuntime(path, **options)
    tokenizer = runtime.tokenizer
    info = ModelInfo(
        name=name,
        source=str(path),
        runtime="llamacpp",
        dtype=runtime.dtype,
        sha256=file_sha256(path),
        tokenizer=tokenizer.fingerprint,
        template=tokenizer.chat_template is not None,
    )
    return Loaded(runtime, tokenizer, info)


def _torch(name: str, kind: str, place: Path | str, dtype: str | None, options: dict[str, Any]) -> Loaded:
    from likely.models.hashes import file_sha256, folder_sha256
    from likely.models.hf_tokenizer import HFTokenizer
    from likely.models.torch_aligned import GroupTorchRuntime, RepadTorchRuntime
    from likely.models.torch_runtime import TorchRuntime

    options = dict(options)
    kinds: dict[str, type[TorchRuntime]] = {
        "mask": TorchRuntime, "repad": RepadTorchRuntime, "group": GroupTorchRuntime
    }  # fmt: skip
    engine = kinds[options.pop("align", "mask")]
    if (threads := options.pop("threads", None)) is not None:
        import torch

        torch.set_num_threads(threads)  # torch has one setting for the whole process
    if (context := options.pop("context", None)) is not None:
        options["tokens_held"] = context
    warnings: list[str] = []
    if kind == "gguf":
        from likely.models.gguf_header import read_header
        from likely.models.gguf_tokenizer import tokenizer_from_gguf

        read_header(place)
        tokenizer = tokenizer_from_gguf(place)
        warnings += _parity_warnings(Path(place), tokenizer)
        runtime = engine.from_gguf(place, dtype=dtype, **options)
        digest = file_sha256(place)
    else:
        runtime = engine.from_pretrained(str(place), dtype=dtype, **options)
        folder = Path(place) if kind == "folder" else _hub_folder(str(place))
        tokenizer = HFTokenizer.from_folder(folder)
        digest = folder_sha256(folder)
    info = ModelInfo(
        name=name,
        source=str(place),
        runtime="torch",
        dtype=str(runtime.dtype).removeprefix("torch."),
        sha256=digest,
        tokenizer=tokenizer.fingerprint,
        template=tokenizer.chat_template is not None,
        warnings=warnings,
    )
    return Loaded(runtime, tokenizer, info)


def _hub_folder(name: str) -> Path:
    """Where the hub client put the files that transformers has just loaded."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.safetensors", "tokenizer*"]
    return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))


def _parity_warnings(path: Path, tokenizer: Tokenizer) -> list[str]:
    """Our tokenizer of a GGUF file against llama.cpp's own, where that is installed: ids must be the same."""
    if not installed("llama_cpp"):
        return []
    from likely.models.llamacpp_tokenizer import vocabulary_of
    from likely.models.parity import compare_tokenizers, mismatch_message

    with vocabulary_of(path) as reference:
        mismatches = compare_tokenizers(tokenizer, reference)
    return [mismatch_message(mismatches)] if mismatches else []
