"""From text to a sequence diagram, or an error that says where and what was expected.

What is accepted is what `mermaid.parse` (11.17.2) accepts: an activation may stay open, a `deactivate` of a participant
that is not active is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from likely.audit.mermaid.diagram import (
    BLOCKS,
    Activation,
    BlockBranch,
    Destroyed,
    DiagramBlock,
    DiagramEvent,
    DiagramMessage,
    DiagramNote,
    DiagramSetting,
    Participant,
    ParticipantBox,
    SequenceDiagram,
)
from likely.audit.mermaid.lexer import ENTITY_CLOSE, ENTITY_OPEN, DiagramToken, MermaidSyntaxError, SequenceLexer

MOST_CHARACTERS = 50_000  # Mermaid's own limit (maxTextSize)
MOST_NESTED = 100
_FRONT_MATTER = re.compile(r"---[^\S\n]*\n.*?\n[^\S\n]*---[^\S\n]*(?:\n|\Z)", re.S)
_DIRECTIVE = re.compile(r"%%\{\s*\w+(?:(?!\}%%).)*(?:\}%%)?", re.S)
_COMMENT_LINE = re.compile(r"^[^\S\n]*%%(?!\{)[^\n]+", re.M)
_ENTITY = re.compile(r"#(\w+);")
_SETTINGS_OF_ACTORS = ("link", "links", "properties", "details")


def parse_sequence(text: str) -> SequenceDiagram:
    """The diagram that a text describes; MermaidSyntaxError with line and column for one that Mermaid refuses."""
    if not isinstance(text, str):
        raise TypeError(f"a diagram is a string, got {type(text).__name__}")
    if len(text) > MOST_CHARACTERS:
        raise MermaidSyntaxError(f"the text has {len(text)} characters, at most {MOST_CHARACTERS} are allowed", 1, 1)
    parser = _Parser(_prepared(text))
    diagram = parser.diagram()
    _check(diagram, parser)
    return diagram


def _prepared(text: str) -> str:
    """What is no part of the diagram becomes blank, so that positions stay."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    start = len(plain) - len(plain.lstrip())
    if plain.startswith("---", start):
        front = _FRONT_MATTER.match(plain, start)
        if front is None:
            line = plain.count("\n", 0, start) + 1
            raise MermaidSyntaxError("the front matter, which begins with ---, does not end", line, 1, "---")
        plain = _blank(front, plain)
    for pattern in (_DIRECTIVE, _COMMENT_LINE):
        for found in list(pattern.finditer(plain)):
            plain = _blank(found, plain)
    return _ENTITY.sub(lambda found: f"{ENTITY_OPEN}{found[1]}{ENTITY_CLOSE}", plain) + "\n"


def _blank(found: re.Match[str], text: str) -> str:
    return text[: found.start()] + re.sub(r"[^\n]", " ", found[0]) + text[found.end() :]


def _restored(text: str) -> str:
    return text.replace(ENTITY_OPEN, "#").replace(ENTITY_CLOSE, ";")


class _Parser:
    def __init__(self, text: str):
        self.lexer = SequenceLexer(text)
        self._tokens = iter(self.lexer)
        self._next: DiagramToken | None = None
        self._depth = 0
        self.places: dict[int, int] = {}  # id of an event -> where it begins

    @property
    def next(self) -> DiagramToken:
        if self._next is None:
            self._next = next(self._tokens)
        return self._next

    def take(self, *kinds: str) -> DiagramToken | None:
        """The next token if it is one of these."""
        token = self.next
        if token.kind not in kinds:
            return None
        self._next = None
        return token

    def need(self, expected: str, *kinds: str) -> DiagramToken:
        token = self.take(*kinds)
        if token is None:
            raise self.refused(expected)
        return token

    def refused(self, expected: str) -> MermaidSyntaxError:
        token = self.next
        what = token.kind if token.kind in ("end of text", "newline") else repr(_restored(token.text or token.kind))
        return self.lexer.error(f"{what} is not allowed here", token.start, expected)

    def diagram(self) -> SequenceDiagram:
        start = len(self.lexer.text) - len(self.lexer.text.lstrip())
        if not self.lexer.text.startswith("sequenceDiagram", start):
            raise self.lexer.error("this is no sequence diagram", start, "sequenceDiagram")
        while self.take("newline"):
            pass
        self.need("sequenceDiagram", "sequencediagram")
        events = self.document()
        if self.next.kind != "end of text":
            raise self.refused("a statement")
        return SequenceDiagram(events)

    def document(self) -> tuple[DiagramEvent, ...]:
        """Statements until a token that begins none."""
        if self._depth == MOST_NESTED:
            raise self.lexer.error(f"blocks are nested more than {MOST_NESTED} deep", self.next.start)
        self._depth += 1
        events: list[DiagramEvent] = []
        while True:
            if self.take("newline", "invalid"):
                continue
            start = self.next.start
            event = self.statement()
            if event is None:
                self._depth -= 1
                return tuple(events)
            self.places[id(event)] = start
            events.append(event)

    def statement(self) -> DiagramEvent | None:
        kind = self.next.kind
        if kind in BLOCKS:
            return self.block(self.need("a block", *BLOCKS).kind)
        statements: dict[str, Callable[[], DiagramEvent]] = {
            "name": self.message, "participant": self.declaration, "actor": self.declaration,
            "destroy": self.declaration, "create": self.declaration, "box": self.box, "note": self.note,
            "activate": self.activation, "deactivate": self.activation, "autonumber": self.autonumber,
            "setting": self.setting, "block setting": self.setting, **dict.fromkeys(_SETTINGS_OF_ACTORS, self.of_actor),
        }  # fmt: skip
        made = statements.get(kind)
        return None if made is None else made()

    def end_line(self) -> None:
        self.need("the end of the line", "newline")

    def name(self) -> str:
        return _restored(self.need("the name of a participant", "name").text)

    def declaration(self) -> Participant | Destroyed:
        created = self.take("create") is not None
        token = self.need("participant or actor", "participant", "actor", *(() if created else ("destroy",)))
        if token.kind == "destroy":
            found = Destroyed(self.name())
            self.end_line()
            return found
        name, config, label = self.name(), None, None
        if self.take("@{"):
            inside = self.take("config")
            config = _restored(inside.text) if inside else ""
            self.need("}", "}")
        if self.take("as"):
            label = _restored(self.need("a label", "rest").text)
        self.end_line()
        return Participant(name, label, "actor" if token.kind == "actor" else "participant", created, config)

    def box(self) -> ParticipantBox:
        self.need("box", "box")
        label = _restored(self.need("a label", "rest").text)
        inside: list[Participant | Destroyed] = []
        while not self.take("end"):
            if not self.take("newline"):
                start = self.next.start
                inside.append(self.declaration())
                self.places[id(inside[-1])] = start
        return ParticipantBox(label, tuple(inside))

    def block(self, kind: str) -> DiagramBlock:
        between, branches = BLOCKS[kind], []
        while True:
            label = _restored(self.need("the rest of the line", "rest").text)
            branches.append(BlockBranch(label, self.document()))
            if between is None or not self.take(between):
                break
        self.need(f"end, which closes {kind}" if between is None else f"{between} or end", "end")
        return DiagramBlock(kind, tuple(branches))

    def message(self) -> DiagramMessage:
        sender = self.name()
        first = self.take("()")
        arrow = self.need("an arrow", "arrow").text
        second = self.take("()")
        mark = None if first or second else self.take("+", "-")
        receiver = self.name()
        text = _restored(self.need('":" and a text', "text").text)
        self.end_line()
        central = "both" if first and second else "sender" if first else "receiver" if second else ""
        return DiagramMessage(sender, receiver, arrow, text, mark.kind if mark else "", central)  # type: ignore[arg-type]

    def note(self) -> DiagramNote:
        self.need("Note", "note")
        placement = self.need("left of, right of or over", "left of", "right of", "over").kind
        actors = [self.name()]
        if placement == "over" and self.take(","):
            actors.append(self.name())
        text = _restored(self.need('":" and a text', "text").text)
        self.end_line()
        return DiagramNote(placement, tuple(actors), text)

    def activation(self) -> Activation:
        on = self.need("activate or deactivate", "activate", "deactivate").kind == "activate"
        found = Activation(self.name(), on)
        self.end_line()
        return found

    def autonumber(self) -> DiagramSetting:
        self.need("autonumber", "autonumber")
        words = []
        if off := self.take("off"):
            words = [off.text]
        else:
            while len(words) < 2 and (number := self.take("number")):
                words.append(number.text)
        self.end_line()
        return DiagramSetting("autonumber", " ".join(words))

    def setting(self) -> DiagramSetting:
        token = self.need("a setting", "setting", "block setting")
        name, _, text = token.text.partition(" ")
        if name == "title":
            self.end_line()
        return DiagramSetting(name, _restored(text))

    def of_actor(self) -> DiagramSetting:
        name = self.need("a setting", *_SETTINGS_OF_ACTORS).kind
        actor = self.name()
        text = _restored(self.need('":" and a text', "text").text)
        self.end_line()
        return DiagramSetting(name, text, actor)


# --- what is wrong though the grammar allows it -----------------------------------------------------------------------


def _check(diagram: SequenceDiagram, parser: _Parser) -> None:
    """Activations that end before they begin, created and destroyed participants without their message."""
    active: Counter[str] = Counter()
    known: set[str] = set()
    boxed: dict[str, int] = {}
    created = destroyed = None
    place = 0

    def wrong(message: str) -> MermaidSyntaxError:
        return parser.lexer.error(message, place)

    def end(name: str) -> None:
        if active[name] < 1:
            raise wrong(f"{name} is not active and cannot be deactivated")
        active[name] -= 1

    for _, event in diagram.walk():
        place = parser.places.get(id(event), place)
        if isinstance(event, ParticipantBox):
            for one in event.participants:
                if boxed.setdefault(one.id, id(event)) != id(event) and isinstance(one, Participant):
                    raise wrong(f"{one.id} stands in two boxes")
        elif isinstance(event, Participant):
            if event.created:
                if event.id in known:
                    raise wrong(f"{event.id} is there already and cannot be created")
                created = event.id
            known.add(event.id)
        elif isinstance(event, Destroyed):
            destroyed = event.id
        elif isinstance(event, DiagramMessage):
            if created is not None:
                if event.receiver != created:
                    raise wrong(f"the next message must go to {created}, which was created")
                created = None
            elif destroyed is not None:
                if destroyed not in (event.sender, event.receiver):
                    raise wrong(f"the next message must come from or go to {destroyed}, which is destroyed")
                destroyed = None
            known |= {event.sender, event.receiver}
            if event.activation == "+":
                active[event.receiver] += 1
            elif event.activation == "-":
                end(event.sender)
        elif isinstance(event, Activation):
            if event.on:
                active[event.id] += 1
            else:
                end(event.id)
