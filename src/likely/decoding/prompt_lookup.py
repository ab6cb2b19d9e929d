"""Prompt lookup: what followed the last n tokens when they occurred before?

A. Saxena 2023, "Prompt Lookup Decoding".  One hash map per n, O(ngram) per observed token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from likely.decoding.draft import FIXED_ONLY, NO_DRAFT, Draft, Draw

MATCH = 32


class PromptLookup:
    """DraftSource: longest n-gram first, from `ngram` down to 1.

    occurrence  "first": the earliest occurrence with a continuation (as in transformers); "last": the latest
    """

    name = "lookup"
    laws, free = FIXED_ONLY, True

    def __init__(self, *, ngram: int = 3, occurrence: Literal["first", "last"] = "first"):
        if ngram < 1:
            raise ValueError(f"ngram must be >= 1, got {ngram}")
        if occurrence not in ("first", "last"):
            raise ValueError(f'occurrence must be "first" or "last", got "{occurrence}"')
        self.ngram, self.occurrence = ngram, occurrence

    def begin(self, prompt: Sequence[int], draw: Draw) -> LookupDrafter:
        drafter = LookupDrafter(self.ngram, self.occurrence == "first")
        drafter.observe(prompt)
        return drafter


class LookupDrafter:
    """The index of one sequence: n-gram -> positions that follow it, in order."""

    def __init__(self, ngram: int, first: bool):
        self._ngram, self._first = ngram, first
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], list[int]] = {}

    def observe(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self._tokens)
            for n in range(1, min(self._ngram, end) + 1):
                self._follows.setdefault(tuple(self._tokens[end - n :]), []).append(end)
            self._tokens.append(int(token))

    def rollback(self, n: int) -> None:
        for _ in range(n):
            self._tokens.pop()
            end = len(self._tokens)
            for size in range(1, min(self._ngram, end) + 1):
                key = tuple(self._tokens[end - size :])
                self._follows[key].pop()
                if not self._follows[key]:
                    del self._follows[key]

    def propose(self, budget: int) -> Draft:
        if budget > 0:
            for n in range(min(self._ngram, len(self._tokens)), 0, -1):
                places = self._follows.get(tuple(self._tokens[-n:]))
                if places:
                    start = places[0 if self._first else -1]
                    return Draft.chain(self._tokens[start : start + budget], match=agreement(self._tokens, start))
        return NO_DRAFT

    def fork(self, draw: Draw) -> LookupDrafter:
        copy = LookupDrafter(self._ngram, self._first)
        copy._tokens = self._tokens.copy()
        copy._follows = {key: places.copy() for key, places in self._follows.items()}
        return copy

    def end(self) -> None:
        self._tokens, self._follows = [], {}


def agreement(tokens: Sequence[int], start: int) -> int:
    """How many tokens before `start` and before the end are the same, looking back at most MATCH."""
    end, n = len(tokens), 0
    while n < min(start, MATCH) and tokens[start - 1 - n] == tokens[end - 1 - n]:
        n += 1
    return n
