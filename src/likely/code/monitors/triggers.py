"""Monitors of names, by what triggers them: a member access, a `case` on an enum, `raise` and `except`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from likely.code.analysis.members import AnalysisKind, AnalysisReply
from likely.code.analysis.python_lexer import Lexed
from likely.code.buffer import CodeBuffer
from likely.code.monitors.names import NameMonitor

OWN = re.compile(r"(?<![\w.])(self|cls|super\(\))\s*\.\s*$")


@dataclass(frozen=True, eq=False)
class DereferenceMonitor(NameMonitor):
    """After the dot of a member access only members of the receiver; not in strings, comments, numbers and imports.

    unknown  "free": no constraint where the receiver may have members that the analyser cannot see (`__getattr__`);
             "strict": only those that it sees.  A receiver of unknown type is never constrained

    Names that begin with _ are legal after self, cls and super(), or when the prompt has the _ already.
    Agrawal et al. 2023, the paper's first monitor.
    """

    unknown: Literal["free", "strict"] = "free"

    name: ClassVar[str] = "dereference"
    kind: ClassVar[AnalysisKind] = "members"
    look_back: ClassVar[re.Pattern[str]] = re.compile(r"(\.)\s*\w*\Z")
    crossing: ClassVar[re.Pattern[bytes]] = re.compile(rb"\.\s*[A-Za-z_\x80-\xff]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unknown not in ("free", "strict"):
            raise ValueError(f"unknown must be free or strict, got {self.unknown!r}")

    def triggers(self, before: Lexed, byte: int, after: Lexed) -> bool:
        return byte == 46 and after.member

    def legal(self, answer: AnalysisReply, buffer: CodeBuffer, typed: bytes) -> Iterable[str] | None:
        if answer.dynamic and self.unknown == "free":
            return None
        private = typed.startswith(b"_") or OWN.search(buffer.prefix) is not None
        return [m.name for m in answer.members if private or not m.name.startswith("_")]


class EnumCaseMonitor(NameMonitor):
    """After `case ` only qualified members (`Color.RED`) of the enum that is matched, and the wildcard `_`."""

    name: ClassVar[str] = "enum_case"
    kind: ClassVar[AnalysisKind] = "cases"
    look_back: ClassVar[re.Pattern[str]] = re.compile(r"(?:^|\n)[ \t]*case([ \t])[ \t]*[\w.]*\Z")
    extra: ClassVar[bytes] = b"."  # the dot does not end a name here
    crossing: ClassVar[re.Pattern[bytes]] = re.compile(rb"(^|case)[ \t]+[A-Za-z_\x80-\xff]")

    def triggers(self, before: Lexed, byte: int, after: Lexed) -> bool:
        return byte in b" \t" and before.in_code and before.first is None and before.word == b"case"

    def legal(self, answer: AnalysisReply, buffer: CodeBuffer, typed: bytes) -> Iterable[str] | None:
        return [*(member.name for member in answer.members), "_"] if answer.members else None


class InstantiationMonitor(NameMonitor):
    """After `raise ` and `except ` only names that may be raised (the paper's class-instantiation monitor, for Python).

    Legal are exception classes that are not abstract, and visible names that are no classes (variables, modules).  A
    bracket may stand there, too (`except (A, B)`).  Java and C# have `new`; Python has no word that only a class can
    follow, except where exceptions are due.
    """

    name: ClassVar[str] = "instantiation"
    kind: ClassVar[AnalysisKind] = "exceptions"
    look_back: ClassVar[re.Pattern[str]] = re.compile(r"\b(?:raise|except)([ \t])[ \t]*\w*\Z")
    instead: ClassVar[bytes] = b"("
    crossing: ClassVar[re.Pattern[bytes]] = re.compile(rb"(^|raise|except)[ \t]+[A-Za-z_\x80-\xff]")

    def triggers(self, before: Lexed, byte: int, after: Lexed) -> bool:
        return byte in b" \t" and before.in_code and before.first is None and before.word in (b"raise", b"except")

    def legal(self, answer: AnalysisReply, buffer: CodeBuffer, typed: bytes) -> Iterable[str] | None:
        return [member.name for member in answer.members]
