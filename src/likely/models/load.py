"""From a name, file, folder or hub id to a running model: resolve it, choose the kind of runtime, open it."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from likely.errors import CapabilityError, ModelError, missing_extra, nearest
from likely.formats.families import quant_method
from likely.formats.folder import read_json
from likely.io.hashes import file_sha256, fingerprint, folder_sha256
from likely.models.catalog import DEFAULT_MODEL, KNOWN, find_model, known_model
from likely.models.hub import check_hub, hub_config, hub_folder, hub_gguf
from likely.runtimes.kinds import DTYPES, KINDS, LocalOptions, RuntimeKind, SourceKind
from likely.runtimes.masked import check_canvas_options
from likely.runtimes.protocol import Runtime
from likely.tokenizers.protocol import Tokenizer

USES = ("single", "batch", "scoring")
MOST_INT8_BYTES = 4 * 2**30  # of a file that runs natively by default in int8, which takes twice the memory of 4 bits
FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded, so that a number can be traced to it.

    system, settings  of conversations, where nobody says otherwise: see `KnownModel`
    """

    name: str
    source: str  # file, folder or hub id
    runtime: str
    dtype: str
    sha256: str  # of the weights
    tokenizer: str  # fingerprint
    template: bool
    warnings: list[str] = field(default_factory=list)
    system: str | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    weights: str = ""  # the types that run: as dtype, or "Q4_K+Q6_K" of a file whose codes are kept
    kv_dtype: str = ""  # of cached keys and values
    kv_bytes_per_token: int = 0  # over all layers; 0: nothing is cached, or not known


@dataclass(frozen=True)
class Loaded:
    runtime: Runtime
    tokenizer: Tokenizer
    info: ModelInfo


def load_local(
    source: str | PathLike[str],
    *,
    runtime: str | None = None,
    dtype: str | None = None,
    use: str = "single",
    **options: Unpack[LocalOptions],
) -> Loaded:
    """Open a model on this machine; the folder of a peft adapter stands for its model with the adapter added.

    runtime  "native" (likely's own C++), "llamacpp", "torch", "recurrent" (state-space models), or None.  None, for a
             GGUF file without a dtype: native where it is available and knows the architecture, else llama.cpp, else
             torch (files of more than 4 GiB with types that native does not multiply, such as Q2_K: llama.cpp first);
             for a folder or hub id of a state-space model (`RuntimeKind.model_types`): recurrent, and torch where
             that has no such layers; otherwise torch, else native.
             "auto": what `likely bench` has measured as the fastest for `use`; the same as None where nothing was
             measured
    dtype    of torch: "float32" (the oracle), "bfloat16", "float16"; of native: "int8", "bfloat16", "float32", "file"
             (the codes of a GGUF file as they are; the default of large ones), "int4" ("int8", "file" and "int4" alone
             mean native); llama.cpp computes in the types of its file
    use      what "auto" is to be fast at: "single" texts, a "batch" of them, or "scoring"
    options  of the runtime, see `LocalOptions`
    """
    _check_words(runtime, dtype, use, dict(options))
    if (folder := _adapter_folder(source)) is not None:
        return _load_adapter(folder, runtime, dtype, options)
    given = {name: value for name, value in options.items() if value is not None}
    where, place = resolve(source)
    config = functools.cache(lambda: _config_of(where, place))  # a hub is asked once, and only where it matters
    kinds, dtype = _choose(where, place, runtime, dtype, use, given, config)
    if where == "hub":
        check_hub(str(place))
    for kind in kinds:
        _check_kind(kind, where, place, dtype, config)
        try:
            opened, tokenizer, path, warnings = _OPEN[kind.name](where, place, dtype, _options_of(kind, given))
            break
        except CapabilityError:  # of a default: an architecture that the native runtime does not know
            if kind is kinds[-1] or kind.name == "llamacpp":  # it knows every architecture that torch reads
                raise
    known = known_model(str(source))
    info = ModelInfo(
        name=str(source),
        source=str(place),
        runtime=kind.name,
        dtype=str(opened.dtype).removeprefix("torch."),
        sha256=_sha256(path),
        tokenizer=tokenizer.fingerprint,
        template=tokenizer.chat_template is not None,
        warnings=warnings,
        system=known.system if known else None,
        settings=known.settings if known else {},
        weights=str(getattr(opened, "weights_format", opened.dtype)).removeprefix("torch."),
        kv_dtype=str(getattr(opened, "kv_dtype", "")),
        kv_bytes_per_token=int(getattr(opened, "kv_bytes_per_token", 0)),
    )
    return Loaded(opened, tokenizer, info)


def _adapter_folder(source: str | PathLike[str]) -> Path | None:
    """The folder of a peft adapter, which stands for its model with the adapter added."""
    path = Path(source).expanduser()
    if known_model(str(source)) or not path.is_dir() or (path / "config.json").is_file():
        return None
    return path if (path / "adapter_config.json").is_file() else None


def _load_adapter(folder: Path, runtime: str | None, dtype: str | None, options: LocalOptions) -> Loaded:
    if runtime not in (None, "auto", "torch"):
        raise CapabilityError(f"adapters run in torch; for {runtime} write a whole model: likely align ... --merged")
    if not installed("torch"):
        raise missing_extra("torch", "train")
    from likely.runtimes.torch.adapter import adapter_base, add_adapter

    loaded = load_local(adapter_base(folder), runtime="torch", dtype=dtype, **options)
    digest = add_adapter(loaded.runtime, folder)  # type: ignore[arg-type]
    sha256 = fingerprint([loaded.info.sha256, digest], 64)
    return replace(loaded, info=replace(loaded.info, name=str(folder), source=str(folder), sha256=sha256))


# --- resolve ----------------------------------------------------------------------------------------------------------


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def resolve(source: str | PathLike[str]) -> tuple[SourceKind, Path | str]:
    """("gguf", file) | ("folder", folder) | ("hub", id).  ModelError with the nearest name otherwise.

    org/name:Q4_K_M is the GGUF file of that type in a hub repository, fetched where the hub's cache does not have it.
    """
    source = str(source)
    if not source:
        raise ModelError(f'the name of the model is empty: give one such as "{DEFAULT_MODEL}", or a GGUF file')
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
    in_folder = path.parent != Path() and path.parent.is_dir()
    if path.suffix in FILES or source.startswith((".", "/", "~")) or source.count("/") > 1 or in_folder:
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(f"{source} does not exist{nearest(path.name, beside)}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return "hub", source
    if match := re.fullmatch(r"([\w.-]+/[\w.-]+):([\w.-]+)", source):
        return "gguf", hub_gguf(match[1], match[2])
    names = [entry.name for entry in KNOWN]
    raise ModelError(
        f'no model is called "{source}"{nearest(source, names)} (known: {", ".join(names)}; or give a GGUF file, a '
        f"folder, a hub id like org/name or org/name:Q4_K_M, or the URL of a server)"
    )


# --- choose -----------------------------------------------------------------------------------------------------------


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def available_runtimes() -> dict[str, bool]:
    """Which kinds of runtime this environment has."""
    from likely.runtimes.native.build import can_build

    return {
        name: all(map(installed, kind.packages)) and (not kind.compiles or can_build()) for name, kind in KINDS.items()
    }


def runtimes_for(source: str | PathLike[str]) -> list[str]:
    """Those of them that can read this model."""
    where, place = resolve(source)
    config = _config_of(where, place)
    own, merged = _model_type(config), _is_merged(config)
    return [
        name
        for name, ready in available_runtimes().items()
        if ready and where in KINDS[name].reads and (not KINDS[name].model_types or own in KINDS[name].model_types)
        and (name == "native" or not merged)
    ]  # fmt: skip


def _check_words(runtime: str | None, dtype: str | None, use: str, options: dict[str, Any]) -> None:
    """Refuse unknown words, with the nearest known one, before anything is read."""
    for name, value, allowed in (
        ("runtime", runtime, (*KINDS, "auto")),
        ("dtype", dtype, DTYPES),
        ("use", use, USES),
    ):
        if value is not None and value not in allowed:
            raise ModelError(f'unknown {name} "{value}"{nearest(value, allowed)} (allowed: {", ".join(allowed)})')
    known = ["runtime", "dtype", "use", *LocalOptions.__annotations__]
    for name in options:
        if name not in known:
            raise TypeError(f"a model on this machine has no option {name}={nearest(name, known)}")


def _choose(
    where: SourceKind, place: Path | str, runtime: str | None, dtype: str | None, use: str, options: dict[str, Any],
    config: Callable[[], dict[str, Any]],
) -> tuple[list[RuntimeKind], str | None]:  # fmt: skip
    """The kind of runtime that was asked for, or those that could stand for it, the best first; and the dtype."""
    have = available_runtimes()
    if runtime == "auto":
        runtime, dtype = _fastest(where, place, dtype, use, have)
    if runtime is not None:
        kinds = [KINDS[runtime]]
    else:
        if not any(have.values()):
            raise ModelError(f"no runtime is installed. Run: {KINDS['native'].pip}, or 'likely[torch]'")
        kinds = [kind for kind in _by_default(where, place, dtype, config()) if dtype is None or dtype in kind.dtypes]
        there = [kind for kind in kinds if have[kind.name]]
        kinds = [kind for kind in there if kind.takes(options)] or there[:1] or kinds[:1]
    if not have[kinds[0].name] and kinds[0].name != "native":  # native says itself what is missing
        raise missing_extra(f"runtime {kinds[0].name}", kinds[0].extra)
    return kinds, dtype


def _by_default(
    where: SourceKind, place: Path | str, dtype: str | None, config: dict[str, Any]
) -> list[RuntimeKind]:  # fmt: skip
    """A GGUF file runs natively; a large one whose codes that runtime cannot keep, in llama.cpp. With a dtype, and from
    a folder or the hub, a model runs in torch, or in the runtime that names its type."""
    if where == "gguf" and dtype is None:
        order: tuple[str, ...] = ("native", "llamacpp", "torch")
        if Path(place).stat().st_size > MOST_INT8_BYTES and not _keeps_codes(Path(place)):
            order = ("llamacpp", "native", "torch")
    else:
        order = ("torch", "native") if dtype in (None, *KINDS["torch"].dtypes) else ("native", "torch")
    if _is_merged(config):
        return [KINDS["native"]]
    model_type = _model_type(config)
    own = [kind for kind in KINDS.values() if model_type in kind.model_types]
    return [*own, *(KINDS[name] for name in order)]


def _config_of(where: SourceKind, place: Path | str) -> dict[str, Any]:
    """The config.json of a folder or a hub id; {} where there is none."""
    folder = None if where == "gguf" else hub_config(str(place)) if where == "hub" else Path(place)
    return {} if folder is None else read_json(folder / "config.json")


def _model_type(config: dict[str, Any]) -> str:
    """Of a config.json; "" where there is none, and "mamba_ssm" of the original files."""
    original = {"d_model", "n_layer", "ssm_cfg"} <= config.keys()
    return str(config.get("model_type", "mamba_ssm" if original else ""))


def _is_merged(config: dict[str, Any]) -> bool:
    """Whether the model holds MergeQuant's codes, which the native runtime alone multiplies."""
    return quant_method(config) == "mergequant"


def _keeps_codes(path: Path) -> bool:
    """Whether the native runtime multiplies all types of the file; where it is broken, whoever opens it says so."""
    from likely.formats.gguf import read_header
    from likely.runtimes.native.library import TYPES

    try:
        return all(tensor.type in TYPES for tensor in read_header(path).tensors)
    except ModelError:
        return True


def _fastest(
    where: SourceKind, place: Path | str, dtype: str | None, use: str, have: dict[str, bool]
) -> tuple[str | None, str | None]:
    """The runtime and dtype whose measured calls are the fastest here for `use`; without measurements (None, dtype)."""
    from likely.runtimes.cost_curve import CostCurve
    from likely.runtimes.machine import machine

    if where == "hub":
        return None, dtype
    best: tuple[float, str, str] | None = None
    for curve in CostCurve.of_source(_sha256(Path(place)), machine().cpu):
        name, computed = curve.rows[0].runtime, curve.rows[0].dtype
        seconds = curve.seconds_per_token(use)
        if seconds is None or not have.get(name) or (dtype is not None and computed != dtype):
            continue
        best = min(best, (seconds, name, computed)) if best else (seconds, name, computed)
    if best is None:
        return None, dtype
    return best[1], best[2] if KINDS[best[1]].dtypes else None


def _check_kind(
    kind: RuntimeKind, where: SourceKind, place: Path | str, dtype: str | None, config: Callable[[], dict[str, Any]]
) -> None:
    """Refuse a source that this kind cannot read and a dtype that it does not compute in."""
    if where not in kind.reads:
        if where == "gguf":
            raise CapabilityError(
                f"{kind.name} reads folders of state-space models; {place} is none. Run: likely sequence convert"
            )
        raise CapabilityError(f"{kind.name} reads GGUF files; {place} is not one. Run: likely convert {place} out.gguf")
    if kind.name != "native" and _is_merged(config()):
        raise CapabilityError(f"{place} holds MergeQuant's codes, which only the native runtime runs, not {kind.name}")
    if dtype is not None and dtype not in kind.dtypes:
        others = " or ".join(f'runtime="{name}"' for name, other in KINDS.items() if dtype in other.dtypes)
        raise CapabilityError(
            f"{kind.name} computes in {', '.join(kind.dtypes) or 'the types of its file'}; "
            f'for dtype="{dtype}" use {others}'
        )


def _options_of(kind: RuntimeKind, options: dict[str, Any]) -> dict[str, Any]:
    """What is passed to a runtime of this kind; CapabilityError for an option of another kind."""
    for name in options:
        if not kind.takes({name: options[name]}):
            others = ", ".join(other.name for other in KINDS.values() if name in other.options)
            raise CapabilityError(f"{name}= is an option of {others}; {kind.name} has no such setting: leave it out")
    return {name: value for name, value in options.items() if name in kind.options}


# --- open -------------------------------------------------------------------------------------------------------------

Opened = tuple[Any, Tokenizer, Path, list[str]]  # the runtime, its tokenizer, where the model lies, warnings


def _open_llamacpp(where: SourceKind, place: Path | str, dtype: str | None, options: dict[str, Any]) -> Opened:
    from likely.formats.gguf import read_header
    from likely.runtimes.llamacpp.masked import ARCHITECTURES, open_masked_gguf
    from likely.runtimes.llamacpp.runtime import LlamaCppRuntime

    if read_header(place).architecture in ARCHITECTURES:
        check_canvas_options(options, ("context", "sequences", "threads"))
        return *open_masked_gguf(Path(place), **options), Path(place), []
    runtime = LlamaCppRuntime(place, **options)
    return runtime, runtime.tokenizer, Path(place), []


def _open_torch(where: SourceKind, place: Path | str, dtype: str | None, options: dict[str, Any]) -> Opened:
    from likely.runtimes.torch.masked.checkpoint import config_of, family_of
    from likely.runtimes.torch.runtime import TorchRuntime

    if where != "gguf" and family_of(config_of(place)) is not None:
        return _open_masked(where, place, dtype, options)
    if where == "gguf":  # the tokenizer first: it is cheap
        tokenizer, path, warnings = _tokenizer(Path(place))
        return TorchRuntime.from_gguf(path, dtype=dtype, **_tokens_held(options)), tokenizer, path, warnings
    runtime = TorchRuntime.from_pretrained(str(place), dtype=dtype, **_tokens_held(options))
    return runtime, *_tokenizer(hub_folder(str(place), local=True) if where == "hub" else Path(place))


def _open_masked(where: SourceKind, place: Path | str, dtype: str | None, options: dict[str, Any]) -> Opened:
    """A masked diffusion language model."""
    from likely.runtimes.torch.masked.checkpoint import open_masked

    check_canvas_options(options, ("device", "threads", "revision"))
    path = hub_folder(str(place), local=False) if where == "hub" else Path(place)
    return open_masked(path, dtype=dtype, **options), *_tokenizer(path)


def _open_native(where: SourceKind, place: Path | str, dtype: str | None, options: dict[str, Any]) -> Opened:
    from likely.runtimes.native.runtime import NativeRuntime

    path = hub_folder(str(place), local=False) if where == "hub" else Path(place)
    runtime = NativeRuntime(path, dtype=dtype, **_tokens_held(options))
    return runtime, *_tokenizer(path)


def _open_recurrent(where: SourceKind, place: Path | str, dtype: str | None, options: dict[str, Any]) -> Opened:
    from likely.runtimes.recurrent.runtime import RecurrentRuntime

    path = hub_folder(str(place), local=False) if where == "hub" else Path(place)
    runtime = RecurrentRuntime.from_folder(path, dtype=dtype, **_tokens_held(options))
    return runtime, *_tokenizer(path)


_OPEN: dict[str, Callable[[SourceKind, Path | str, str | None, dict[str, Any]], Opened]] = {
    "llamacpp": _open_llamacpp, "torch": _open_torch, "native": _open_native,
    "recurrent": _open_recurrent,
}  # fmt: skip


def _tokens_held(options: dict[str, Any]) -> dict[str, Any]:
    """Runtimes over slots count what they hold, whatever the model's own context is."""
    return {"tokens_held" if name == "context" else name: value for name, value in options.items()}


def _sha256(path: Path) -> str:
    return folder_sha256(path) if path.is_dir() else file_sha256(path)


def _tokenizer(path: Path) -> tuple[Tokenizer, Path, list[str]]:
    """Of a folder or a GGUF file; with a warning where llama.cpp is installed and gives other ids for the same file."""
    if path.is_dir():
        from likely.tokenizers.huggingface import HFTokenizer

        return HFTokenizer.from_folder(path), path, []
    from likely.tokenizers.gguf import tokenizer_from_gguf
    from likely.tokenizers.parity import compare_tokenizers, mismatch_message

    tokenizer = tokenizer_from_gguf(path)
    if not installed("llama_cpp"):
        return tokenizer, path, []
    from likely.runtimes.llamacpp.tokenizer import vocabulary_of

    with vocabulary_of(path) as reference:
        mismatches = compare_tokenizers(tokenizer, reference)
    return tokenizer, path, [mismatch_message(mismatches)] if mismatches else []
