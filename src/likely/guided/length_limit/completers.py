"""How a text can be completed in few tokens: what `LengthLimit` decides by as the budget runs out.

A completer knows one completion of the text so far.  Its number of tokens, an upper bound of what is needed, decides
which tokens still fit.  The first token of the completion, written in the fewest tokens, always fits: a text never gets
stuck.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from likely.decoding.constraint import Mask, mask_of, members, pack
from likely.guided.engines.automaton import ByteAutomaton, ShortestCompletions
from likely.guided.engines.reference import TokenSteps
from likely.guided.length_limit.search import CompletionSearch, open_string
from likely.guided.length_limit.tokenization import UNWRITABLE, ShortestTokenization

CANDIDATES = 256  # where more tokens are allowed near the limit, so many are checked: those of the lowest ids
NEAR = 16  # tokens beside those needed: farther from the limit, of many tokens only the chosen one is checked
END = 256  # the end token of the vocabulary of bytes


class Completer(Protocol):
    """Follows one text.

    completion     bytes that complete the text
    tokens_needed  the fewest tokens that write them, UNWRITABLE if none do
    """

    @property
    def tokens_needed(self) -> int: ...
    @property
    def completion(self) -> bytes: ...

    def fits_all(self, budget: int) -> bool:
        """Whether a text can be completed in `budget` tokens whatever token comes next."""
        ...

    def restrict(self, mask: Mask, budget: int) -> tuple[Mask, bool]:
        """(the tokens of `mask` after which `budget` tokens complete the text, whether these are all of them)"""
        ...

    def tokens_needed_after(self, text: bytes) -> int: ...
    def advance(self, text: bytes) -> None: ...
    def rollback(self, n: int) -> None: ...
    def fork(self) -> Completer: ...


class AutomatonCompleter:
    """By exact distances in bytes, written in the fewest tokens; every token is checked, at every budget."""

    def __init__(self, steps: TokenSteps, tokenization: ShortestTokenization):
        self.steps, self.tokenization = steps, tokenization
        self._shortest = ShortestCompletions(steps.automaton, tokenization.usable)
        self._distance = self._shortest.distance
        self._ceiling = int(self._distance.max())
        self._needed: dict[int, int] = {}
        self._states = [0]

    @property
    def automaton(self) -> ByteAutomaton:
        return self.steps.automaton

    @property
    def completion(self) -> bytes:
        return self._shortest.after(self._states[-1]) or b""

    @property
    def tokens_needed(self) -> int:
        return self._tokens(self._states[-1])

    def _tokens(self, state: int) -> int:
        if state not in self._needed:
            text = self._shortest.after(state)
            self._needed[state] = UNWRITABLE if text is None else self.tokenization.fewest_tokens(text)
        return self._needed[state]

    def fits_all(self, budget: int) -> bool:
        return budget >= self._ceiling

    def restrict(self, mask: Mask, budget: int) -> tuple[Mask, bool]:
        if self.fits_all(budget):
            return mask, True
        after = self.steps.after(self._states[-1])
        ids = members(mask)
        states, which = np.unique(after[ids], return_inverse=True)
        fits = np.array(  # no completion takes more tokens than bytes
            [s >= 0 and (self._distance[s] <= budget or self._tokens(s) <= budget) for s in states.tolist()]
        )
        kept = np.zeros(self.tokenization.vocabulary.size, np.bool_)
        kept[ids] = fits[which]
        return pack(kept), True

    def tokens_needed_after(self, text: bytes) -> int:
        state = self.automaton.walk(self._states[-1], text)
        return UNWRITABLE if state < 0 else self._tokens(state)

    def advance(self, text: bytes) -> None:
        self._states.append(self.automaton.walk(self._states[-1], text))

    def rollback(self, n: int) -> None:
        if n:
            del self._states[-n:]

    def fork(self) -> AutomatonCompleter:
        other = copy(self)
        other._states = self._states.copy()
        return other


@dataclass(eq=False)
class MatcherCompleter:
    """Short completions found by a second matcher of the same grammar, over single bytes.

    patterns  what the strings of a JSON text must match, any of them: their shortest completions are tried first
    growth    what one token adds, at most, to the number of tokens needed: farther from the limit nothing is checked

    The completion after a token is the rest of the one before, where the token follows it; else its longest part that
    still completes the text; else a new one.  So it depends on the tokens alone.
    """

    matcher: Any
    tokenization: ShortestTokenization
    usable: np.ndarray
    patterns: Sequence[ShortestCompletions] = ()
    growth: int = 0
    _completions: list[bytes | None] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=list)
    _strings: list[bytes | None] = field(default_factory=lambda: [None])  # the open string after each token
    _last_query: tuple[bytes, bytes | None] | None = None  # the last text and the completion after it

    def __post_init__(self) -> None:
        if not self._completions:  # here a little more time is spent: its length stands in an error message
            search = CompletionSearch(self.usable, self.patterns)
            found = [search.find(self.matcher, None), search.best_first(self.matcher, None)]
            self._completions = [min((each for each in found if each is not None), key=len, default=None)]

    @property
    def completion(self) -> bytes:
        return self._completions[-1] or b""

    @property
    def tokens_needed(self) -> int:
        return self._tokens(self._completions[-1])

    def _tokens(self, completion: bytes | None) -> int:
        return UNWRITABLE if completion is None else self.tokenization.fewest_tokens(completion)

    def _completion_after(self, text: bytes) -> bytes | None:
        if self._last_query is None or self._last_query[0] != text:
            self._last_query = text, self._find(text)
        return self._last_query[1]

    def _find(self, text: bytes) -> bytes | None:
        completion = self._completions[-1]
        if completion is not None:
            if completion.startswith(text):
                return completion[len(text) :]
            for common in range(min(len(text) - 1, len(completion)), -1, -1):
                if text.endswith(completion[:common]):
                    whole = [*text, *completion[common:], END]
                    if self.matcher.validate_tokens(whole) == len(whole):
                        return completion[common:]
        matcher = self.matcher.deep_copy()
        if not matcher.consume_tokens(list(text)):
            return None
        return CompletionSearch(self.usable, self.patterns).find(matcher, open_string(self._strings[-1], text))

    def fits_all(self, budget: int) -> bool:
        return budget >= self.tokens_needed + self.growth

    def restrict(self, mask: Mask, budget: int) -> tuple[Mask, bool]:
        vocabulary, ids, exact = self.tokenization.vocabulary, members(mask), True
        if self.fits_all(budget):
            return mask, True
        if len(ids) > CANDIDATES:
            if budget >= self.tokens_needed + NEAR:
                return mask, True  # the token that is chosen is checked
            ids, exact = ids[:CANDIDATES], False
        texts = {vocabulary.tokens[i] for i in ids.tolist()}
        if self.completion:
            texts.add(self.tokenization.first_token(self.completion))
        fitting = [i for text in texts if self.tokens_needed_after(text) <= budget for i in vocabulary.ids_of[text]]
        return mask_of(fitting, vocabulary.size) & mask, exact

    def tokens_needed_after(self, text: bytes) -> int:
        return self._tokens(self._completion_after(text))

    def advance(self, text: bytes) -> None:
        completion = self._completion_after(text)
        self.matcher.consume_tokens(list(text))
        self._completions.append(completion)
        self._lengths.append(len(text))
        self._strings.append(open_string(self._strings[-1], text) if self.patterns else None)
        self._last_query = None

    def rollback(self, n: int) -> None:
        if n:
            self._last_query = None
            self.matcher.rollback(sum(self._lengths[-n:]))
            del self._completions[-n:], self._lengths[-n:], self._strings[-n:]

    def fork(self) -> MatcherCompleter:
        return replace(
            self,
            matcher=self.matcher.deep_copy(),
            _completions=self._completions.copy(),
            _lengths=self._lengths.copy(),
            _strings=self._strings.copy(),
            _last_query=None,
        )


@dataclass(eq=False)
class PrefixedCompleter:
    """Of a text that begins with given bytes, before the form (token healing)."""

    completer: Completer
    tokenization: ShortestTokenization
    prefix: bytes
    _prefixes: list[tuple[bytes, bool]] = field(default_factory=list)  # before each token; whether the form got a part

    @property
    def completion(self) -> bytes:
        return self.prefix + self.completer.completion

    @property
    def tokens_needed(self) -> int:
        return (
            self.tokenization.fewest_tokens(self.completion)
            if self.completer.tokens_needed < UNWRITABLE
            else UNWRITABLE
        )

    def fits_all(self, budget: int) -> bool:
        return self.completer.fits_all(budget - len(self.prefix))

    def restrict(self, mask: Mask, budget: int) -> tuple[Mask, bool]:
        if not self.prefix:
            return self.completer.restrict(mask, budget)
        if self.fits_all(budget):
            return mask, True
        vocabulary = self.tokenization.vocabulary
        ids = members(mask)
        texts = {vocabulary.tokens[i] for i in ids[:CANDIDATES].tolist()} | {
            self.tokenization.first_token(self.completion)
        }
        fitting = [i for text in texts if self.tokens_needed_after(text) <= budget for i in vocabulary.ids_of[text]]
        return mask_of(fitting, vocabulary.size) & mask, len(ids) <= CANDIDATES

    def tokens_needed_after(self, text: bytes) -> int:
        if self.prefix.startswith(text):
            return self.tokenization.fewest_tokens(self.prefix[len(text) :] + self.completer.completion)
        if not text.startswith(self.prefix):
            return UNWRITABLE
        return self.completer.tokens_needed_after(text[len(self.prefix) :])

    def advance(self, text: bytes) -> None:
        rest = text[len(self.prefix) :]
        self._prefixes.append((self.prefix, bool(rest)))
        self.prefix = self.prefix[len(text) :]
        if rest:
            self.completer.advance(rest)

    def rollback(self, n: int) -> None:
        for _ in range(n):
            self.prefix, in_form = self._prefixes.pop()
            if in_form:
                self.completer.rollback(1)

    def fork(self) -> PrefixedCompleter:
        return PrefixedCompleter(self.completer.fork(), self.tokenization, self.prefix, self._prefixes.copy())
