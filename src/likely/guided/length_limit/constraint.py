"""A length limit that leaves no incomplete text: tokens after which the text could not be completed are left out."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.decoding.constraint import Constraint, Mask
from likely.errors import ConstraintError
from likely.guided.engines.automaton import ByteAutomaton, ShortestCompletions
from likely.guided.engines.llguidance import LLGuidance, LLGuidanceConstraint
from likely.guided.engines.reference import Reference
from likely.guided.length_limit.completers import (
    AutomatonCompleter,
    Completer,
    MatcherCompleter,
    PrefixedCompleter,
)
from likely.guided.length_limit.tokenization import UNWRITABLE, ShortestTokenization
from likely.guided.settings import Form
from likely.guided.vocabulary import Vocabulary, byte_vocabulary

LARGEST = 2000  # states of an automaton that is built for the distances
MOST_PATTERNS = 16  # of a schema whose automata are built
MOST_LETTERS = 20_000  # of all choices together, for an automaton of them
CompileForm = Callable[[LLGuidance], LLGuidanceConstraint]


@dataclass(eq=False)
class LengthLimit:
    """`inner`, without the tokens after which the text could not be completed within the budget.

    Where `allowed` gets no `remaining` nothing is left out; nor far from the limit, where `permits` has the last
    word.  The end token needs no room: a text that is whole when the budget is used up is whole.  Where too many tokens
    would have to be checked some are left out unchecked, and `approximate` says so.
    """

    inner: Constraint
    completer: Completer
    vocabulary: Vocabulary
    taken: int = 0
    ended: bool = False
    cut: bool = False
    _room: int | None = None  # since the last `allowed`: tokens that may follow the next one

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    @property
    def accepting(self) -> bool:
        return self.inner.accepting

    @property
    def finished(self) -> bool:
        return self.inner.finished

    @property
    def approximate(self) -> bool:
        return self.cut or self.inner.approximate

    def allowed(self, remaining: int | None = None) -> Mask:
        mask = self.inner.allowed(remaining)
        self._room = None if remaining is None else remaining - 1
        if remaining is None or self.ended:
            return mask
        needed = self.completer.tokens_needed
        if needed > remaining and not self.taken:
            raise ConstraintError(
                f"max_tokens is {remaining}, but the shortest known completion of the form takes {needed} "
                f"tokens: give at least that many (in Python, close_on_budget=False lets it be cut)"
            )
        kept, exact = self.completer.restrict(mask & self.vocabulary.text_mask, remaining - 1)
        kept = kept | (mask & ~self.vocabulary.text_mask)
        if not kept.any():  # the budget is exceeded, which only beams and sampled drafts can do: they skip `permits`
            self._room = None
            return mask
        self.cut |= not exact
        return kept

    def after_prefix(self, prefix: bytes, inner: Constraint, tokenization: ShortestTokenization) -> LengthLimit:
        """For a text that begins with `prefix`, before the form; `inner` holds both."""
        return replace(self, inner=inner, completer=PrefixedCompleter(self.completer.fork(), tokenization, prefix))

    def permits(self, token: int) -> bool:
        """After `allowed(remaining)` this checks the token itself, also where the mask holds it unchecked."""
        if not self.inner.permits(token):
            return False
        if (
            self._room is None
            or token in self.vocabulary.end_ids
            or self.completer.tokens_needed_after(self.vocabulary.tokens[token]) <= self._room
        ):
            return True
        self.cut = True
        return False

    def advance(self, token: int) -> None:
        self.inner.advance(token)
        self.taken += 1
        self._room = None
        if token in self.vocabulary.end_ids:
            self.ended = True
        else:
            self.completer.advance(self.vocabulary.tokens[token])

    def forced(self) -> list[int]:
        return self.inner.forced()

    def fork(self) -> LengthLimit:
        return replace(self, inner=self.inner.fork(), completer=self.completer.fork(), _room=None)

    def rollback(self, n: int) -> None:
        self.inner.rollback(n)
        self.taken -= n
        self._room = None
        if n and self.ended:
            self.ended, n = False, n - 1
        self.completer.rollback(n)

    def ready(self, wait: bool = False) -> bool:
        return self.inner.ready(wait)


class LengthLimiter:
    """Limits the forms of one vocabulary; what they share is made once."""

    def __init__(self, vocabulary: Vocabulary, reference: Reference):
        self.vocabulary, self.reference, self.tokenization = vocabulary, reference, ShortestTokenization(vocabulary)

    def limit(self, inner: Constraint, form: Form, compile_form: CompileForm) -> Constraint:
        """`inner` within budgets; as it is where no completion of the form is found at all.

        compile_form  the form in a given engine of llguidance
        """
        completer = self._completer(form, compile_form)
        return inner if completer.tokens_needed >= UNWRITABLE else LengthLimit(inner, completer, self.vocabulary)

    def _completer(self, form: Form, compile_form: CompileForm) -> Completer:
        automaton = None
        if form.kind == "choices" and sum(len(c.encode()) for c in form.source) <= MOST_LETTERS:
            automaton = ByteAutomaton.of_texts(form.source)
        elif form.kind == "regex":
            with contextlib.suppress(ConstraintError):  # too large, or syntax that the other engine takes
                automaton = ByteAutomaton.of_regex(form.source, max_states=LARGEST)
        if automaton is not None:
            return AutomatonCompleter(self.reference.steps(automaton), self.tokenization)
        matcher = compile_form(self._bytes).matcher
        usable = self.tokenization.usable
        patterns = _patterns(form.source, usable) if form.kind == "schema" else []
        completer = MatcherCompleter(matcher, self.tokenization, usable, patterns)
        completer.growth = self._growth(form, completer.tokens_needed)
        return completer

    @cached_property
    def _bytes(self) -> LLGuidance:
        return LLGuidance(byte_vocabulary())

    def _growth(self, form: Form, needed: int) -> int:
        """How much one token may add: everything that the form spells out once, counted repeats in full.

        An estimate, as a form may use one definition many times: where it is wrong a text can stay incomplete.
        """
        source = form.source if isinstance(form.source, str) else json.dumps(form.source)
        spelled = json.dumps(list(_literals(form.source))) if form.kind == "schema" else source
        counted = sum(int(n) for n in re.findall(r'(?:"min\w+": ?|\{)(\d{1,4})\b', source))
        tokens = self.vocabulary.guess(spelled.encode()) or spelled
        return len(tokens) + min(needed, 4096) + counted + 32


def why_cut(form: Form, constraint: Constraint) -> str:
    """Why texts of the form may be cut at max_tokens although they were to be closed; "" where they are closed."""
    if not form.settings.close_on_budget or isinstance(constraint, LengthLimit):
        return ""
    source = form.source if isinstance(form.source, str) else json.dumps(form.source)
    return (
        f"no completion of this {form.kind} was found, so that its texts may be cut at max_tokens: "
        f"{' '.join(source.split())[:80]}"
    )


def _literals(schema: Any) -> Iterator[Any]:
    """What a JSON Schema spells out: names of properties, each with an empty value, and constants."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in ("enum", "const"):
                yield value
            elif key == "properties" and isinstance(value, Mapping):
                yield {name: "" for name in value}
            yield from _literals(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _literals(item)


def _patterns(schema: Any, usable: NDArray[np.bool_]) -> list[ShortestCompletions]:
    """Of the patterns of a JSON Schema, as they are written inside quotes, where they are small automata."""
    plain = usable.copy()
    plain[list(range(32)) + list(b'"\\')] = False  # these would be written as escapes
    found = []
    for pattern in list(dict.fromkeys(_values_of("pattern", schema)))[:MOST_PATTERNS]:
        with contextlib.suppress(ConstraintError):
            found.append(ShortestCompletions(_automaton_of(pattern), plain))
    return found


@lru_cache(maxsize=64)
def _automaton_of(pattern: str) -> ByteAutomaton:
    """Of the strings in which the pattern occurs."""
    body = pattern.removeprefix("^").removesuffix("$")
    before = "" if pattern.startswith("^") else "(?s:.)*"
    after = "" if pattern.endswith("$") else "(?s:.)*"
    return ByteAutomaton.of_regex(f"{before}(?:{body}){after}", max_states=LARGEST)


def _values_of(keyword: str, schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key == keyword and isinstance(value, str):
                yield value
            elif key not in ("enum", "const"):
                yield from _values_of(keyword, value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _values_of(keyword, item)
