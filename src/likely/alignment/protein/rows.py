"""Proteins and their superfamilies, from a JSON-lines file or a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likely.data.datasets import load_records
from likely.errors import DataError
from likely.io.jsonl import read_lines


@dataclass(frozen=True)
class ProteinRow:
    """A sequence and the superfamily it belongs to ("" where that is not known); where: of error messages."""

    sequence: str
    superfamily: str = ""
    where: str = ""


def read_proteins(source: str, *, superfamily: str = "family") -> list[ProteinRow]:
    """Rows of a JSON-lines file with "sequence" and, where there is one, a superfamily.

    source       a file, or a data set and its split, as in "protein-families:train"
    superfamily  the field that holds it
    """
    rows = []
    for where, record in _records(source):
        sequence, name = record.get("sequence"), record.get(superfamily, "")
        if not isinstance(sequence, str) or not isinstance(name, str):
            found = ", ".join(sorted(record))
            raise DataError(f'{where}: expected strings in "sequence" and "{superfamily}" (found: {found})')
        rows.append(ProteinRow(sequence.strip(), name.strip(), f"{where}: "))
    if not rows:
        raise DataError(f"{source}: no proteins")
    return rows


def _records(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if Path(source).suffix in (".jsonl", ".gz") or Path(source).exists():
        for line in read_lines(source):
            yield f"{source}:{line.number}", line.record
        return
    name, _, split = source.partition(":")
    for number, record in enumerate(load_records(name, split or None), 1):
        yield f"{source}, row {number}", record


def balanced(rows: Sequence[ProteinRow], most: int) -> list[ProteinRow]:
    """At most `most` rows of each superfamily, the same ones for the same rows; their order stays."""
    if most < 1:
        raise ValueError(f"most must be >= 1, got {most}")

    def rank(row: ProteinRow) -> str:
        return hashlib.sha256(row.sequence.encode()).hexdigest()

    kept = set()
    for name in {row.superfamily for row in rows}:
        own = sorted((i for i, row in enumerate(rows) if row.superfamily == name), key=lambda i: rank(rows[i]))
        kept.update(own[:most])
    return [row for i, row in enumerate(rows) if i in kept]


def with_superfamily(rows: Sequence[ProteinRow], check: Callable[[str, str], object]) -> list[ProteinRow]:
    """The same rows; DataError that names the first one without a superfamily, or what `check` refuses of its name."""
    for row in rows:
        if not row.superfamily:
            raise DataError(f"{row.where}this row has no superfamily, which both tasks of stage 2 need")
        check(row.superfamily, row.where)
    return list(rows)
