"""Data sets by name: where they lie, what they are (source, licence, hashes), and their records.

Data sets are never inside the package.  A set is a folder NAME in the folder of all sets, which is given by an
argument, by LIKELY_DATA, or lies in ../shared/data beside a checkout.  Every file that a manifest states is checked
against its sha256 before it is used; a file that has not changed is hashed once.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.data.manifest import DataFile, DataSet, described_sets, undescribed_set
from likely.errors import DataError, nearest
from likely.io.checkout import find_checkout
from likely.io.jsonl import parse_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

LINES = (".txt", ".raw")
TABLES = {".csv": ",", ".tsv": "\t"}
READABLE = (".jsonl", *TABLES, *LINES, ".npz")


def data_root(data_dir: str | Path | None = None) -> Path:
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
            "them, one folder each; nothing is downloaded"
        )
    return beside


def list_sets(data_dir: str | Path | None = None) -> list[str]:
    """Names of the sets in the data folder, sorted."""
    folders = (entry for entry in data_root(data_dir).iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(folder.name for folder in folders)


def find_set(name: str, *, data_dir: str | Path | None = None) -> DataSet:
    """What a set is, from the manifest; nothing is hashed."""
    root = data_root(data_dir)
    described = described_sets(root)
    here = list_sets(root)
    if name in here:
        return described[name] if name in described else undescribed_set(root / name)
    if name in described:
        raise DataError(f"{name} is not in {root}. Source: {described[name].source}")
    raise DataError(f'no data set is called "{name}" in {root}{nearest(name, here)} (likely datasets lists them)')


def find_path(name: str, file: str | None = None, *, data_dir: str | Path | None = None, verify: bool = True) -> Path:
    """The folder of a set, or one of its files (by full name, or by split: "test" finds mbpp.test.jsonl.gz).

    verify  compare sizes and sha256 with the manifest (of all files, where none is named)
    """
    found = find_set(name, data_dir=data_dir)
    files = found.files if file is None else (found.find(file),)
    if verify:
        for one in files:
            _verify(found, one)
    return found.folder if file is None else files[0].path


def load_records(name: str, file: str | None = None, *, data_dir: str | Path | None = None) -> Iterator[dict[str, Any]]:
    """Records of one file, in order, read as they are asked for.

    file  full name or split; may be left out where the set has one file
    jsonl: the objects.  csv, tsv: {column: text}.  txt, raw: {"text": line}, blank lines included.  npz: {"name",
    "array"} for each array (`load_arrays` gives them as one dictionary).  All but npz may be gzipped.
    """
    found = find_set(name, data_dir=data_dir)
    one = found.find(file)
    _verify(found, one)
    if one.kind not in READABLE:
        raise DataError(
            f"{name}/{one.name} is not a file of records (readable: {', '.join(READABLE)}); "
            f'open it with likely.data.find_path("{name}", "{one.name}")'
        )
    if one.kind == ".npz":
        return ({"name": key, "array": value} for key, value in _read_arrays(one.path).items())
    return _records(one.path, one.kind)


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """Rows of a .csv or .tsv file (also .gz) with a header, {column: text}; DataError for any other file."""
    kind = file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix
    if kind not in TABLES:
        raise DataError(f"{file} is not a table: the name must end in {', '.join(TABLES)}, or in that and .gz")
    return _records(file, kind)


def load_arrays(name: str, file: str | None = None, *, data_dir: str | Path | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file; a file with pickled objects is refused."""
    found = find_set(name, data_dir=data_dir)
    one = found.find(file, kinds=(".npz",))
    _verify(found, one)
    return _read_arrays(one.path)


def _verify(found: DataSet, file: DataFile) -> None:
    found.verify(file)
    if not found.described:
        warnings.warn(f"{file.path} is in no manifest: read unverified", stacklevel=3)


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
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="" if kind in TABLES else "\n")
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
        if twice := [name for i, name in enumerate(header) if name in header[:i]]:
            raise DataError(f'{file}: two columns are called "{twice[0]}": rename one')
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
