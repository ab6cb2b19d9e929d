"""From a name, file, folder, hub id to a running model: which engine, which tokenizer, and what it is."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likely.errors import CapabilityError, ModelError, missing_extra, nearest
from likely.models.catalog import KNOWN, find_model, known_model
from likely.runtimes.protocol import Runtime
from likely.tokenizers.protocol import Tokenizer

RUNTIMES = ("llamacpp", "torch", "native")
ALIGN = ("mask", "repad", "group")
DTYPES = ("float32", "bfloat16", "float16")
ENGINES = {"int8": "int8", "bf16": "bfloat16", "fp32": "float32"}  # of the native runtime, and their dtypes
USES = ("single", "batch", "scoring")


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
    from likely.runtimes.native.build import has_compiler

    return {
        "llamacpp": installed("llama_cpp"),
        "torch": installed("torch") and installed("transformers"),
        "native": has_compiler() and installed("gguf"),
    }


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


def load_local(
    source: str,
    *,
    runtime: str | None = None,
    dtype: str | None = None,
    engine: str | None = None,
    use: str = "single",
    **options: Any,
) -> Loaded:
    """Open a model on this machine.

    runtime  "llamacpp", "torch", "native" (likely's own engine), or None: llama.cpp for GGUF files where it is
             installed, torch otherwise.  "auto": what `likely bench` has measured as the fastest for `use`; the same as
             None where nothing was measured
    dtype    of the torch runtime ("float32" is the oracle) and the native one ("int8", "bfloat16", "float32");
             llama.cpp computes in the types of its file
    engine   "int8", "bf16" or "fp32": short for the native runtime in that dtype; "auto": for runtime="auto".
             Where the native engine cannot run a model, transformers runs bf16 and fp32, with a warning
    use      what "auto" is to be fast at: "single" texts, a "batch" of them, or "scoring"
    options  passed to the runtime (context=, threads=, sequences=, ...); align= of the torch runtime says how rows of
             a batch are kept in step: "mask" (default: nothing moves), "repad" or "group" (see torch_aligned)
    """
    may_fall_back = engine in ("bf16", "fp32")  # formats that transformers computes in, too
    if engine is not None:
        runtime, dtype = _of_engine(engine, runtime, dtype)
    for name, value, allowed in (
        ("runtime", runtime, (*RUNTIMES, "auto")),
        ("dtype", dtype, (*DTYPES, "int8")),
        ("use", use, USES),
        ("align", options.get("align"), ALIGN),
    ):
        if value is not None and value not in allowed:
            raise ModelError(f'unknown {name} "{value}"{nearest(value, allowed)} (allowed: {", ".join(allowed)})')
    kind, place = resolve(source)
    have = available_runtimes()
    if runtime == "auto":
        runtime, dtype = _fastest(kind, place, dtype, use, have)
    if runtime is None:
        runtime = "llamacpp" if kind == "gguf" and have["llamacpp"] and dtype is None else "torch"
        runtime = "native" if dtype == "int8" else runtime
        if kind == "gguf" and not any(have.values()):
            raise ModelError("no engine is installed. Run: pip install 'likely[local]' (llama.cpp) or 'likely[torch]'")
    if not have[runtime] and runtime != "native":  # which says itself what is missing
        extra = {"llamacpp": "local", "torch": "torch"}[runtime]
        raise CapabilityError(f"runtime {runtime} is not installed. Run: pip install 'likely[{extra}]'")
    if runtime != "torch" and (align := options.pop("align", "mask")) != "mask":
        raise CapabilityError(f'align="{align}" is for the torch runtime; {runtime} needs none: leave it out')
    if runtime != "native":
        options.pop("progress", None)
    if runtime == "native":
        try:
            return _native(source, kind, place, dtype, options)
        except CapabilityError as error:
            if not (may_fall_back and have["torch"]):
                raise
            options.pop("progress", None)
            loaded = _torch(source, kind, place, dtype, options)
            loaded.info.warnings.append(f"{error}; transformers runs it instead")
            return loaded
    if dtype == "int8":
        raise CapabilityError(f'{runtime} has no dtype "int8": use runtime="native"')
    if runtime == "llamacpp":
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


def _of_engine(engine: str, runtime: str | None, dtype: str | None) -> tuple[str, str | None]:
    """The runtime and dtype that engine= stands for."""
    if engine not in (*ENGINES, "auto"):
        raise ModelError(f'unknown engine "{engine}"{nearest(engine, ENGINES)} (allowed: {", ".join(ENGINES)}, auto)')
    if dtype is not None:
        raise CapabilityError(f'engine="{engine}" says the dtype already: leave out dtype="{dtype}"')
    meant = "auto" if engine == "auto" else "native"
    if runtime not in (None, meant):
        raise CapabilityError(f'engine="{engine}" is of runtime="{meant}": leave out runtime="{runtime}"')
    return meant, ENGINES.get(engine)


def _fastest(
    kind: str, place: Path | str, dtype: str | None, use: str, have: dict[str, bool]
) -> tuple[str | None, str | None]:
    """The runtime and dtype whose measured calls are the fastest here for `use`; without measurements (None, dtype)."""
    from likely.io.hashes import file_sha256, folder_sha256
    from likely.runtimes.cost_curve import CostCurve
    from likely.runtimes.machine import machine

    if kind == "hub":
        return None, dtype
    sha256 = file_sha256(place) if kind == "gguf" else folder_sha256(place)
    best: tuple[float, str, str] | None = None
    for curve in CostCurve.of_source(sha256, machine().cpu):
        name, engine = curve.rows[0].runtime, curve.rows[0].engine
        seconds = curve.seconds_per_token(use)
        if seconds is None or not have.get(name) or (dtype is not None and engine != dtype):
            continue
        best = min(best, (seconds, name, engine)) if best else (seconds, name, engine)
    if best is None:
        return None, dtype
    return best[1], None if best[1] == "llamacpp" else best[2]


def _llamacpp(name: str, path: Path, options: dict[str, Any]) -> Loaded:
    from likely.io.hashes import file_sha256
    from likely.runtimes.llamacpp.runtime import LlamaCppRuntime

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


def _native(name: str, kind: str, place: Path | str, dtype: str | None, options: dict[str, Any]) -> Loaded:
    from likely.runtimes.native.runtime import NativeRuntime
    from likely.tokenizers.huggingface import HFTokenizer

    kinds = {of: engine for engine, of in ENGINES.items()}
    if (engine := kinds.get(dtype or "int8")) is None:
        raise CapabilityError(f'the native runtime has no dtype "{dtype}" (it has {", ".join(kinds)})')
    options = dict(options)
    if (context := options.pop("context", None)) is not None:
        options["tokens_held"] = context
    path = _hub_folder(str(place), local=False) if kind == "hub" else Path(place)
    runtime = NativeRuntime(path, kind=engine, **options)
    warnings: list[str] = []
    if kind == "gguf":
        from likely.tokenizers.gguf import tokenizer_from_gguf

        tokenizer = tokenizer_from_gguf(path)
        warnings += _parity_warnings(path, tokenizer)
    else:
        tokenizer = HFTokenizer.from_folder(path)
    info = ModelInfo(
        name=name,
        source=str(place),
        runtime="native",
        dtype=ENGINES[engine],
        sha256=runtime.sha256,
        tokenizer=tokenizer.fingerprint,
        template=tokenizer.chat_template is not None,
        warnings=warnings,
    )
    return Loaded(runtime, tokenizer, info)


def _torch(name: str, kind: str, place: Path | str, dtype: str | None, options: dict[str, Any]) -> Loaded:
    from likely.io.hashes import file_sha256, folder_sha256
    from likely.runtimes.torch.aligned import GroupTorchRuntime, RepadTorchRuntime
    from likely.runtimes.torch.runtime import TorchRuntime
    from likely.tokenizers.huggingface import HFTokenizer

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
        from likely.formats.gguf import read_header
        from likely.tokenizers.gguf import tokenizer_from_gguf

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


def _hub_folder(name: str, *, local: bool = True) -> Path:
    """Where the hub client keeps a model's files. local: they are there, since transformers has just loaded them."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_extra("huggingface_hub", "torch") from None
    patterns = ["*.json", "*.jinja", "*.safetensors", "tokenizer*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local))
    except (OSError, ValueError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: cannot be fetched from the hub ({line})") from None


def _parity_warnings(path: Path, tokenizer: Tokenizer) -> list[str]:
    """Our tokenizer of a GGUF file against llama.cpp's own, where that is installed: ids must be the same."""
    if not installed("llama_cpp"):
        return []
    from likely.runtimes.llamacpp.tokenizer import vocabulary_of
    from likely.tokenizers.parity import compare_tokenizers, mismatch_message

    with vocabulary_of(path) as reference:
        mismatches = compare_tokenizers(tokenizer, reference)
    return [mismatch_message(mismatches)] if mismatches else []
