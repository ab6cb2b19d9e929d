"""Where a piece of generated Python ends: with its line, or with the function that it was written in."""

from __future__ import annotations

import re

from likely.code.analysis.python_lexer import START, Lexed, step

DEF = re.compile(r"^([ \t]*)(?:async[ \t]+)?def\b")


class NoEnd:
    """Never: only the model and max_tokens end the piece.

    prefix  the text before the generated one
    """

    def __init__(self, prefix: str = ""):
        self._lexed = START.feed(prefix.encode())
        self._at = 0  # characters pushed so far

    def push(self, text: str) -> int | None:
        """The next characters; where (in all that was pushed) the piece ends, None if it has not."""
        for character in text:
            before = self._lexed
            for byte in character.encode():
                self._lexed = step(self._lexed, byte)
            if (end := self._end(character, before)) is not None:
                return end
            self._at += 1
        return None

    def _end(self, character: str, before: Lexed) -> int | None:
        """Where the piece ends, if this character, read in the state `before`, ends it."""
        return None


class LineEnd(NoEnd):
    """The first line break in code that is in no bracket opened since."""

    def __init__(self, prefix: str):
        super().__init__(prefix)
        self._depth = len(self._lexed.frames)

    def _end(self, character: str, before: Lexed) -> int | None:
        over = character == "\n" and len(self._lexed.frames) <= self._depth and not before.escaped
        return self._at if over else None


class MethodEnd(NoEnd):
    """The first line that is not indented more than the `def` around the cursor; comments and blank lines aside."""

    def __init__(self, prefix: str):
        super().__init__(prefix)
        self._indent = enclosing_indent(prefix)
        self._line: int | None = None  # where the present line begins, while only blanks of it were seen
        self._last_text = 0  # behind the last character that is no blank

    def _end(self, character: str, before: Lexed) -> int | None:
        if character not in " \t\n":
            if self._line is not None:
                if self._indent is not None and character != "#" and self._at - self._line <= self._indent:
                    return self._last_text
                self._line = None
            self._last_text = self._at + 1
        if character == "\n" and not self._lexed.frames and not before.escaped:
            self._line = self._at + 1
        return None


def enclosing_indent(prefix: str) -> int | None:
    """Columns before the `def` of the function that the end of `prefix` stands in; None outside of functions."""
    lines = prefix.split("\n")
    last = lines[-1]
    if match := DEF.match(last):
        return len(match[1])
    here = len(last) - len(last.lstrip())
    if not last.strip() and not last:  # an empty line: as deep as the code above it
        above = next((line for line in reversed(lines) if line.strip()), "")
        here = len(above) - len(above.lstrip()) + (1 if DEF.match(above) else 0)
    for line in reversed(lines[:-1]):
        match = DEF.match(line)
        if match and len(match[1]) < here:
            return len(match[1])
    return None
