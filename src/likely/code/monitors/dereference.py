"""After a dot: only members that the receiver has (Agrawal et al. 2023, the paper's first monitor)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from likely.code.analysis.members import Answer, Kind
from likely.code.analysis.python_lexer import Lexed
from likely.code.buffer import CodeBuffer
from likely.code.monitors.names import NameMonitor

OWN = re.compile(r"(?<![\w.])(self|cls|super\(\))\s*\.\s*$")


@dataclass(frozen=True, eq=False)
class DereferenceMonitor(NameMonitor):
    """Triggered by the dot of a member access; not in strings, comments, numbers and imports.

    unknown  "free": no constraint where the receiver may have members that the analyser cannot see (`__getattr__`);
             "strict": only those that it sees.  A receiver of unknown type is never constrained

    Names that begin with _ are legal after self, cls and super(), or when the prompt has the _ already.
    """

    unknown: Literal["free", "strict"] = "free"

    name: ClassVar[str] = "dereference"
    kind: ClassVar[Kind] = "members"
    look_back: ClassVar[re.Pattern[str]] = re.compile(r"(\.)\s*\w*\Z")
    crossing: ClassVar[re.Pattern[bytes]] = re.compile(rb"\.\s*[A-Za-z_\x80-\xff]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unknown not in ("free", "strict"):
            raise ValueError(f"unknown must be free or strict, got {self.unknown!r}")

    def triggers(self, before: Lexed, byte: int, after: Lexed) -> bool:
        return byte == 46 and after.member

    def legal(self, answer: Answer, buffer: CodeBuffer, typed: bytes) -> Iterable[str] | None:
        if answer.dynamic and self.unknown == "free":
            return None
        private = typed.startswith(b"_") or OWN.search(buffer.prefix) is not None
        return [m.name for m in answer.members if private or not m.name.startswith("_")]
