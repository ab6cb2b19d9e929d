"""The machine that most monitors are: wait for a trigger, ask for legal names, hold the text to one of them.

States: `WaitingForTrigger` (s_0), `WaitingForAnalysis`, `WritingName` (what is left of each legal name).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal

from likely.code.analysis.members import Analyses, AnalysisKind, AnalysisReply
from likely.code.analysis.python_lexer import NAME_BYTES, START, Lexed, is_number, step
from likely.code.buffer import CodeBuffer
from likely.code.monitors.monitor import AcrossTrigger, MonitorState, Walk
from likely.code.name_masks import BLANKS, NameMasks, Names, Space, breaks, masks_for
from likely.decoding.constraint import Mask, mask_of
from likely.guided.vocabulary import Vocabulary

INDENTATION = 64  # blanks after a line break, before the name must come


@dataclass(frozen=True, eq=False)
class NameMonitor(ABC):
    """A monitor of names; a subclass says what triggers it and which names an answer makes legal.

    analyses        where it asks
    across_trigger  a token that holds the trigger and goes on: "check": ask at the trigger inside it, and choose again
                    if the rest is illegal; "split": never, so that a token ends at the trigger; "allow": unmonitored
    """

    analyses: Analyses
    across_trigger: AcrossTrigger = "check"

    name: ClassVar[str]
    kind: ClassVar[AnalysisKind]
    look_back: ClassVar[re.Pattern[str]]  # at the end of a text: group 1 ends with the trigger's last character
    extra: ClassVar[bytes] = b""  # bytes that do not end a name here
    instead: ClassVar[bytes] = b""  # bytes that may stand in place of a name
    crossing: ClassVar[re.Pattern[bytes]]  # tokens that may hold the trigger and go on

    def __post_init__(self) -> None:
        if self.across_trigger not in ("check", "split", "allow"):
            raise ValueError(f"across_trigger must be check, split or allow, got {self.across_trigger!r}")

    @property
    def judges_late(self) -> bool:
        return self.across_trigger == "check"

    @abstractmethod
    def triggers(self, before: Lexed, byte: int, after: Lexed) -> bool:
        """Whether this byte makes a name due."""

    @abstractmethod
    def legal(self, answer: AnalysisReply, buffer: CodeBuffer, typed: bytes) -> Iterable[str] | None:
        """The legal names; None: no constraint.  typed: what of the name the prompt already has."""

    def start(self, buffer: CodeBuffer, vocabulary: Vocabulary) -> MonitorState:
        idle = WaitingForTrigger(BoundMonitor(self, masks_for(vocabulary, self.extra, self.instead)))
        found = self.look_back.search(buffer.prefix)
        if found is None:
            return idle
        at = found.end(1)
        before = START.feed(buffer.prefix[: at - 1].encode())
        byte = ord(buffer.prefix[at - 1])
        if not self.triggers(before, byte, step(before, byte)):
            return idle
        tail = buffer.prefix[at:]
        typed = tail.lstrip().encode()
        asked = CodeBuffer(buffer.path, buffer.prefix[:at] + buffer.suffix, at, buffer.project_root)
        return WaitingForAnalysis(idle.bound, asked, typed, bool(tail) and not typed)


@dataclass(eq=False)
class BoundMonitor:
    """A monitor and the masks for one vocabulary."""

    monitor: NameMonitor
    masks: NameMasks
    _crossing: dict[tuple, Mask] = field(default_factory=dict)

    @cached_property
    def _candidates(self) -> list[tuple[bytes, tuple[int, ...]]]:
        pattern = self.monitor.crossing
        return [(text, ids) for text, ids in self.masks.vocabulary.ids_of.items() if pattern.search(text)]

    def crossing(self, lexed: Lexed) -> Mask:
        """The tokens that, from this place, trigger the monitor before their last byte and go on with a name."""
        key = (
            lexed.frames[-1:], lexed.value, is_number(lexed.word), lexed.imports, lexed.comment, lexed.opening,
            lexed.escaped, lexed.run, lexed.brace, lexed.first, lexed.word if lexed.first is None else b"",
        )  # fmt: skip
        if key not in self._crossing:
            ids = [i for text, found in self._candidates if self._crosses(text, lexed) for i in found]
            self._crossing[key] = mask_of(ids, self.masks.vocabulary.size)
        return self._crossing[key]

    def _crosses(self, text: bytes, lexed: Lexed) -> bool:
        for at, byte in enumerate(text):
            after = step(lexed, byte)
            rest = text[at + 1 :].lstrip()
            if rest and rest[0] in NAME_BYTES and self.monitor.triggers(lexed, byte, after):
                return True
            lexed = after
        return False


@dataclass(frozen=True, eq=False)
class WaitingForTrigger(MonitorState):
    """s_0: nothing is due."""

    bound: BoundMonitor

    def step(self, byte: int, walk: Walk) -> MonitorState | None:
        monitor = self.bound.monitor
        if not monitor.triggers(walk.before, byte, walk.after) or (monitor.across_trigger == "allow" and not walk.last):
            return self
        asked = WaitingForAnalysis(self.bound, walk.so_far())
        walk.ask(asked)
        return asked

    def mask(self, lexed: Lexed) -> tuple[Mask | None, bool]:
        return _without_crossing(self.bound, lexed, None)


@dataclass(eq=False)
class WaitingForAnalysis(MonitorState):
    """A name is due and the analysis was asked which.  typed: what of it the prompt has;  blank: it has blanks."""

    bound: BoundMonitor
    buffer: CodeBuffer
    typed: bytes = b""
    blank: bool = False
    _future: Future[AnalysisReply] | None = None

    def asked(self) -> Future[AnalysisReply]:
        if self._future is None:
            self._future = self.bound.monitor.analyses.ask(self.bound.monitor.kind, self.buffer)
        return self._future

    def answer(self) -> AnalysisReply:
        return self.asked().result()

    def settled(self) -> MonitorState:
        names = None
        answer = self.answer()
        if answer.status == "answered":
            names = self.bound.monitor.legal(answer, self.buffer, self.typed)
        left = frozenset(
            name.encode()[len(self.typed) :] for name in names or () if name.encode().startswith(self.typed)
        )
        if not left:
            return WaitingForTrigger(self.bound)
        return WritingName(self.bound, left, "" if self.typed or self.blank else "start", True)

    @property
    def monitor_name(self) -> str:
        return self.bound.monitor.name

    def step(self, byte: int, walk: Walk) -> MonitorState | None:
        if self.bound.monitor.across_trigger == "split" and not walk.first and byte in NAME_BYTES:
            return None
        return self.settled().step(byte, walk)

    def idle(self) -> MonitorState:
        return WaitingForTrigger(self.bound)


@dataclass(frozen=True, eq=False)
class WritingName(MonitorState):
    """One of `names` is to be written.

    blanks     which may still come first: one, or (in brackets) a line break and an indentation; "": none, or the name
               has begun
    untouched  nothing of it was generated
    """

    bound: BoundMonitor
    names: Names
    blanks: Literal["", "start", "break", "indent"]
    untouched: bool
    indentation: int = 0

    def step(self, byte: int, walk: Walk) -> MonitorState | None:
        if self.blanks and byte in BLANKS:
            return self._blank(byte, bool(walk.before.frames))
        if self.untouched and byte in self.bound.monitor.instead:
            return WaitingForTrigger(self.bound)
        left = frozenset(name[1:] for name in self.names if name and name[0] == byte)
        if left:
            return replace(self, names=left, blanks="", untouched=False)
        if b"" in self.names and breaks(walk.rest, self.bound.monitor.extra):
            return WaitingForTrigger(self.bound).step(byte, walk)
        return None

    def _blank(self, byte: int, lines: bool) -> MonitorState | None:
        if self.blanks == "indent":
            return replace(self, indentation=self.indentation + 1) if byte in b" \t" else None
        if byte in b" \t":
            return replace(self, blanks="break" if lines else "") if self.blanks == "start" else None
        if not lines:
            return None
        return replace(self, blanks="indent") if byte == 10 else replace(self, blanks="break")

    def mask(self, lexed: Lexed) -> tuple[Mask | None, bool]:
        space: Space
        if self.blanks == "start":
            space = "lines" if lexed.frames else "one"
        else:
            space = self.blanks if self.indentation < INDENTATION else ""
        return _without_crossing(self.bound, lexed, self.bound.masks.allowed(self.names, space))

    def may_end(self) -> bool:
        return b"" in self.names

    def forced(self) -> bytes:
        return next(iter(self.names)) if len(self.names) == 1 else b""

    def idle(self) -> MonitorState:
        return WaitingForTrigger(self.bound)

    def choices(self) -> Names:
        return self.names if self.untouched else frozenset()

    def chosen(self, names: Names) -> MonitorState:
        return replace(self, names=self.names & names)


def _without_crossing(bound: BoundMonitor, lexed: Lexed, mask: Mask | None) -> tuple[Mask | None, bool]:
    """(the mask as `across_trigger` wants it, whether it holds tokens that only a walk can judge)"""
    if bound.monitor.across_trigger == "allow":
        return mask, False
    crossing = bound.crossing(lexed)
    if bound.monitor.across_trigger == "check":
        return mask, bool((crossing if mask is None else crossing & mask).any())
    vocabulary = bound.masks.vocabulary
    return (vocabulary.text_mask | vocabulary.end_mask if mask is None else mask) & ~crossing, False
