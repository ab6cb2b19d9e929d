"""Digests: of files (remembered on disk, so that a large one is read once), of folders, of settings and texts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from likely.errors import ModelError
from likely.io.whole_file import write_whole_file

_KEPT_ENTRIES = 1000
_SETTLED_NS = 2_000_000_000  # a file younger than this may change again within the clock's resolution
_FOLDER_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")


def cache_dir() -> Path:
    """$LIKELY_CACHE, else $XDG_CACHE_HOME/likely, else ~/.cache/likely. It may not exist yet."""
    if own := os.environ.get("LIKELY_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "likely"
    return Path("~/.cache/likely").expanduser()


def fingerprint(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the sha256 of bytes, of a text, or of anything else as JSON with sorted keys."""
    if not isinstance(value, bytes | str):
        value = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:length]


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes; taken from the cache while real path, size and modification time are the same."""
    real = Path(path).resolve()
    try:
        before = real.stat()
        known = _read_cache().get(str(real))
        if known and known[:2] == [before.st_size, before.st_mtime_ns]:
            return str(known[2])
        with real.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = real.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    settled = time.time_ns() - after.st_mtime_ns > _SETTLED_NS
    if settled and (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
        _remember(str(real), [after.st_size, after.st_mtime_ns, digest])
    return digest


def folder_sha256(folder: str | Path) -> str:
    """Hex sha256 over the sorted lines "sha256  name" of the files that make a safetensors folder's model.

    These are the top-level weights, configuration, tokenizer and template files; a README does not count.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: not a folder")
    files = sorted(p for p in folder.iterdir() if p.suffix in _FOLDER_SUFFIXES and p.is_file())
    if not files:
        raise ModelError(f"{folder}: no model files (looked for *{', *'.join(_FOLDER_SUFFIXES)})")
    lines = "".join(f"{file_sha256(p)}  {p.name}\n" for p in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _cache_file() -> Path:
    return cache_dir() / "hashes.json"


def _read_cache() -> dict[str, list]:
    """Entries {real path: [size, mtime_ns, sha256]}; whatever is not of this form is dropped."""
    try:
        found = json.loads(_cache_file().read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {path: entry for path, entry in found.items() if _is_entry(entry)}


def _is_entry(entry: object) -> bool:
    match entry:
        case [int(), int(), str(digest)]:
            return len(digest) == 64 and all(c in "0123456789abcdef" for c in digest)
    return False


def _remember(path: str, entry: list) -> None:
    entries = _read_cache()
    entries.pop(path, None)
    entries[path] = entry
    entries = dict(list(entries.items())[-_KEPT_ENTRIES:])
    target = _cache_file()
    with contextlib.suppress(OSError):
        write_whole_file(target, json.dumps(entries, indent=0).encode())
