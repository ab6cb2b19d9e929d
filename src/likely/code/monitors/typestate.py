"""After a dot: only methods that a protocol allows now (open before read, nothing after close).

The automaton is the user's.  Where an object stands in it is read off the text: the calls on the same receiver above
the cursor in the same function, in the order in which they are written; branches and loops are not followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from likely.code.analysis.members import AnalysisReply
from likely.code.analysis.python_lexer import START, step
from likely.code.buffer import CodeBuffer
from likely.code.monitors.triggers import DereferenceMonitor

RECEIVER = re.compile(r"([A-Za-z_][\w.]*)\s*\.\s*\Z")
FUNCTION = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+\w+", re.MULTILINE)


@dataclass(frozen=True)
class TypestateAutomaton:
    """start  the state of a fresh object;  steps: state -> {method: next state}"""

    start: str
    steps: Mapping[str, Mapping[str, str]]

    def __post_init__(self) -> None:
        known = set(self.steps)
        if self.start not in known:
            raise ValueError(
                f"the start state {self.start!r} has no entry in steps (states: {', '.join(sorted(known))})"
            )
        for state, methods in self.steps.items():
            for method, following in methods.items():
                if following not in known:
                    raise ValueError(f"{state!r} goes by {method!r} to {following!r}, which has no entry in steps")

    @property
    def methods(self) -> frozenset[str]:
        return frozenset(method for methods in self.steps.values() for method in methods)

    def after(self, calls: Iterable[str]) -> str | None:
        """The state after these calls; other methods change nothing.  None: a call was illegal."""
        state = self.start
        for call in calls:
            if call in self.methods:
                if call not in self.steps[state]:
                    return None
                state = self.steps[state][call]
        return state


@dataclass(frozen=True, eq=False)
class TypestateMonitor(DereferenceMonitor):
    """Active on receivers that have all methods of the automaton; members that it does not name are legal."""

    automaton: TypestateAutomaton = TypestateAutomaton("any", {"any": {}})

    name: ClassVar[str] = "typestate"

    def legal(self, answer: AnalysisReply, buffer: CodeBuffer, typed: bytes) -> Iterable[str] | None:
        names = super().legal(answer, buffer, typed)
        methods = self.automaton.methods
        found = RECEIVER.search(buffer.prefix)
        if names is None or found is None or not methods <= set(names):
            return names
        state = self.automaton.after(calls_on(found[1], buffer.prefix[: found.start()]))
        if state is None:  # the text above is wrong already: nothing can be said
            return names
        return [name for name in names if name not in methods or name in self.automaton.steps[state]]


def calls_on(receiver: str, code: str) -> list[str]:
    """Members called on a receiver in the last function of a text, in order; a new value for it begins anew."""
    heads = [match.start() for match in FUNCTION.finditer(code)]
    code = _without_strings(code[heads[-1] if heads else 0 :])
    name = re.escape(receiver)
    pattern = re.compile(rf"(?<![\w.]){name}\s*(?:\.\s*(\w+)\s*\(|(=)(?!=))")
    calls: list[str] = []
    for match in pattern.finditer(code):
        if match[2]:
            calls = []
        else:
            calls.append(match[1])
    return calls


def _without_strings(code: str) -> str:
    """The code with strings and comments blanked out."""
    kept, lexed = [], START
    for character in code:
        after = lexed
        for byte in character.encode():
            after = step(after, byte)
        kept.append(character if (lexed.in_code and after.in_code) or character == "\n" else " ")
        lexed = after
    return "".join(kept)
