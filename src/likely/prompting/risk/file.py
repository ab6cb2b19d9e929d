"""Rows of a CSV or JSONL file, numbered and hashed, so that results can be matched with them and resumed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from typing import IO

from likely.errors import DataError
from likely.io.jsonl import Line, line_digest, read_lines


def read_table(path: str, *, limit: int | None = None) -> list[Line]:
    """The rows of a table with a header (.csv, .tsv; "-": CSV from standard input) or of a .jsonl file; .gz, too.

    A row's number is 1 for the first below the header.  DataError names file and line.
    """
    name = path.removesuffix(".gz")
    rows: Iterator[Line] = read_lines(path) if name.endswith((".jsonl", ".ndjson")) else _csv_rows(path)
    found = []
    for line in rows:
        found.append(line)
        if limit is not None and len(found) == limit:
            break
    if not found:
        raise DataError(f"{path} holds no rows: expected a header line with the columns' names, then one row a line")
    return found


def _csv_rows(path: str) -> Iterator[Line]:
    where = "stdin" if path == "-" else path
    try:
        with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter="\t" if path.removesuffix(".gz").endswith(".tsv") else ",", strict=True)
            header = next(reader, None)
            if not header:
                raise DataError(f"{where}: empty; expected a header line with the columns' names")
            if len(set(header)) != len(header):
                twice = next(column for column in header if header.count(column) > 1)
                raise DataError(f'{where}: the header names the column "{twice}" twice')
            for number, cells in enumerate((cells for cells in reader if cells), 1):
                if len(cells) != len(header):
                    raise DataError(f"{where}:{reader.line_num}: {len(cells)} cells, the header has {len(header)}")
                record = dict(zip(header, cells, strict=True))
                yield Line(number, record, line_digest(json.dumps(record).encode()))
    except csv.Error as error:
        raise DataError(f"{where}: not CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz file that is cut or damaged
        raise DataError(f"cannot read {where}: {getattr(error, 'strerror', None) or error}") from None


def _open(path: str) -> IO[bytes]:
    if path == "-":
        return io.BytesIO(sys.stdin.buffer.read())
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]
