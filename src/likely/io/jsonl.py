"""JSON lines in, JSON lines out: errors that name file and line, and results that survive a kill at any moment.

A results file begins with a header line (model, tokenizer, settings, version); then one line per input line, in input
order, each with the number and hash of its input line.  Writing is append-only and by one process at a time; a line
cut by a kill is dropped and done again.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from likely.errors import DataError, names_in, shortened
from likely.io.hashes import fingerprint

MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Line:
    """One input record and where it stood."""

    number: int  # 1-based
    record: dict[str, Any]
    digest: str  # of the raw line


def read_lines(path: str | Path) -> Iterator[Line]:
    """Records of a JSONL file (or .gz; "-": standard input), blank lines skipped; DataError names file and line."""
    for found in _read(path):
        if isinstance(found, DataError):
            raise found
        yield found


def _read(path: str | Path, bare: str | None = None) -> Iterator[Line | DataError]:
    """Records, or what is wrong with a line, in order."""
    name = "stdin" if str(path) == "-" else str(path)
    try:
        source = _open(path)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from None
    with source:
        for number, (raw, size) in enumerate(_raw_lines(source, name), 1):
            if not raw.strip():
                continue
            try:
                yield Line(number, parse_line(raw, f"{name}:{number}", size=size, bare=bare), line_digest(raw))
            except DataError as error:
                yield error


def _open(path: str | Path) -> IO[bytes]:
    if str(path) == "-":
        return sys.stdin.buffer
    if str(path).endswith(".gz"):
        import gzip

        return cast("IO[bytes]", gzip.open(path, "rb"))
    return open(path, "rb")


def _raw_lines(source: IO[bytes], name: str) -> Iterator[tuple[bytes, int]]:
    """(line, its bytes); of a line that is too long only the beginning is held."""
    try:
        while raw := source.readline(MAX_LINE_BYTES + 1):
            size, last = len(raw), raw
            while len(last) > MAX_LINE_BYTES and not last.endswith(b"\n"):
                last = source.readline(MAX_LINE_BYTES + 1)
                size += len(last)
            yield raw, size
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz file that is cut or damaged
        raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None


@dataclass(frozen=True)
class Checked:
    """The records of a file that can be used, and what was wrong with the others."""

    lines: list[Line]
    bad: list[DataError]  # one per line left out, in order

    @property
    def total(self) -> int:
        return len(self.lines) + len(self.bad)


def read_checked(
    path: str | Path,
    check: Callable[[Line], object],
    *,
    skip: bool = False,
    limit: int | None = None,
    bare: str | None = None,
) -> Checked:
    """All records of a file, each given to `check`, which raises DataError for one that cannot be used.

    skip   leave out bad lines; otherwise the first one is the error
    limit  read so many records at most, bad ones included
    bare   a line that is a string is a record with this one field
    """
    checked = Checked([], [])
    for found in itertools.islice(_read(path, bare), limit):
        try:
            if isinstance(found, DataError):
                raise found
            check(found)
        except DataError as error:
            if not skip:
                raise
            checked.bad.append(error)
        else:
            checked.lines.append(found)
    return checked


def line_digest(raw: bytes) -> str:
    return fingerprint(raw.strip())


def parse_line(raw: bytes, where: str, *, size: int | None = None, bare: str | None = None) -> dict[str, Any]:
    """One JSON object of finite numbers and real text; DataError with `where` otherwise.

    size  bytes of the line in its file, where `raw` is only its beginning
    bare  the field that a line is which is only a string
    """
    size = len(raw) if size is None else size
    if size > MAX_LINE_BYTES:
        raise DataError(f"{where}: the line has {size:,} bytes, at most {MAX_LINE_BYTES:,} are read")
    try:
        record = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
        if b"\\u" in raw:
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: holds half a character (a lone surrogate such as \\ud800)") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if bare is not None and isinstance(record, str):
        return {bare: record}
    if not isinstance(record, dict):
        raise DataError(f'{where}: expected an object like {{"prompt": "..."}}, found {type(record).__name__}')
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def text_field(line: Line, name: str, where: str) -> str:
    """A field that must be a string."""
    value = line.record.get(name)
    if name not in line.record:
        raise DataError(f'{where}:{line.number}: field "{name}" is missing (found: {names_in(line.record)})')
    if not isinstance(value, str):
        raise DataError(f'{where}:{line.number}: field "{name}" must be a string, found {type(value).__name__}')
    return value


class Results:
    """Append-only results, resumable.  With path None they go to standard output and cannot resume.

    header  what the numbers depend on; a file made with another header is refused, so that runs never mix
    """

    def __init__(self, path: Path | None, header: dict[str, Any], *, overwrite: bool = False):
        self.path, self.header = path, header
        self.done: dict[int, str] = {}  # input line number -> its hash
        self._places: list[tuple[int, int]] = []  # (input line number, where its record begins in the file)
        self._file: IO[bytes] | None = None
        if path is None:
            return
        _encoded(header)  # what is no JSON is refused before there is a file
        self._file = open_alone(path)
        try:
            if overwrite:
                self._file.truncate(0)
            self._resume(self._file)
        except BaseException:
            self._file.close()
            raise

    def _resume(self, file: IO[bytes]) -> None:
        """Take over the whole lines of an earlier run and drop one that was cut by a kill."""
        good = 0
        file.seek(0)
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                if number == 1 and not _encoded(self.header).startswith(raw):
                    raise DataError(f"{self.path} is not a results file: choose another file or --overwrite")
                break
            record = parse_line(raw, f"{self.path}:{number}")
            if number == 1:
                self._check_header(record)
            elif isinstance(record.get("line"), int):
                self.done[record["line"]] = str(record.get("input", ""))
                self._places.append((record["line"], good))
            else:
                raise DataError(f'{self.path}:{number}: field "line" is missing: this is not a results file')
            good += len(raw)
        file.truncate(good)
        file.seek(good)
        if good == 0:
            self._write(self.header)

    def _check_header(self, found: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps(self.header))
        for key in wanted.keys() | found.keys():
            if found.get(key) != wanted.get(key):
                raise DataError(
                    f"{self.path} was made with another {key} "
                    f"({_short(found.get(key))}, now {_short(wanted.get(key))}): "
                    f"choose another file or --overwrite"
                )

    def is_done(self, line: Line, where: str) -> bool:
        """Whether this input line has its result; DataError if the input was changed since."""
        digest = self.done.get(line.number)
        if digest is None:
            return False
        if digest != line.digest:
            raise DataError(
                f"{where}:{line.number} has changed since {self.path} was begun: choose another file or --overwrite"
            )
        return True

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records and hand them to the operating system."""
        for record in records:
            self._write(record, flush=False)
        self._flush()

    def take_back(self) -> int | None:
        """Remove the last record from the file, that of an earlier run, too; gives its input line's number."""
        if self._file is None or not self._places:
            return None
        number, start = self._places.pop()
        self._file.flush()
        self._file.truncate(start)
        self._file.seek(start)
        self.done.pop(number, None)
        return number

    def _write(self, record: dict[str, Any], *, flush: bool = True) -> None:
        raw = _encoded(record)
        if self._file is not None:
            if "line" in record:
                self._places.append((record["line"], self._file.tell()))
                self.done[record["line"]] = str(record.get("input", ""))
            self._file.write(raw)
        else:
            sys.stdout.buffer.write(raw)
        if flush:
            self._flush()

    def _flush(self) -> None:
        (self._file or sys.stdout.buffer).flush()

    def __enter__(self) -> Results:
        if self.path is None:
            self._write(self.header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _short(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))


def _encoded(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def open_alone(path: Path) -> IO[bytes]:
    """The file, to read and append to, locked against other processes until it is closed."""
    try:
        file = open(path, "a+b")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        _lock(file)
    except BlockingIOError:
        file.close()
        raise DataError(f"{path} is being written by another process: wait for it or choose another file") from None
    return file


def _lock(file: IO[bytes]) -> None:
    """Advisory, for as long as the file is open; BlockingIOError if it is taken."""
    if os.name == "nt":
        import msvcrt

        file.seek(2**40)  # a byte that no line reaches: locked bytes cannot be read by others
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            raise BlockingIOError from None
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return


# Work is done in fixed chunks of input lines, so that a run that was stopped ends with the digits of an unbroken one:
# the last digits of a log-probability may depend on what is computed in the same call.  A chunk is computed together;
# one that was cut is computed whole again, and only its missing lines are written.
T = TypeVar("T")
CHUNK = 128  # lines scored together: enough to fill calls and share prefixes, few enough to lose on a kill


def chunked(items: Sequence[T], size: int = CHUNK) -> list[Sequence[T]]:
    """The items in runs of `size`, the last one shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def unfinished(lines: Sequence[Line], results: Results, where: str, *, size: int = CHUNK) -> list[Sequence[Line]]:
    """The chunks of which at least one line has no result yet; DataError if a finished line was changed since."""
    return [chunk for chunk in chunked(lines, size) if not all([results.is_done(line, where) for line in chunk])]
