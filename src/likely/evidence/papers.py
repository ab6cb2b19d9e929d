"""The index of the papers that likely builds on, and of our own studies."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from likely.errors import DataError, LikelyError, nearest

STATES = ("planned", "built")


@dataclass(frozen=True)
class Paper:
    """One entry of the index.

    claim       the paper's headline figure in our words (of a study: what it examines)
    known_from  "abstract", "paper" (or its official repository), "second-hand"; empty for a study
    spec        family of methods it belongs to
    arxiv, authors, year  empty or None where not known for certain
    headline    patterns (as in a shell) of the checks that the headline claim consists of; none: all checks
    misses      (pattern, why) of checks that do not hold
    """

    id: str
    title: str
    room: str
    claim: str
    state: Literal["planned", "built"] = "planned"
    authors: str = ""
    year: int | None = None
    arxiv: str = ""
    spec: str = ""
    known_from: str = ""
    headline: tuple[str, ...] = ()
    misses: tuple[tuple[str, str], ...] = ()
    kind: Literal["paper", "study"] = "paper"

    def citation(self) -> str:
        """Authors and year, as far as they are known."""
        return " ".join(str(part) for part in (self.authors, self.year) if part)

    def in_headline(self, statement: str) -> bool:
        """Whether a check belongs to the headline claim."""
        return not self.headline or any(fnmatchcase(statement, pattern) for pattern in self.headline)

    def why_missed(self, statement: str) -> str:
        """Why a check does not hold, as far as we know; empty where nothing is said."""
        return next((why for pattern, why in self.misses if fnmatchcase(statement, pattern)), "")


@lru_cache(maxsize=1)
def index() -> tuple[Paper, ...]:
    """All entries: the papers in the order of their rooms' specifications, then our own studies."""
    with Path(__file__).with_name("papers.toml").open("rb") as file:
        found = tomllib.load(file)
    entries = [_entry(record, "paper") for record in found["paper"]]
    entries += [_entry(record, "study") for record in found["study"]]
    return tuple(entries)


def _entry(record: dict[str, Any], kind: Literal["paper", "study"]) -> Paper:
    fields = dict(record)
    headline, misses = tuple(fields.pop("headline", ())), tuple(fields.pop("misses", {}).items())
    entry = Paper(kind=kind, known_from=fields.pop("from", ""), headline=headline, misses=misses, **fields)
    if entry.state not in STATES:
        raise DataError(f'papers.toml: {entry.id}: state must be one of {", ".join(STATES)}, got "{entry.state}"')
    return entry


def papers() -> tuple[Paper, ...]:
    """The papers alone, without our own studies."""
    return tuple(entry for entry in index() if entry.kind == "paper")


def rooms() -> list[str]:
    """Rooms that have an entry, in the order of the index."""
    return list(dict.fromkeys(entry.room for entry in index()))


def find(name: str) -> Paper:
    """The entry with this id ("-" and "_" are the same); LikelyError with the nearest one otherwise."""
    wanted = name.strip().lower().replace("-", "_")
    for entry in index():
        if entry.id == wanted:
            return entry
    raise LikelyError(
        f'no paper or study is called "{name}"{nearest(wanted, [e.id for e in index()])} (likely papers lists them)'
    )
