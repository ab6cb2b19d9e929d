"""How good a model's diagram is, by rules: valid, nothing around it, and how far it has what the reference has.

Every criterion is a number from 0 to 1; one that says nothing (no notes in either diagram) is None and no part of the
mean.  A response that is no diagram has 0 in all that the reference has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields

from likely.audit.mermaid.diagram import (
    Activation,
    DiagramBlock,
    DiagramMessage,
    DiagramNote,
    SequenceDiagram,
)
from likely.audit.mermaid.lexer import MermaidSyntaxError
from likely.audit.mermaid.parser import parse_sequence

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n[^\S\n]*```|\Z)", re.S)
_START = re.compile(r"^[^\S\n]*sequenceDiagram\b", re.M)


@dataclass(frozen=True)
class DiagramScores:
    """valid         the diagram in the response is one
    clean         the response is the diagram alone, in one fence or none
    participants  F1 of the shown names, without case
    messages      F1 by the longest common subsequence of (sender, receiver, text)
    links         the same of (sender, receiver)
    arrows        share of the common messages that are solid or dotted as in the reference
    blocks        F1 of (kind, depth, number of branches)
    balanced      every activation ends
    activations   F1 of what is activated and deactivated
    notes         F1 of (placement, participants, text)
    """

    valid: float
    clean: float
    participants: float
    messages: float
    links: float
    arrows: float | None
    blocks: float | None
    balanced: float | None
    activations: float | None
    notes: float | None

    @property
    def overall(self) -> float:
        """Mean of the criteria that are numbers."""
        given = [value for value in self.to_dict().values() if value is not None]
        return sum(given) / len(given)

    def to_dict(self) -> dict[str, float | None]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


CRITERIA = tuple(field.name for field in fields(DiagramScores))


def diagram_text(response: str) -> tuple[str, bool]:
    """(the text of the first diagram in a response, whether the response is nothing else).

    A diagram stands in a fence or begins with a line "sequenceDiagram"; a fence that is not closed is not clean.
    """
    stripped = response.strip()
    fences = [found for found in _FENCE.finditer(stripped) if _START.search(found[1])]
    if fences:
        whole = fences[0][0] == stripped and stripped.endswith("```")
        return fences[0][1], whole and len(_START.findall(fences[0][1])) == 1
    starts = list(_START.finditer(stripped))
    if not starts:
        return stripped, False
    end = starts[1].start() if len(starts) > 1 else len(stripped)
    return stripped[starts[0].start() : end], starts[0].start() == 0 and len(starts) == 1 and "```" not in stripped


def score_response(response: str, reference: SequenceDiagram) -> DiagramScores:
    """The scores of a model's response against the diagram that was wanted."""
    text, clean = diagram_text(response)
    try:
        found: SequenceDiagram | None = parse_sequence(text)
    except MermaidSyntaxError:
        found = None
    if found is None:
        nothing = score_diagram(SequenceDiagram(), reference, clean=False)
        return DiagramScores(**{name: None if value is None else 0.0 for name, value in nothing.to_dict().items()})  # type: ignore[arg-type]
    return score_diagram(found, reference, clean=clean)


def score_diagram(found: SequenceDiagram, reference: SequenceDiagram, *, clean: bool = True) -> DiagramScores:
    """The scores of a valid diagram."""
    sent, wanted = _messages(found), _messages(reference)
    common = _common([m[:3] for m in sent], [m[:3] for m in wanted])
    activations = _activations(found), _activations(reference)
    return DiagramScores(
        valid=1.0,
        clean=float(clean),
        participants=_f1(_names(found).values(), _names(reference).values()) or 0.0,
        messages=_sequence_f1(len(common), len(sent), len(wanted)),
        links=_sequence_f1(len(_common([m[:2] for m in sent], [m[:2] for m in wanted])), len(sent), len(wanted)),
        arrows=sum(sent[i][3] == wanted[j][3] for i, j in common) / len(common) if common else None,
        blocks=_f1(_blocks(found), _blocks(reference)),
        balanced=None if not any(activations) else float(_balanced(activations[0])),
        activations=_f1(*activations),
        notes=_f1(_notes(found), _notes(reference)),
    )


def _normal(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _names(diagram: SequenceDiagram) -> dict[str, str]:
    return {name: _normal(shown) for name, shown in diagram.participants.items()}


def _messages(diagram: SequenceDiagram) -> list[tuple[str, str, str, bool]]:
    names = _names(diagram)
    return [(names[m.sender], names[m.receiver], _normal(m.text), m.dotted) for m in diagram.messages]


def _blocks(diagram: SequenceDiagram) -> list[tuple[str, int, int]]:
    return [(e.kind, depth, len(e.branches)) for depth, e in diagram.walk() if isinstance(e, DiagramBlock)]


def _activations(diagram: SequenceDiagram) -> list[tuple[str, bool]]:
    names, found = _names(diagram), []
    for _, event in diagram.walk():
        if isinstance(event, Activation):
            found.append((names[event.id], event.on))
        elif isinstance(event, DiagramMessage) and event.activation:
            on = event.activation == "+"
            found.append((names[event.receiver if on else event.sender], on))
    return found


def _balanced(activations: Sequence[tuple[str, bool]]) -> bool:
    still: Counter[str] = Counter()
    for name, on in activations:
        still[name] += 1 if on else -1
    return bool(activations) and not any(still.values())


def _notes(diagram: SequenceDiagram) -> list[tuple[str, tuple[str, ...], str]]:
    names = _names(diagram)
    return [
        (e.placement, tuple(names[a] for a in e.actors), _normal(e.text))
        for _, e in diagram.walk()
        if isinstance(e, DiagramNote)
    ]


def _f1(found: Iterable[Hashable], wanted: Iterable[Hashable]) -> float | None:
    """2 |both| / (|found| + |wanted|) over multisets; None where both are empty."""
    a, b = Counter(found), Counter(wanted)
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else None


def _sequence_f1(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if found + wanted else 1.0


def _common(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Places (i, j) of a longest common subsequence."""
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            longest = max(lengths[i + 1][j], lengths[i][j + 1])
            lengths[i][j] = lengths[i + 1][j + 1] + 1 if a[i] == b[j] else longest
    places, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            places.append((i, j))
            i, j = i + 1, j + 1
        elif lengths[i + 1][j] >= lengths[i][j + 1]:
            i += 1
        else:
            j += 1
    return places
