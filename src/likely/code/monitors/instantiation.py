"""After `raise ` and `except `: only names that may be raised (the paper's class-instantiation monitor, for Python).

Java and C# have `new`; Python has no word that only a class can follow, except where exceptions are due.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from likely.code.analysis.members import Answer, Kind
from likely.code.analysis.python_lexer import Lexed
from likely.code.buffer import CodeBuffer
from likely.code.monitors.names import NameMonitor


class InstantiationMonitor(NameMonitor):
    """Legal are exception classes that are not abstract, and visible names that are no classes (variables, modules).

    A bracket may stand there, too (`except (A, B)`).
    """

    name: ClassVar[str] = "instantiation"
    kind: ClassVar[Kind] = "exceptions"
    look_back: ClassVar[re.Pattern[str]] = re.compile(r"\b(?:raise|except)([ \t])[ \t]*\w*\Z")
    instead: ClassVar[bytes] = b"("
    crossing: ClassVar[re.Pattern[bytes]] = re.compile(rb"(^|raise|except)[ \t]+[A-Za-z_\x80-\xff]")

    def triggers(self, before: Lexed, byte: int, after: Lexed) -> bool:
        return byte in b" \t" and before.in_code and before.first is None and before.word in (b"raise", b"except")

    def legal(self, answer: Answer, buffer: CodeBuffer, typed: bytes) -> Iterable[str] | None:
        return [member.name for member in answer.members]
