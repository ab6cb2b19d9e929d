"""Lines of a file in, a results file out: what every verb that takes a FILE does in the same way.

The input is read and checked before a model is loaded.  A verb then gives what its numbers depend on (the header) and
its work on chunks of lines; here is what makes the run resumable: lines that have a result are not done again, a chunk
that was cut is computed whole, and Ctrl-C says how far the file came.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeGuard, TypeVar

import typer

from likely.cli.flags import FileFlags
from likely.cli.options import refuse_same_file
from likely.cli.printing import progress
from likely.errors import CapabilityError, DataError, LikelyError, RemoteError
from likely.io.jsonl import CHUNK, Line, Results, chunked, read_checked, read_lines, unfinished
from likely.io.whole_file import check_target

T = TypeVar("T")
Advance = Callable[[int], None]
Chunks = Sequence[Sequence[Line]]
LineWork = Callable[[Chunks, Advance], Iterator[tuple[Line, Mapping[str, Any]]]]


@dataclass(eq=False)
class FileRun(Generic[T]):
    """The lines of an input and where their results go.

    where   the input's name in errors
    items   what the check made of each line, by its number
    output  None: standard output
    left_out  how many lines could not be used and were skipped
    new     numbers of the lines that `run` wrote
    """

    where: str
    lines: Sequence[Line]
    items: Mapping[int, T]
    output: Path | None
    overwrite: bool = False
    left_out: int = 0
    new: set[int] = field(default_factory=set)
    _kept: list[dict[str, Any]] = field(default_factory=list)

    def item(self, line: Line) -> T:
        return self.items[line.number]

    def run(
        self, header: Mapping[str, Any], work: LineWork, *, label: str = "", unit: str = "lines", size: int = CHUNK,
        count: Callable[[Line], int] | None = None, stdout: bool = True, keep: bool = False,
    ) -> None:  # fmt: skip
        """Do every line that has no result yet and write its record at once.

        header  what the numbers depend on: a file made with another one is refused
        work    (chunks, advance) -> (line, record) in the order of the lines; "line" and "input" are added here
        size    lines of a chunk;  count: steps of the progress bar per line, one if None
        stdout  without an output file records are printed, otherwise kept for `records`;  keep: kept, too
        """
        printed = self.output is not None or stdout
        results = Results(self.output, dict(header), overwrite=self.overwrite) if printed else None
        with nullcontext() if results is None else results:
            chunks = (
                chunked(self.lines, size) if results is None else unfinished(self.lines, results, self.where, size=size)
            )
            before = set() if results is None else set(results.done)
            steps = sum(1 if count is None else count(line) for chunk in chunks for line in chunk)
            try:
                with progress(steps if label else 0, label, unit=unit) as advance:
                    for line, fields in work(chunks, advance):
                        record = {"line": line.number, "input": line.digest, **fields}
                        if results is not None and not results.is_done(line, self.where):
                            results.write([record])
                        if keep or results is None:
                            self._kept.append(record)
            except KeyboardInterrupt:
                if self.output is not None and results is not None:
                    self.new = results.done.keys() - before
                    self._say(f"stopped: {len(self.new)} new, ", results, "; the same command goes on")
                raise
            self.new = set() if results is None else results.done.keys() - before
            if self.output is not None and results is not None and sys.stderr.isatty():
                self._say("", results, "")

    def _say(self, first: str, results: Results, last: str) -> None:
        done = sum(line.number in results.done for line in self.lines)
        typer.echo(f"{first}{done} of {len(self.lines)} lines are in {self.output}{last}", err=True)

    def records(self) -> list[dict[str, Any]]:
        """The records of these lines: those of the output, earlier runs' too, or those that were kept."""
        if self.output is None:
            return self._kept
        wanted = {line.number for line in self.lines}
        return [line.record for line in read_lines(self.output) if line.record.get("line") in wanted]

    def by_chunks(
        self, work: Callable[[Sequence[Line], Advance], Sequence[Mapping[str, Any]]], *, skip: bool = False
    ) -> LineWork:
        """Work that takes a chunk at a time and gives a record per line.

        A line that the model refuses is named: DataError, or with `skip` it is left out and counted.
        """

        def each(chunks: Chunks, advance: Advance) -> Iterator[tuple[Line, Mapping[str, Any]]]:
            for chunk in chunks:
                yield from self._together(chunk, work, advance, skip)

        return each

    def _together(
        self, lines: Sequence[Line], work: Callable[[Sequence[Line], Advance], Sequence[Mapping[str, Any]]],
        advance: Advance, skip: bool,
    ) -> Iterator[tuple[Line, Mapping[str, Any]]]:  # fmt: skip
        try:
            records = work(lines, advance)
        except (CapabilityError, RemoteError):  # the model's fault, not a line's
            raise
        except LikelyError:
            good = [line for line in lines if self._works(line, work, skip)]
            if len(good) == len(lines):
                raise
            lines, records = good, work(good, advance) if good else []
        yield from zip(lines, records, strict=True)

    def _works(self, line: Line, work: Callable[..., object], skip: bool) -> bool:
        try:
            work([line], lambda _: None)
        except LikelyError as error:
            message = f"{self.where}:{line.number}: {error}"
            if not skip:
                raise DataError(message) from None
            typer.echo(f"skipped: {message}", err=True)
            self.left_out += 1
            return False
        return True


def read_file(
    file: str, check: Callable[[Line, str], T], flags: FileFlags, *, expected: str, skip: bool = False,
    bare: str | None = None,
) -> FileRun[T]:  # fmt: skip
    """Read all lines of `file` ("-": standard input) and check that the output can be written.

    check     (line, name of the input) -> what the work needs of the line; DataError for one that cannot be used
    expected  what is said of a file without records, as in 'lines like {"prompt": "..."}'
    skip      name bad lines on stderr and leave them out; otherwise the first one is the error
    bare      a line that is a string is a record with this one field
    """
    check_output(file, flags.output)
    where, items = input_name(file), {}

    def keep(line: Line) -> None:
        items[line.number] = check(line, where)

    found = read_checked(file, keep, skip=skip, limit=flags.limit, bare=bare)
    for error in found.bad:
        typer.echo(f"skipped: {error}", err=True)
    if not found.lines:
        if found.bad:
            raise DataError(f"none of the {found.total} lines of {where} can be used")
        raise DataError(f"{where} holds no records: expected {expected}")
    return FileRun(where, found.lines, items, flags.output, flags.overwrite, len(found.bad))


def is_questions_file(argument: str | None) -> TypeGuard[str]:
    """Whether an argument names a file of questions: one word that ends in .jsonl or .jsonl.gz."""
    return argument is not None and argument.endswith((".jsonl", ".jsonl.gz")) and not any(map(str.isspace, argument))


def input_name(file: str) -> str:
    """How errors call an input."""
    return "stdin" if file == "-" else file


def check_output(file: str, output: Path | None) -> None:
    """Refuse an output that would replace the input or cannot be written, before a model is loaded."""
    refuse_same_file(file, output)
    if output is not None and (not output.exists() or output.is_dir()):
        check_target(output)
