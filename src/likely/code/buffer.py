"""A file that is being written: what stands before the cursor, what after it, and the project around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from likely.errors import DataError
from likely.io.whole_file import read_text

CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class CodeBuffer:
    """text with a cursor in it.

    path          where the file lies or will lie (analysers resolve relative imports from it); "" for a loose text
    cursor        characters before the place where code is to be written; None: the end
    project_root  folder of the project; "" where there is none: the file is then analysed by itself
    """

    path: str
    text: str
    cursor: int | None = None
    project_root: str = ""

    def __post_init__(self) -> None:
        cursor = len(self.text) if self.cursor is None else self.cursor
        if not (isinstance(cursor, int) and 0 <= cursor <= len(self.text)):
            raise ValueError(f"cursor must lie in 0..{len(self.text)} (the text's length), got {cursor!r}")
        object.__setattr__(self, "cursor", cursor)
        if self.project_root and not Path(self.project_root).is_dir():
            raise DataError(f"project_root {self.project_root} is not a folder: give the project's folder, or none")

    @classmethod
    def from_file(
        cls, path: str | Path, line: int | None = None, column: int | None = None, *, project_root: str | Path = ""
    ) -> CodeBuffer:
        """A file with the cursor at `line` (from 1; None: the last) after `column` characters of it (None: all)."""
        path = Path(path)
        text = read_text(path)
        if not text.strip():
            raise DataError(f"{path} is empty: write the beginning of the code first")
        lines = text.split("\n")
        line = len(lines) if line is None else line
        if not 1 <= line <= len(lines):
            raise ValueError(f"line must lie in 1..{len(lines)} (the lines of {path}), got {line}")
        length = len(lines[line - 1])
        column = length if column is None else column
        if not 0 <= column <= length:
            raise ValueError(f"column must lie in 0..{length} (the length of line {line}), got {column}")
        cursor = sum(len(one) + 1 for one in lines[: line - 1]) + column
        return cls(str(path), text, cursor, str(project_root))

    @property
    def prefix(self) -> str:
        return self.text[: self.cursor]

    @property
    def suffix(self) -> str:
        return self.text[self.cursor :]

    def insert(self, text: str) -> CodeBuffer:
        """The buffer after `text` was written at the cursor."""
        return replace(self, text=self.prefix + text + self.suffix, cursor=len(self.prefix) + len(text))


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """(line from 1, column from 0) of a character offset."""
    before = text[:offset]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1)
