"""After `case `: only members of the enum that the subject of the `match` statement is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from likely.code.analysis.members import Answer, Kind
from likely.code.analysis.python_lexer import Lexed
from likely.code.buffer import CodeBuffer
from likely.code.monitors.names import NameMonitor


class EnumCaseMonitor(NameMonitor):
    """Legal are the qualified members (`Color.RED`) and the wildcard `_`; the dot does not end a name here."""

    name: ClassVar[str] = "enum_case"
    kind: ClassVar[Kind] = "cases"
    look_back: ClassVar[re.Pattern[str]] = re.compile(r"(?:^|\n)[ \t]*case([ \t])[ \t]*[\w.]*\Z")
    extra: ClassVar[bytes] = b"."
    crossing: ClassVar[re.Pattern[bytes]] = re.compile(rb"(^|case)[ \t]+[A-Za-z_\x80-\xff]")

    def triggers(self, before: Lexed, byte: int, after: Lexed) -> bool:
        return byte in b" \t" and before.in_code and before.first is None and before.word == b"case"

    def legal(self, answer: Answer, buffer: CodeBuffer, typed: bytes) -> Iterable[str] | None:
        return [*(member.name for member in answer.members), "_"] if answer.members else None
