"""A grammar of which every text is a valid sequence diagram, for guided generation.

It has less than Mermaid's language: no boxes, no links, short texts.  With the participants' names known, what is
activated is deactivated again before the block ends, so that no `deactivate` can be an error; without them only
`activate` is in the grammar, which may stay open.  A text that max_tokens cut is closed by `close_diagram`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from likely.errors import ConstraintError

_NAME = re.compile(r"[^\W\d_][\w .]{0,30}")
# words that Mermaid's lexer takes for keywords wherever a name may begin
_KEYWORDS = frozenset({
    "participant", "actor", "create", "destroy", "box", "loop", "rect", "opt", "alt", "else", "par", "and", "critical",
    "option", "break", "end", "note", "over", "links", "link", "properties", "details", "activate", "deactivate",
    "title", "autonumber", "off", "sequencediagram", "acctitle", "accdescr", "as", "left", "right",
})  # fmt: skip
_DEPTH = 2  # of blocks and activations inside each other: small models nest without end
_NEVER = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff;#%{}<>"
_TEXT = f"TEXT: /[^{_NEVER}\\xa0 :][^{_NEVER}]{{0,59}}/"
_BLOCKS = (("alt", "else"), ("par", "and"), ("critical", "option"))
_OPENING = frozenset({"loop", "opt", "break", "alt", "par", "critical"})


def sequence_grammar(participants: Sequence[str] | None = None) -> str:
    """The grammar in Lark notation, for `grammar=` of `ask` and `generate`.

    participants  the names that may stand in the diagram; None: any names of letters, digits and "_"
    ConstraintError for a name that Mermaid would not read as one.
    """
    if participants is None:
        # two capitals: no keyword has them
        name = "NAME: /[A-Z]{2}[A-Za-z0-9_]{0,14}|[A-Z][a-z]{1,14}[A-Z][A-Za-z0-9_]{0,14}|User|Client|Server/"
        head = 'head: (PAD "participant " NAME "\\n")*'
    else:
        if not participants or len(set(participants)) != len(participants):
            raise ConstraintError("name the participants, each once")
        for one in participants:
            check_name(one)
        name = "NAME: " + " | ".join(json.dumps(one) for one in participants)
        head = "head: " + " ".join(f'("    participant {one}\\n")?' for one in participants)
    rules = [
        'start: "sequenceDiagram\\n" head line0+',
        head,
        name,
        _TEXT,
        "PAD: /( {4}){1,3}/",
        'ARROW: "->>" | "-->>"',
    ]
    rules.append('plain: PAD NAME ARROW NAME ": " TEXT "\\n" | PAD "Note " place ": " TEXT "\\n"')
    rules.append('place: "over " NAME ("," NAME)? | "left of " NAME | "right of " NAME')
    for depth in range(_DEPTH):
        inside = f"line{depth + 1}+"
        rules.append(f"line{depth}: plain | block{depth} | act{depth}")
        forms = [f'PAD ("loop" | "opt" | "break") " " TEXT "\\n" {inside} PAD "end\\n"']
        for word, between in _BLOCKS:
            more = f'(PAD "{between} " TEXT "\\n" {inside})*'
            forms.append(f'PAD "{word} " TEXT "\\n" {inside} {more} PAD "end\\n"')
        rules.append(f"block{depth}: " + " | ".join(forms))
        rules.append(f"act{depth}: " + " | ".join(_activations(participants, inside)))
    return "\n".join([*rules, f"line{_DEPTH}: plain"]) + "\n"


def _activations(participants: Sequence[str] | None, inside: str) -> list[str]:
    if participants is None:
        return ['PAD "activate " NAME "\\n"']
    return [f'PAD "activate {name}\\n" {inside} PAD "deactivate {name}\\n"' for name in participants]


def close_diagram(text: str) -> str:
    """A text of this grammar that was cut anywhere, without its unfinished line and with what is open closed."""
    lines = text[: text.rfind("\n") + 1].splitlines()
    opened: list[str] = []
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word in _OPENING:
            opened.append("end")
        elif word == "activate":
            opened.append(f"deactivate {rest}")
        elif word in ("end", "deactivate") and opened:
            opened.pop()
    closing = [f"    {line}" for line in reversed(opened)]
    return "".join(f"{line}\n" for line in [*(lines or ["sequenceDiagram"]), *closing])


def check_name(name: str) -> None:
    """ConstraintError for a name that a diagram cannot hold."""
    if not _NAME.fullmatch(name) or name.endswith(" ") or set(re.findall(r"\w+", name.casefold())) & _KEYWORDS:
        raise ConstraintError(
            f"{name!r} cannot be a participant: letters, digits, blanks and dots, a letter first, no keyword of Mermaid"
        )


def named_participants(prompt: str) -> list[str] | None:
    """The names after "Participants:" in a prompt; None where there is no such line, or a name cannot be used."""
    found = re.search(r"^\s*participants:\s*([^\n]+)", prompt, re.I | re.M)
    names = [name.strip() for name in found[1].rstrip(". ").split(",")] if found else []
    try:
        for name in names:
            check_name(name)
    except ConstraintError:
        return None
    return list(dict.fromkeys(names)) or None
