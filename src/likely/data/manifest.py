"""What the data sets are: title, source, licence, and each file's size and sha256, from manifest.toml.

The package's manifest.toml states the sets that tests, results and examples use; a manifest.toml of the same form in
the data folder adds others:

    [NAME]
    title = "..."                 # optional
    source = "..."
    licence = "..."
    files = [{ name = "train.jsonl.gz", bytes = 77938, sha256 = "..." }]

A folder that neither one names is a set too: its files are read unverified.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from likely.errors import DataError, ModelError, nearest
from likely.io.hashes import file_sha256

PACKAGED = Path(__file__).with_name("manifest.toml")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class DataFile:
    """One file of a set; sha256 and size_bytes as the manifest states them, "" and None where no manifest does."""

    path: Path
    sha256: str
    size_bytes: int | None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def kind(self) -> str:
        """The suffix that says the format: ".jsonl" of test.jsonl.gz."""
        return Path(self.name.removesuffix(".gz")).suffix

    @property
    def present(self) -> bool:
        return self.path.is_file()

    def to_dict(self) -> dict[str, Any]:
        size = self.path.stat().st_size if self.present else self.size_bytes
        return {"name": self.name, "size_bytes": size, "sha256": self.sha256, "present": self.present}


@dataclass(frozen=True)
class DataSet:
    """A data set: where it lies and what the manifest says of it.

    described  whether a manifest names it; otherwise its files are whatever lies in the folder
    """

    name: str
    title: str
    source: str
    licence: str
    folder: Path
    files: tuple[DataFile, ...]
    described: bool = True

    def find(self, file: str | None, *, kinds: tuple[str, ...] | None = None) -> DataFile:
        """A file by full name or by split, the only file if None; DataError with the nearest name otherwise."""
        pool = [f for f in self.files if kinds is None or f.kind in kinds]
        names = [f.name for f in pool]
        if file is None:
            if len(pool) == 1:
                return pool[0]
            raise DataError(f"{self.name} has {len(pool)} files: name one of {', '.join(names) or 'none'}")
        exact = [f for f in pool if f.name == file]
        matches = exact or [f for f in pool if file in re.split(r"[._-]", f.name.removesuffix(".gz"))]
        matches = matches or [f for f in pool if f.name.removesuffix(".gz").removesuffix(f.kind) == file]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise DataError(f'{self.name}: "{file}" fits {", ".join(f.name for f in matches)}: give a full name')
        raise DataError(f'{self.name} has no file "{file}"{nearest(file, names)} (files: {", ".join(names)})')

    def verify(self, file: DataFile) -> None:
        """Raise DataError unless the file is there and, in a set that is described, is the one of the manifest."""
        again = f": get it again. Source: {self.source}"
        if not file.present:
            raise DataError(f"{file.path} is missing. Source: {self.source}")
        if not self.described:
            return
        size = file.path.stat().st_size
        if size != file.size_bytes:
            raise DataError(f"{file.path} has {size:,} bytes, the manifest says {file.size_bytes:,}{again}")
        try:
            digest = file_sha256(file.path)
        except ModelError as error:
            raise DataError(str(error)) from None
        if digest != file.sha256:
            raise DataError(f"{file.path} has sha256 {digest[:12]}..., the manifest says {file.sha256[:12]}...{again}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "title": self.title, "source": self.source, "licence": self.licence,
            "folder": str(self.folder), "described": self.described, "files": [file.to_dict() for file in self.files],
        }  # fmt: skip


def described_sets(root: Path) -> dict[str, DataSet]:
    """The sets of both manifests, with their folders under `root`, whether they are there or not."""
    own = root / "manifest.toml"
    entries = _entries(PACKAGED) | (read_entries(own) if own.is_file() else {})
    return {name: _described(name, root / name, entry) for name, entry in entries.items()}


def undescribed_set(folder: Path) -> DataSet:
    """A folder that no manifest names: all its files but hidden ones and its README."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith((".", "README")))
    stated = "see its README" if (folder / "README.md").is_file() else "not stated"
    return DataSet(
        folder.name, "", stated, stated, folder, tuple(DataFile(path, "", None) for path in files), described=False
    )


@lru_cache(maxsize=1)
def _entries(path: Path) -> dict[str, Any]:
    return read_entries(path)


def read_entries(path: Path) -> dict[str, Any]:
    """The tables of a manifest, checked; DataError names the file, the set and the field that is wrong."""
    try:
        entries = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    for name, entry in entries.items():
        where = f"{path}: [{name}]"
        files = entry.get("files") if isinstance(entry, dict) else None
        if not isinstance(files, list) or not files:
            raise DataError(f'{where} lists no files: expected files = [{{ name = "...", bytes = 0, sha256 = "..." }}]')
        for field in ("source", "licence"):
            if not isinstance(entry.get(field), str):
                raise DataError(f'{where}: "{field}" is missing or no text')
        for file in files:
            match file:
                case {"name": str(one), "bytes": int(), "sha256": str(digest)} if _SHA256.fullmatch(digest):
                    if not one or "/" in one or "\\" in one or one in (".", ".."):
                        raise DataError(f'{where}: "{one}" is not the name of a file in this folder')
                case _:
                    raise DataError(f"{where}: a file needs name, bytes and sha256 (64 hex digits), found {file}")
    return entries


def _described(name: str, folder: Path, entry: dict[str, Any]) -> DataSet:
    files = tuple(DataFile(folder / f["name"], f["sha256"], f["bytes"]) for f in entry["files"])
    return DataSet(name, str(entry.get("title", "")), entry["source"], entry["licence"], folder, files)
