"""Data sets by name: where they lie, what they are (source, licence, hashes), and their records.

Data sets are never inside the package.  A set is a folder NAME with a README.md that states source, licence and the
sha256 of each file; the folder of all sets is given by an argument, by LIKELY_DATA, or lies in ../shared/data beside a
checkout.  Every file is checked against its sha256 before it is used; a file that has not changed is hashed once.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.data.manifest import Card, DataFile, read_card
from likely.errors import DataError, nearest
from likely.io.checkout import find_checkout
from likely.io.jsonl import parse_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Card", "DataFile", "arrays", "available", "info", "load", "path", "root"]

LINES = (".txt", ".raw")
TABLES = {".csv": ",", ".tsv": "\t"}
READABLE = (".jsonl", *TABLES, *LINES, ".npz")


def root(data_dir: str | Path | None = None) -> Path:
    """The folder that holds the data sets; DataError that says how to set it."""
    given = data_dir or os.environ.get("LIKELY_DATA")
    if given:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            origin = "the data folder" if data_dir else "LIKELY_DATA"
            raise DataError(f"{origin} {folder} is not a folder: give the folder that holds the data sets")
        return folder
    checkout = find_checkout()
    beside = checkout.parent / "shared" / "data" if checkout else None
    if beside is None or not beside.is_dir():
        raise DataError(
            "no data sets on this machine: set LIKELY_DATA, or give --data-dir (data_dir=), to the folder that holds "
            "them, one folder with a README.md each; nothing is downloaded"
        )
    return beside


def available(data_dir: str | Path | None = None) -> list[str]:
    """Names of the sets in the data folder, sorted."""
    return sorted(entry.name for entry in root(data_dir).iterdir() if (entry / "README.md").is_file())


def info(name: str, *, data_dir: str | Path | None = None) -> Card:
    """What a set is, from its README; nothing is hashed."""
    folder = root(data_dir)
    known = available(folder)
    if name not in known:
        raise DataError(
            f'no data set is called "{name}" in {folder}{nearest(name, known)} (likely datasets lists them)'
        )
    return read_card(folder / name)


def path(name: str, file: str | None = None, *, data_dir: str | Path | None = None, verify: bool = True) -> Path:
    """The folder of a set, or one of its files (by full name, or by split: "test" finds mbpp.test.jsonl.gz).

    verify  compare sizes and sha256 with the README (of all files, where none is named)
    """
    card = info(name, data_dir=data_dir)
    chosen = card.files if file is None else (card.find(file),)
    if verify:
        for one in chosen:
            one.verify(card)
    return card.folder if file is None else chosen[0].path


def load(name: str, file: str | None = None, *, data_dir: str | Path | None = None) -> Iterator[dict[str, Any]]:
    """Records of one file, in order, read as they are asked for.

    file  full name or split; may be left out where the set has one file
    jsonl: the objects.  csv, tsv: {column: text}.  txt, raw: {"text": line}, blank lines included.  npz: {"name",
    "array"} for each array (`arrays` gives them as one dictionary).  All but npz may be gzipped.
    """
    card = info(name, data_dir=data_dir)
    chosen = card.find(file)
    chosen.verify(card)
    kind = chosen.kind
    if kind not in READABLE:
        raise DataError(
            f"{name}/{chosen.name} is not a file of records (readable: {', '.join(READABLE)}); "
            f'open it with likely.data.datasets.path("{name}", "{chosen.name}")'
        )
    if kind == ".npz":
        return ({"name": key, "array": value} for key, value in _read_arrays(chosen.path).items())
    return _records(chosen.path, kind)


def arrays(name: str, file: str | None = None, *, data_dir: str | Path | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file; a file with pickled objects is refused."""
    card = info(name, data_dir=data_dir)
    chosen = card.find(file, kinds=(".npz",))
    chosen.verify(card)
    return _read_arrays(chosen.path)


def _read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    import zipfile

    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as found:
            return {key: found[key] for key in found.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: not an npz file of plain arrays: {error}") from None


def _records(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    with _open(file) as raw:
        if kind == ".jsonl":
            for number, line in enumerate(raw, 1):
                if line.strip():
                    yield parse_line(line, f"{file}:{number}")
            return
        text = io.TextIOWrapper(raw, encoding="utf-8", newline="" if kind in TABLES else "\n")
        try:
            if kind in LINES:
                for line in text:
                    yield {"text": line.rstrip("\n")}
            else:
                yield from _rows(text, file, TABLES[kind])
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 ({error.reason})") from None


def _rows(text: io.TextIOWrapper, file: Path, delimiter: str) -> Iterator[dict[str, str]]:
    # quotes are plain characters in tab-separated files
    if delimiter == "\t":
        reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise DataError(f"{file}: empty; expected a header line with the columns' names")
        for row in reader:
            if len(row) != len(header):
                raise DataError(f"{file}:{reader.line_num}: {len(row)} columns, the header has {len(header)}")
            yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}") from None


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """Bytes of a file, unpacked where its name ends in .gz; DataError for a broken one."""
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as raw:
            yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: broken gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from None
