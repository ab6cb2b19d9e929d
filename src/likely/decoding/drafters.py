"""Drafters by name: NAME, NAME:ARGUMENT, or several joined by "+" (the first that has a guess).

The one place that knows the names.  Inside the library pass the object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from likely.decoding.draft import DraftSource
from likely.errors import nearest

if TYPE_CHECKING:
    from likely.models.runtime import Runtime
    from likely.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Needs:
    """What drafters may be made from: the target, and how another model is loaded."""

    runtime: Runtime | None
    tokenizer: Tokenizer | None
    load: Callable[[str], tuple[Runtime, Tokenizer]] | None = None


def _lookup(argument: str, needs: Needs) -> DraftSource:
    from likely.decoding.prompt_lookup import PromptLookup

    return PromptLookup()


@dataclass(frozen=True)
class Named:
    """An entry of the list of drafters; `argument` says what may follow the colon ("" nothing)."""

    make: Callable[[str, Needs], DraftSource]
    summary: str
    argument: str = ""
    required: bool = False


NAMED: dict[str, Named] = {
    "lookup": Named(_lookup, "what followed the last tokens when they occurred before"),
}


def make_drafter(name: str, needs: Needs) -> DraftSource | None:
    """The drafter of that name, None for "none"; ValueError with the nearest name for an unknown one."""
    parts = [part.strip() for part in name.split("+")]
    if parts == ["none"]:
        return None
    return _one(parts[0], needs)


def _one(text: str, needs: Needs) -> DraftSource:
    name, colon, argument = text.partition(":")
    entry = NAMED.get(name)
    if entry is None:
        raise ValueError(f'unknown drafter "{name}"{nearest(name, NAMED)} (known: {", ".join(NAMED)}, none)')
    if entry.required and not argument:
        raise ValueError(f"the drafter {name} needs an argument: {name}:{entry.argument}")
    if colon and not entry.argument:
        raise ValueError(f'the drafter {name} takes no argument, got "{argument}"')
    return entry.make(argument, needs)


def existing_file(path: str, what: str) -> Path:
    """A file named in a drafter's argument."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise ValueError(f"{what}: {path} is not a file")
    return found
