"""A sequence diagram as SVG: life lines, messages, notes and frames, in black on white."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from likely.audit.mermaid.diagram import (
    BLOCKS,
    Activation,
    DiagramBlock,
    DiagramMessage,
    DiagramNote,
    ParticipantBox,
    SequenceDiagram,
)

COLUMN, ROW, MARGIN, HEAD = 150, 34, 30, 28
MOST_EVENTS = 400
_INK, _SOFT = "#1a1a1a", "#8a8a8a"


def draw_diagram(diagram: SequenceDiagram) -> str:
    """SVG that loads nothing and has no style sheet; texts are escaped, long ones cut."""
    return _Drawing(diagram).svg()


@dataclass
class _Drawing:
    diagram: SequenceDiagram
    parts: list[str] = field(default_factory=list)
    active: dict[str, list[float]] = field(default_factory=dict)

    def svg(self) -> str:
        names = self.diagram.participants
        self.x = {name: MARGIN + COLUMN * (i + 0.5) for i, name in enumerate(names)}
        self.width = MARGIN * 2 + COLUMN * max(1, len(names))
        self.y, self.left = float(HEAD + MARGIN), 0
        self._events(self.diagram.events, 0)
        for name, starts in self.active.items():  # activations that stay open
            for start in starts:
                self._bar(name, start, self.y)
        bottom = self.y + MARGIN / 2
        heads = []
        for name, shown in names.items():
            x = self.x[name]
            heads.append(f'<line x1="{x}" x2="{x}" y1="{HEAD}" y2="{bottom}" stroke="{_SOFT}"/>')
            heads.append(
                f'<rect x="{x - COLUMN * 0.45}" y="4" width="{COLUMN * 0.9}" height="{HEAD - 6}" fill="#eeeeee" '
                f'stroke="{_INK}"/>{_text(x, 20, shown, 20)}'
            )
        more = f'<text x="4" y="{bottom - 2}" font-size="11">… {self.left} more</text>' if self.left else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="sequence diagram" '
            f'viewBox="0 0 {self.width} {bottom + 4}" width="{self.width}" height="{bottom + 4}" '
            f'font-family="sans-serif" font-size="12" fill="{_INK}">{"".join(heads)}{"".join(self.parts)}{more}</svg>'
        )

    def _events(self, events: tuple, depth: int) -> None:
        for event in events:
            if len(self.parts) >= MOST_EVENTS:
                self.left += 1
            elif isinstance(event, DiagramMessage):
                self._message(event)
            elif isinstance(event, DiagramNote):
                self._note(event)
            elif isinstance(event, Activation):
                self._activation(event.id, event.on)
            elif isinstance(event, DiagramBlock):
                self._block(event, depth)
            elif isinstance(event, ParticipantBox):
                continue

    def _message(self, message: DiagramMessage) -> None:
        a, b = self.x[message.sender], self.x[message.receiver]
        dash = ' stroke-dasharray="4 3"' if message.dotted else ""
        self.parts.append(_text((a + b) / 2 + (30 if a == b else 0), self.y - 4, message.text, 40))
        way = 1 if b >= a else -1
        if a == b:
            path = f"M{a} {self.y}h30v12h-30"
            tip, at = f"M{a + 6} {self.y + 8}l-6 4l6 4", 12
        else:
            path, at = f"M{a} {self.y}H{b}", 0
            tip = f"M{b - 7 * way} {self.y - 4}L{b} {self.y}L{b - 7 * way} {self.y + 4}"
        if message.arrow.endswith("x"):
            tip = f"M{b - 5} {self.y - 5}l10 10m0 -10l-10 10"
        filled = _INK if ">>" in message.arrow else "none"
        self.parts.append(f'<path d="{path}" fill="none" stroke="{_INK}"{dash}/>')
        if message.arrow not in ("->", "-->"):
            self.parts.append(f'<path d="{tip}" fill="{filled}" stroke="{_INK}"/>')
        if message.activation:
            self._activation(
                message.receiver if message.activation == "+" else message.sender, message.activation == "+"
            )
        self.y += ROW + at

    def _activation(self, name: str, on: bool) -> None:
        if on:
            self.active.setdefault(name, []).append(self.y)
        elif self.active.get(name):
            self._bar(name, self.active[name].pop(), self.y)

    def _bar(self, name: str, start: float, end: float) -> None:
        self.parts.append(
            f'<rect x="{self.x[name] - 4}" y="{start - 8}" width="8" height="{max(8.0, end - start)}" fill="#d9e6f7" '
            f'stroke="{_INK}"/>'
        )

    def _note(self, note: DiagramNote) -> None:
        places = [self.x[actor] for actor in note.actors]
        shift = {"left of": -COLUMN / 2, "right of": COLUMN / 2}.get(note.placement, 0.0)
        middle, width = sum(places) / len(places) + shift, max(places) - min(places) + COLUMN * 0.8
        self.parts.append(
            f'<rect x="{middle - width / 2}" y="{self.y - 16}" width="{width}" height="22" fill="#fff5ad" '
            f'stroke="{_SOFT}"/>{_text(middle, self.y - 1, note.text, 40)}'
        )
        self.y += ROW

    def _block(self, block: DiagramBlock, depth: int) -> None:
        top, inset = self.y - ROW / 2, 6 * (depth + 1)
        for number, branch in enumerate(block.branches):
            word = block.kind if number == 0 else str(BLOCKS[block.kind])
            if number:
                self.parts.append(
                    f'<line x1="{inset}" x2="{self.width - inset}" y1="{self.y - 16}" y2="{self.y - 16}" '
                    f'stroke="{_SOFT}" stroke-dasharray="2 2"/>'
                )
            label = f"{word} [{branch.label}]" if branch.label else word
            self.parts.append(
                f'<text x="{inset + 4}" y="{self.y - 2}" font-size="11">{escape(_short(label, 60))}</text>'
            )
            self.y += ROW / 1.5
            self._events(branch.events, depth + 1)
        self.parts.append(
            f'<rect x="{inset}" y="{top}" width="{self.width - 2 * inset}" height="{self.y - top - 8}" fill="none" '
            f'stroke="{_SOFT}"/>'
        )
        self.y += ROW / 3


def _short(text: str, most: int) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def _text(x: float, y: float, text: str, most: int) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{escape(_short(text, most))}</text>'
