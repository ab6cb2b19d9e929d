"""Every kind of constraint, for any of the tiny runtimes: what the drafter x runtime x choice x batch product adds.

The pieces are so few that every runtime can write the JSON, the pattern and the choices; ids past them are letters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice, product

from likely.decoding.constraint import Constraint
from likely.guided.form import make_form
from likely.guided.guide import Guide
from likely.guided.settings import FormSettings
from likely.guided.vocabulary import Vocabulary

END = 7
_FIRST = [b"{", b'"', b"a", b":", b"1", b",", b"}", b"", b"[", b"]", b'":']
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "aa": {"type": "string", "maxLength": 3}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMS = {
    "schema": {"schema": SCHEMA},
    "regex": {"regex": r"a(1|,a|\[1\])*"},
    "grammar": {"grammar": 'start: "[" (start ("," start)*)? "]" | "a" | "11"'},
    "choices": {"choices": ["aaa1", "aaa11", "1,1,1,1", "[a]"]},
}


class Unforced:
    """A constraint that proposes nothing: what speculation is compared with."""

    def __init__(self, inner: Constraint):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def forced(self):
        return []

    def fork(self):
        return Unforced(self.inner.fork())


def pieces(vocab_size: int) -> list[bytes]:
    longer = (bytes(parts) for n in (2, 3) for parts in product(b"abcdefgh", repeat=n))
    return [*_FIRST[:vocab_size], *islice(longer, max(0, vocab_size - len(_FIRST)))]


def vocabulary(vocab_size: int) -> Vocabulary:
    tokens = pieces(vocab_size)

    def encode(text: str) -> list[int]:
        raw, ids = text.encode(), []
        while raw:
            best = max((t for t in tokens if t and raw.startswith(t)), key=len, default=None)
            if best is None:
                raise UnicodeDecodeError("pieces", raw, 0, 1, "no piece writes it")
            ids.append(tokens.index(best))
            raw = raw[len(best) :]
        return ids

    return Vocabulary(tuple(tokens), frozenset({END}), END, encode)


def constraints(vocab_size: int) -> dict[str, Callable[[], Constraint]]:
    """kind -> a fresh constraint in its first state."""
    guide = Guide(vocabulary(vocab_size))
    forms = {kind: make_form(**form, settings=FormSettings(whitespace="compact")) for kind, form in FORMS.items()}
    return {kind: partial(guide.constraint, form) for kind, form in forms.items()}
