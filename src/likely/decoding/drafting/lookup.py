"""Drafts copied from the text itself: what followed the last tokens when they occurred before?

Prompt lookup (A. Saxena 2023, "Prompt Lookup Decoding") tries the last n tokens, then fewer.  CopySpec (Dumitru et al.
2025, arXiv:2502.08923, "Accelerating LLMs with Speculative Copy-and-Paste Without Compromising Quality") copies a
longer stretch after exactly `gram` of them, for conversations in which an answer repeats much of an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from likely.decoding.drafting.protocol import FIXED_ONLY, NO_DRAFT, Draft, SamplingContext

MATCH = 32
Occurrence = Literal["first", "last"]  # the earliest earlier place, or the latest


def check_occurrence(occurrence: str) -> None:
    if occurrence not in ("first", "last"):
        raise ValueError(f'occurrence must be "first" or "last", got "{occurrence}"')


class PromptLookup:
    """DraftSource: prompt lookup, longest n-gram first, from `ngram` down to 1; O(ngram) per observed token.

    occurrence  "first": the earliest occurrence with a continuation (as in transformers); "last": the latest
    """

    name = "lookup"
    distributions, free = FIXED_ONLY, True

    def __init__(self, *, ngram: int = 3, occurrence: Occurrence = "first"):
        if ngram < 1:
            raise ValueError(f"ngram must be >= 1, got {ngram}")
        check_occurrence(occurrence)
        self.ngram, self.occurrence = ngram, occurrence

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> LookupDrafter:
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

    def fork(self, context: SamplingContext) -> LookupDrafter:
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


class CopySource:
    """DraftSource: CopySpec, up to `copy` tokens that followed an earlier occurrence of the last `gram` tokens.

    gram        tokens that must agree: more of them give fewer but better copies
    occurrence  "first": the earliest one, as in the paper; "last": the latest.  Replayed on 112 second turns of
                MT-Redundant, "last" gives 0.010 tokens per call less [0.002, 0.021], of 2.09

    Unlike prompt lookup it never falls back to fewer tokens than `gram`.  Keys are the tokens themselves, where the
    official code compares hashes.
    """

    name = "copy"
    distributions, free = FIXED_ONLY, True

    def __init__(self, gram: int = 3, copy: int = 10, *, occurrence: Occurrence = "first"):
        if gram < 1:
            raise ValueError(f"gram must be >= 1, got {gram}")
        if copy < 1:
            raise ValueError(f"copy must be >= 1, got {copy}")
        check_occurrence(occurrence)
        self.gram, self.copy, self.occurrence = gram, copy, occurrence

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> CopyDrafter:
        drafter = CopyDrafter(self.gram, self.copy, self.occurrence == "first")
        drafter.observe(prompt)
        return drafter


class CopyDrafter:
    """The index of one sequence, O(1) per observed token.

    follows[gram]  the position after its first (or last) occurrence that something follows
    replaced[i]    what follows[gram before position i] was when the token at i came: rollback puts it back
    """

    def __init__(self, gram: int, copy: int, first: bool):
        self._gram, self._copy, self._first = gram, copy, first
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self._replaced: list[int | None] = []

    def observe(self, tokens: Sequence[int]) -> None:
        gram, known, follows, replaced = self._gram, self._tokens, self._follows, self._replaced
        for token in tokens:
            end, before = len(known), None
            if end >= gram:
                key = tuple(known[end - gram :])
                before = follows.get(key)
                if before is None or not self._first:
                    follows[key] = end
            replaced.append(before)
            known.append(int(token))

    def rollback(self, n: int) -> None:
        for _ in range(n):
            self._tokens.pop()
            before, end = self._replaced.pop(), len(self._tokens)
            if end < self._gram:
                continue
            key = tuple(self._tokens[end - self._gram :])
            if before is None:
                del self._follows[key]
            else:
                self._follows[key] = before

    def propose(self, budget: int) -> Draft:
        if budget <= 0 or len(self._tokens) < self._gram:
            return NO_DRAFT
        start = self._follows.get(tuple(self._tokens[-self._gram :]))
        if start is None:
            return NO_DRAFT
        copied = self._tokens[start : start + min(budget, self._copy)]
        return Draft.chain(copied, match=agreement(self._tokens, start))

    def fork(self, context: SamplingContext) -> CopyDrafter:
        twin = CopyDrafter(self._gram, self._copy, self._first)
        twin._tokens, twin._replaced = self._tokens.copy(), self._replaced.copy()
        twin._follows = self._follows.copy()
        return twin

    def end(self) -> None:
        self._tokens, self._follows, self._replaced = [], {}, []
