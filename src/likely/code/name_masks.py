"""Which tokens may come next where one of some names is due: packed masks, kept per set of names."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from likely.decoding.constraint import Mask, mask_of
from likely.guided.vocabulary import Vocabulary

Names = frozenset[bytes]  # what is left of each legal name
Space = Literal["", "one", "lines", "break", "indent"]  # blanks that may stand before a name, as below
BLANKS = b" \t\r\n"
_RUNS = {  # a name that never comes is written as blanks without end by a small model: they are few
    "one": re.compile(rb"[ \t]"),
    "lines": re.compile(rb"[ \t]|[ \t]?\r?\n[ \t]*"),
    "break": re.compile(rb"\r?\n[ \t]*"),
    "indent": re.compile(rb"[ \t]+"),
}
KEPT = 1024  # masks


def continues_name(character: str) -> bool:
    """Whether a character can stand inside a Python name."""
    return ("a" + character).isidentifier()


def breaks(text: bytes, extra: bytes = b"") -> bool:
    """Whether `text` begins with a whole character that ends a name.  A part of a character never does.

    extra  bytes that count as part of a name here
    """
    if not text or text[0] in extra:
        return False
    size = 1 if text[0] < 0x80 else 2 if text[0] >> 5 == 6 else 3 if text[0] >> 4 == 14 else 4
    try:
        return not continues_name(text[:size].decode())
    except UnicodeDecodeError:
        return False


@dataclass(frozen=True)
class _Index:
    """Texts -> ids, and the texts in order: the texts that begin with another one are one range."""

    ids: dict[bytes, tuple[int, ...]]
    ordered: list[bytes]

    @classmethod
    def of(cls, pairs: Iterable[tuple[bytes, tuple[int, ...]]]) -> _Index:
        ids: dict[bytes, tuple[int, ...]] = {}
        for text, found in pairs:
            ids[text] = (*ids.get(text, ()), *found)
        return cls(ids, sorted(ids))

    def longer_than(self, text: bytes) -> list[bytes]:
        """The texts that begin with `text` (not empty) and go on."""
        end = text[:-1] + bytes((text[-1] + 1,)) if text[-1] < 255 else text + b"\xff" * 8
        return self.ordered[bisect_right(self.ordered, text) : bisect_left(self.ordered, end)]


@dataclass(eq=False)
class NameMasks:
    """Masks for one vocabulary.

    extra    bytes that cannot end a name here, beside letters, digits and _ (the dot in a qualified name)
    instead  bytes that may stand where a name is due, in its place

    A token w is allowed iff for some name l: w is a beginning of l, or w = l b ... where b ends a name.
    """

    vocabulary: Vocabulary
    extra: bytes = b""
    instead: bytes = b""
    _kept: OrderedDict[tuple[Names, Space], Mask] = field(default_factory=OrderedDict, repr=False)

    def allowed(self, names: Names, space: Space = "") -> Mask:
        """The tokens that may come next; end tokens exactly if one of the names is complete.

        space  blanks that may come first, alone or in front of the beginning of a name; "": the name has begun
        """
        key = (names, space)
        if key not in self._kept:
            self._kept[key] = self._compute(names, space)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def ending(self, rest: bytes) -> Mask:
        """The tokens that write `rest` and end the name there: `rest` and a break; for b"" a break or the end."""
        if not rest:
            return self.breaking | self.vocabulary.end_mask
        longer = (t for t in self._plain.longer_than(rest) if breaks(t[len(rest) :], self.extra))
        return mask_of((i for text in longer for i in self._plain.ids[text]), self.vocabulary.size)

    def _compute(self, names: Names, space: Space) -> Mask:
        ids = set(self._spelling(names, self._plain))
        if space:
            ids.update(self._spelling(names, self._after_blanks[space]))
            ids.update(self._after_blanks[space].ids.get(b"", ()))
            for index in (self._plain, self._after_blanks[space]):
                ids.update(
                    i for text, found in index.ids.items() if text[:1] and text[0] in self.instead for i in found
                )
        mask = mask_of(ids, self.vocabulary.size)
        if b"" in names:
            mask = mask | self.breaking | self.vocabulary.end_mask
        return mask

    def _spelling(self, names: Names, index: _Index) -> Iterable[int]:
        for name in names:
            for length in range(1, len(name) + 1):
                yield from index.ids.get(name[:length], ())
            if name:
                for text in index.longer_than(name):
                    if breaks(text[len(name) :], self.extra):
                        yield from index.ids[text]

    @cached_property
    def _plain(self) -> _Index:
        return _Index(self.vocabulary.ids_of, self.vocabulary.sorted_texts)

    @cached_property
    def _after_blanks(self) -> dict[str, _Index]:
        """Tokens that begin with blanks, by what follows these."""
        out = {}
        runs = [(t, t.lstrip(BLANKS), ids) for t, ids in self.vocabulary.ids_of.items() if t[0] in BLANKS]
        for space, pattern in _RUNS.items():
            fitting = ((rest, ids) for text, rest, ids in runs if pattern.fullmatch(text[: len(text) - len(rest)]))
            out[space] = _Index.of(fitting)
        return out

    @cached_property
    def breaking(self) -> Mask:
        """The tokens that begin with a character that ends a name."""
        starts = (ids for text, ids in self.vocabulary.ids_of.items() if breaks(text, self.extra))
        return mask_of((i for ids in starts for i in ids), self.vocabulary.size)


@lru_cache(maxsize=16)
def masks_for(vocabulary: Vocabulary, extra: bytes = b"", instead: bytes = b"") -> NameMasks:
    """The masks of a vocabulary, the same object each time: building their indices takes a moment."""
    return NameMasks(vocabulary, extra, instead)
