"""A sequence diagram as data, and as text again: `parse_sequence(diagram.to_text())` is the same diagram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

ARROWS = (
    "->>", "-->>", "->", "-->", "-x", "--x", "-)", "--)", "<<->>", "<<-->>", "--|\\", "--|/", "--\\\\", "--//", "/|--",
    "\\|--", "//--", "\\\\--", "-|\\", "-|/", "-\\\\", "-//", "/|-", "\\|-", "//-", "\\\\-",
)  # fmt: skip
BLOCKS = {  # kind -> the word between its branches; None: it has one branch
    "loop": None, "rect": None, "opt": None, "break": None, "alt": "else", "par": "and", "par_over": "and",
    "critical": "option",
}  # fmt: skip


@dataclass(frozen=True)
class Participant:
    """A declaration; kind "participant" or "actor"; config: what stands in @{...}, None where nothing does."""

    id: str
    label: str | None = None
    kind: Literal["participant", "actor"] = "participant"
    created: bool = False
    config: str | None = None

    @property
    def shown(self) -> str:
        return self.label or self.id


@dataclass(frozen=True)
class Destroyed:
    """`destroy ID`: the next message is the participant's last."""

    id: str


@dataclass(frozen=True)
class DiagramMessage:
    """`sender ARROW receiver: text`; activation "+" begins one of the receiver, "-" ends one of the sender.

    central  the ends that a central connection, "()", stands at: "", "sender", "receiver" or "both"
    """

    sender: str
    receiver: str
    arrow: str
    text: str
    activation: Literal["", "+", "-"] = ""
    central: Literal["", "sender", "receiver", "both"] = ""

    @property
    def dotted(self) -> bool:
        """A reply, by custom."""
        return "--" in self.arrow


@dataclass(frozen=True)
class DiagramNote:
    """A note "left of", "right of" or "over" one or two participants."""

    placement: str
    actors: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Activation:
    """`activate ID` (on) or `deactivate ID`."""

    id: str
    on: bool


@dataclass(frozen=True)
class DiagramSetting:
    """Any other line: autonumber, title, accTitle, accDescr, link, links, properties, details.

    actor  of the last four
    """

    name: str
    text: str
    actor: str | None = None


@dataclass(frozen=True)
class BlockBranch:
    """One branch of a block: what stands after its keyword, and its events."""

    label: str
    events: tuple[DiagramEvent, ...]


@dataclass(frozen=True)
class DiagramBlock:
    """loop, alt, opt, par, par_over, critical, break or rect, with its branches."""

    kind: str
    branches: tuple[BlockBranch, ...]


@dataclass(frozen=True)
class ParticipantBox:
    """`box label ... end` around declarations."""

    label: str
    participants: tuple[Participant | Destroyed, ...]


DiagramEvent = (
    Participant | Destroyed | DiagramMessage | DiagramNote | Activation | DiagramSetting | DiagramBlock | ParticipantBox
)


@dataclass(frozen=True)
class SequenceDiagram:
    """The events of a diagram in order."""

    events: tuple[DiagramEvent, ...] = ()

    def walk(self) -> Iterator[tuple[int, DiagramEvent]]:
        """(depth, event) of all events, those inside blocks and boxes after their block."""
        yield from _walk(self.events, 0)

    @property
    def messages(self) -> list[DiagramMessage]:
        return [event for _, event in self.walk() if isinstance(event, DiagramMessage)]

    @property
    def participants(self) -> dict[str, str]:
        """id -> shown name, in the order in which they first appear, declared or not."""
        found: dict[str, str] = {}
        for _, event in self.walk():
            if isinstance(event, Participant):
                found[event.id] = event.shown if event.label or event.id not in found else found[event.id]
            for actor in _mentioned(event):
                found.setdefault(actor, actor)
        return found

    def to_text(self) -> str:
        """The diagram in Mermaid's language, four blanks a level."""
        return "".join(f"{line}\n" for line in ("sequenceDiagram", *_lines(self.events, 1)))


def _walk(events: Sequence[DiagramEvent], depth: int) -> Iterator[tuple[int, DiagramEvent]]:
    for event in events:
        yield depth, event
        if isinstance(event, DiagramBlock):
            for branch in event.branches:
                yield from _walk(branch.events, depth + 1)
        elif isinstance(event, ParticipantBox):
            yield from _walk(event.participants, depth + 1)


def _mentioned(event: DiagramEvent) -> tuple[str, ...]:
    if isinstance(event, DiagramMessage):
        return event.sender, event.receiver
    if isinstance(event, DiagramNote):
        return event.actors
    return (event.id,) if isinstance(event, Activation | Destroyed) else ()


def _lines(events: Sequence[DiagramEvent], depth: int) -> Iterator[str]:
    pad = "    " * depth
    for event in events:
        if isinstance(event, DiagramBlock):
            for number, branch in enumerate(event.branches):
                word = event.kind if number == 0 else BLOCKS[event.kind]
                yield f"{pad}{word} {branch.label}".rstrip()
                yield from _lines(branch.events, depth + 1)
            yield f"{pad}end"
        elif isinstance(event, ParticipantBox):
            yield f"{pad}box {event.label}".rstrip()
            yield from _lines(event.participants, depth + 1)
            yield f"{pad}end"
        else:
            yield pad + _line(event)


def _line(event: DiagramEvent) -> str:
    if isinstance(event, Participant):
        config = "" if event.config is None else f"@{{{event.config}}}"
        label = "" if event.label is None else f" as {event.label}"
        return f"{'create ' * event.created}{event.kind} {event.id}{config}{label}"
    if isinstance(event, Destroyed):
        return f"destroy {event.id}"
    if isinstance(event, Activation):
        return f"{'activate' if event.on else 'deactivate'} {event.id}"
    if isinstance(event, DiagramNote):
        return f"Note {event.placement} {','.join(event.actors)}:{event.text and ' ' + event.text}"
    if isinstance(event, DiagramMessage):
        first = "()" if event.central in ("sender", "both") else ""
        second = "()" if event.central in ("receiver", "both") else ""
        text = f" {event.text}" if event.text else ""
        return f"{event.sender}{first}{event.arrow}{second}{event.activation}{event.receiver}:{text}"
    assert isinstance(event, DiagramSetting)
    if event.actor is not None:
        return f"{event.name} {event.actor}:{event.text and ' ' + event.text}"
    if event.name == "accDescr" and "\n" in event.text:
        return f"accDescr {{{event.text}}}"
    return f"{event.name}{':' if event.name.startswith('acc') else ''} {event.text}".rstrip()
