"""Six families of proteins for reproductions/prollama.py: a split without near neighbours on both sides, a tokenizer of
residues, markers and family names, substitutions that evolution likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from likely.alignment.protein import ProteinRow, group_by_similarity, read_proteins
from likely.alignment.protein.format import CLOSE, DETERMINE, GENERATE, RESIDUES, SEQUENCE, SUPERFAMILY
from likely.alignment.protein.rows import balanced

END = "<end>"
# pairs of residues with a positive score in BLOSUM62 (Henikoff and Henikoff 1992)
LIKED = [
    "AS",
    "DE",
    "DN",
    "EK",
    "EQ",
    "FW",
    "FY",
    "HN",
    "HY",
    "IL",
    "IM",
    "IV",
    "KQ",
    "KR",
    "LM",
    "LV",
    "MV",
    "NS",
    "QR",
    "ST",
    "WY",
]
CONSERVATIVE = {a: "".join(p.replace(a, "") for p in LIKED if a in p) for a in RESIDUES}


@dataclass(frozen=True)
class Split:
    train: list[ProteinRow]
    test: list[ProteinRow]

    @property
    def families(self) -> list[str]:
        return sorted({row.superfamily for row in self.train})


def similarity_split(most: int, *, longest: int = 256, test_share: float = 0.2, overlap: float = 0.5) -> Split:
    """At most `most` sequences of each family; test holds whole groups of near neighbours, the smallest first."""
    rows = [*read_proteins("protein-families:train"), *read_proteins("protein-families:test")]
    rows = balanced([row for row in rows if len(row.sequence) <= longest], most)
    groups = group_by_similarity([row.sequence for row in rows], most=overlap)
    sizes = np.bincount(groups)
    held_out: set[int] = set()
    for family in {row.superfamily for row in rows}:
        own = [i for i, row in enumerate(rows) if row.superfamily == family]
        count = 0
        for group in sorted({int(groups[i]) for i in own}, key=lambda g: (sizes[g], g)):
            if count >= test_share * len(own):
                break
            held_out.add(group)
            count += sum(groups[i] == group for i in own)
    return Split(
        [row for row, g in zip(rows, groups, strict=True) if g not in held_out],
        [row for row, g in zip(rows, groups, strict=True) if g in held_out],
    )


class SymbolTokenizer:
    """One token for each residue, marker, instruction and family; the longest that fits is taken."""

    bos_id = None
    add_bos = False
    chat_template = None

    def __init__(self, families: Sequence[str]):
        self.symbols = [END, *RESIDUES, CLOSE, " ", SEQUENCE, SUPERFAMILY, GENERATE, DETERMINE, *families]
        self._ids = {text: i for i, text in enumerate(self.symbols)}
        self._longest_first = sorted(self.symbols[1:], key=len, reverse=True)
        self.vocab_size, self.eos_id, self.end_ids = len(self.symbols), 0, frozenset({0})
        self.special_tokens = {END: 0}
        self.fingerprint = "/".join(self.symbols)

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            symbol = next((s for s in self._longest_first if text.startswith(s, at)), None)
            if symbol is None:
                raise ValueError(f"no symbol for {text[at:]!r}")
            ids.append(self._ids[symbol])
            at += len(symbol)
        return ids

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == 0 else self.symbols[token].encode()

    def token_text(self, token: int) -> str:
        return self.symbols[token]


def substituted(sequence: str, changes: int, rng: np.random.Generator) -> tuple[str, str] | None:
    """The sequence with conservative, and with random substitutions at the same places; None where too few allow it."""
    able = [i for i, letter in enumerate(sequence) if CONSERVATIVE[letter]]
    if len(able) < changes:
        return None
    places = rng.choice(able, changes, replace=False)
    liked, random = list(sequence), list(sequence)
    for place in places:
        letter = sequence[place]
        liked[place] = str(rng.choice(list(CONSERVATIVE[letter])))
        random[place] = str(rng.choice([r for r in RESIDUES if r != letter]))
    return "".join(liked), "".join(random)


def nearest_overlap(sequence: str, others: Sequence[set[str]]) -> float:
    """The largest share of 3-mers that it has in common with one of the others (shared over all)."""
    own = {sequence[i : i + 3] for i in range(len(sequence) - 2)}
    return max((len(own & other) / max(1, len(own | other)) for other in others), default=0.0)
