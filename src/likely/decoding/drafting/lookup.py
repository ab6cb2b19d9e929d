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


class _Matches:
    """DraftSource: what followed an earlier occurrence of the last n tokens, for each n of `sizes` in turn."""

    distributions, free = FIXED_ONLY, True

    def __init__(self, sizes: tuple[int, ...], most: int | None, occurrence: Occurrence):
        if occurrence not in ("first", "last"):
            raise ValueError(f'occurrence must be "first" or "last", got "{occurrence}"')
        self._sizes, self._most, self._occurrence = sizes, most, occurrence

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> MatchDrafter:
        drafter = MatchDrafter(self._sizes, self._most, self._occurrence)
        drafter.observe(prompt)
        return drafter


class PromptLookup(_Matches):
    """DraftSource: prompt lookup, longest n-gram first, from `ngram` down to 1.

    occurrence  "first": the earliest occurrence with a continuation (as in transformers); "last": the latest
    """

    name = "lookup"

    def __init__(self, *, ngram: int = 3, occurrence: Occurrence = "first"):
        if ngram < 1:
            raise ValueError(f"ngram must be >= 1, got {ngram}")
        super().__init__(tuple(range(ngram, 0, -1)), None, occurrence)


class CopySource(_Matches):
    """DraftSource: CopySpec, up to `copy` tokens that followed an earlier occurrence of the last `gram` tokens.

    gram        tokens that must agree: more of them give fewer but better copies
    occurrence  "first": the earliest one, as in the paper; "last": the latest.  Replayed on 112 second turns of
                MT-Redundant, "last" gives 0.010 tokens per call less [0.002, 0.021], of 2.09

    Unlike prompt lookup it never falls back to fewer tokens than `gram`.  Keys are the tokens themselves, where the
    official code compares hashes.
    """

    name = "copy"

    def __init__(self, gram: int = 3, copy: int = 10, *, occurrence: Occurrence = "first"):
        if gram < 1:
            raise ValueError(f"gram must be >= 1, got {gram}")
        if copy < 1:
            raise ValueError(f"copy must be >= 1, got {copy}")
        super().__init__((gram,), copy, occurrence)


class PredictedText(_Matches):
    """DraftSource: a text that the answer is expected to repeat, from its beginning on, and wherever they agree again.

    predicted  its token ids
    """

    name = "prediction"

    def __init__(self, predicted: Sequence[int]):
        super().__init__((16, 3, 2, 1), None, "first")  # 16: the beginning, though the prompt's last words stood before
        self._predicted = list(predicted)

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> MatchDrafter:
        """The text stands after the prompt, as the answer will: its beginning follows the prompt's last tokens."""
        drafter = MatchDrafter(self._sizes, self._most, self._occurrence)
        drafter.observe([*prompt, *self._predicted])
        drafter.observe(prompt)
        return drafter


class MatchDrafter:
    """The n-grams of one sequence and what followed them; O(1) per observed token and size.

    sizes             n, those tried first first;  most: longest copy, None: no limit
    follows[n-gram]   the position after its first (or last) occurrence that something follows
    replaced          what each entry of `follows` was before, in the order of writing: rollback puts it back
    """

    def __init__(self, sizes: tuple[int, ...], most: int | None, occurrence: Occurrence):
        self._sizes, self._most, self._occurrence = sizes, most, occurrence
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self._replaced: list[int | None] = []

    def observe(self, tokens: Sequence[int]) -> None:
        known, follows, replaced, first = self._tokens, self._follows, self._replaced, self._occurrence == "first"
        for token in tokens:
            end = len(known)
            for n in self._sizes:
                if n <= end:
                    key = tuple(known[end - n :])
                    before = follows.get(key)
                    if before is None or not first:
                        follows[key] = end
                    replaced.append(before)
            known.append(int(token))

    def rollback(self, n: int) -> None:
        for _ in range(n):
            self._tokens.pop()
            end = len(self._tokens)
            for size in reversed(self._sizes):
                if size <= end:
                    key, before = tuple(self._tokens[end - size :]), self._replaced.pop()
                    if before is None:
                        del self._follows[key]
                    else:
                        self._follows[key] = before

    def propose(self, budget: int) -> Draft:
        tokens = self._tokens
        for n in self._sizes if budget > 0 else ():
            start = self._follows.get(tuple(tokens[-n:])) if n <= len(tokens) else None
            if start is not None:
                length = budget if self._most is None else min(budget, self._most)
                return Draft.chain(tokens[start : start + length], match=agreement(tokens, start))
        return NO_DRAFT

    def fork(self, context: SamplingContext) -> MatchDrafter:
        twin = MatchDrafter(self._sizes, self._most, self._occurrence)
        twin._tokens, twin._replaced = self._tokens.copy(), self._replaced.copy()
        twin._follows = self._follows.copy()
        return twin

    def end(self) -> None:
        self._tokens, self._follows, self._replaced = [], {}, []


def agreement(tokens: Sequence[int], start: int) -> int:
    """How many tokens before `start` and before the end are the same, looking back at most MATCH."""
    end, n = len(tokens), 0
    while n < min(start, MATCH) and tokens[start - 1 - n] == tokens[end - 1 - n]:
        n += 1
    return n
