"""A provider of analyses with given answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from likely.code.analysis.members import AnalysisKind, AnalysisReply, Member, Parameter
from likely.code.buffer import CodeBuffer


@dataclass(eq=False)
class FixedMembers:
    """A provider with given answers: legal names by receiver, for tests and for rules that need no analyser.

    by_receiver  the text before the dot ends with this -> names; the longest that fits counts
    """

    by_receiver: dict[str, Sequence[str]]
    signatures: dict[str, Sequence[Parameter]] = field(default_factory=dict)
    names: dict[AnalysisKind, Sequence[str]] = field(default_factory=dict)
    name: str = "fixed"

    def about(self, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        if kind == "members":
            found = _longest_end(self.by_receiver, buffer.prefix.rstrip().removesuffix(".").rstrip())
            if found is None:
                return AnalysisReply("unknown")
            return AnalysisReply("answered", tuple(Member(name) for name in self.by_receiver[found]))
        if kind == "signature":
            found = _longest_end(self.signatures, buffer.prefix.removesuffix("("))
            return (
                AnalysisReply("unknown")
                if found is None
                else AnalysisReply("answered", parameters=tuple(self.signatures[found]))
            )
        if kind not in self.names:
            return AnalysisReply("unknown")
        return AnalysisReply("answered", tuple(Member(name) for name in self.names[kind]))

    def close(self) -> None:
        pass


def _longest_end(known: dict[str, Sequence], text: str) -> str | None:
    fitting = [end for end in known if text.endswith(end)]
    return max(fitting, key=len) if fitting else None
