"""What a data set's README.md says: source, licence, and each file's size and sha256.

Three forms of file lists are read: a table whose first column is "file"; a table of two columns with rows "File" and
"sha256"; lines "SHA256  NAME" as sha256sum prints them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likely.errors import DataError, ModelError, nearest
from likely.io.hashes import file_sha256

_SHA256 = re.compile(r"\b[0-9a-f]{64}\b")
_SUM_LINE = re.compile(r"^\s*([0-9a-f]{64})\s+(\S+)\s*$")
_LINK = re.compile(r"https?://[^\s)|>]+")


@dataclass(frozen=True)
class DataFile:
    """One file of a set. size_bytes: as the README states it, None where it does not."""

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

    def verify(self, card: Card) -> None:
        """Raise DataError unless the file is there and is the one that the README describes."""
        if not self.present:
            raise DataError(f"{self.path} is missing. Source: {card.source}")
        size = self.path.stat().st_size
        if self.size_bytes is not None and size != self.size_bytes:
            raise DataError(
                f"{self.path} has {size:,} bytes, its README says {self.size_bytes:,}: get it again. "
                f"Source: {card.source}"
            )
        try:
            digest = file_sha256(self.path)
        except ModelError as error:
            raise DataError(str(error)) from None
        if digest != self.sha256:
            raise DataError(
                f"{self.path} has sha256 {digest[:12]}..., its README says {self.sha256[:12]}...: get it again. "
                f"Source: {card.source}"
            )


@dataclass(frozen=True)
class Card:
    """A data set, as its README describes it."""

    name: str
    title: str
    source: str
    licence: str
    folder: Path
    files: tuple[DataFile, ...]

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

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "licence": self.licence,
            "folder": str(self.folder),
            "files": [
                {
                    "name": f.name,
                    "size_bytes": f.path.stat().st_size if f.present else f.size_bytes,
                    "sha256": f.sha256,
                    "present": f.present,
                }
                for f in self.files
            ],
        }


def read_card(folder: Path) -> Card:
    """Parse a set's README.md; DataError if it names no files with their sha256."""
    readme = folder / "README.md"
    try:
        text = readme.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {readme}: {error}") from None
    files = _files(text, folder)
    if not files:
        raise DataError(f'{readme} lists no files: expected a table "| file | bytes | sha256 |"')
    first = text.strip().splitlines()[0].lstrip("# ").strip()
    title = first.removeprefix(folder.name).lstrip(":—– ").strip()
    return Card(folder.name, title, _source(text), _licence(text), folder, tuple(files))


# --- files ------------------------------------------------------------------------------------------------------------


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def _number(text: str) -> int | None:
    digits = text.replace(",", "").replace("_", "")
    return int(digits) if digits.isdigit() else None


def _files(text: str, folder: Path) -> list[DataFile]:
    found: dict[str, DataFile] = {}
    header: list[str] = []
    pair: dict[str, str] = {}
    for line in text.splitlines():
        if match := _SUM_LINE.match(line):
            found[match[2]] = DataFile(_inside(folder, match[2]), match[1], None)
        if not line.lstrip().startswith("|"):
            header = []
            continue
        cells = _cells(line)
        if not header:
            header = [cell.lower() for cell in cells]
            continue
        if header[0] == "file" and len(cells) == len(header):
            row = dict(zip(header, cells, strict=True))
            digest = next((row[k] for k in ("sha256", "sha256 (as stored)") if k in row), "")
            if _SHA256.fullmatch(digest):
                size = _number(row.get("bytes", ""))
                found[cells[0]] = DataFile(_inside(folder, cells[0]), digest, size)
        elif len(cells) == 2:
            pair.setdefault(cells[0].lower(), cells[1])
    if not found and "file" in pair and (digest_match := _SHA256.search(pair.get("sha256", ""))):
        name, _, rest = pair["file"].partition("`")
        size_match = re.search(r"([\d,]+) bytes", rest)
        found[name] = DataFile(_inside(folder, name), digest_match[0], _number(size_match[1]) if size_match else None)
    return list(found.values())


def _inside(folder: Path, name: str) -> Path:
    """folder/name, refused where it would lead out of the folder."""
    if not name or "/" in name or "\\" in name or name in (".", ".."):
        raise DataError(f'{folder / "README.md"}: "{name}" is not the name of a file in this folder')
    return folder / name


# --- prose ------------------------------------------------------------------------------------------------------------


def _paragraph(text: str, start: int) -> str:
    """The text from `start` to the end of its paragraph, list item or table cell, on one line."""
    rest = text[start:]
    end = re.search(r"\n\s*\n|\n[-|#*]|\n(?=[A-Z][a-z]+( of the \w+)?:)|\|\s*\n", rest)
    return " ".join(rest[: end.start() if end else None].split()).strip("| ")


def _source(text: str) -> str:
    match = re.search(r"^(?:- |\| )?(?:Sources?|Original)(?::| \|)\s*", text, re.M)
    if match is None:
        return "see its README"
    found = re.split(r"\.? (?:Use|Licence[^:.|]{0,20}|Authors|Cite|Taken): ", _paragraph(text, match.end()))[0]
    link = _LINK.search(text)
    return f"{found} ({link[0]})" if link and link[0] not in found else found


def _licence(text: str) -> str:
    """The licence as stated: "Licence: ..." in any of its forms, else every phrase that names one."""
    stated = re.search(r"\bLicence(?: of the \w+)?(?::| \|)\s*", text) or re.search(r"\b\w+ data licence:\s*", text)
    if stated:
        found = re.split(r"(?<=[A-Za-z0-9)])[.;] (?=[A-Z0-9])", _paragraph(text, stated.end()))[0].rstrip(".")
        return found + ")" * (found.count("(") - found.count(")"))
    named = re.findall(
        r"\b(?:\w+ )?licence(?: of the \w+)?:? [A-Z][\w+-]*(?:\.\d+)*(?: \d+\.\d+)?", " ".join(text.split())
    )
    return "; ".join(dict.fromkeys(named)) or "see its README"
