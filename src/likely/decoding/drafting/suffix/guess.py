"""What to draft from a suffix tree: for each length of match a continuation, of them the one expected to be kept most.

D(token) = D(before it) count(with it) / count(before it), 1 at the match; a draft of a match of m tokens has at most
floor(factor m + offset) tokens, each with D >= min_prob; its `expected` is the sum of its D.

Oliaro et al. 2024, arXiv:2411.04975, with the probabilities of its official code (counts of the parent, suffixes that
end there included).
"""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from likely.decoding.drafting.suffix.tree import SuffixTree, TreePlace

_NOWHERE: list[int] = []


@dataclass(frozen=True)
class DraftLimits:
    """How long a draft may be, and how unlikely a token of it; tree: whether drafts branch.

    A match of m tokens gives a draft of at most floor(factor m + offset) tokens.
    """

    factor: float = 1.0
    offset: float = 0.0
    min_prob: float = 0.1
    tree: bool = False

    def __post_init__(self) -> None:
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"spec_factor must be > 0, got {self.factor}")
        if not math.isfinite(self.offset):
            raise ValueError(f"spec_offset must be finite, got {self.offset}")
        if not 0 <= self.min_prob <= 1:
            raise ValueError(f"min_prob must lie in [0, 1], got {self.min_prob}")


@dataclass(frozen=True)
class Guess:
    """Tokens with their parents (-1: the root), the sum of their D, and the length of the match."""

    tokens: list[int]
    parents: list[int]
    expected: float
    match: int


NO_GUESS = Guess([], [], 0.0, 0)


@lru_cache(maxsize=4096)
def match_lengths(longest: int, budget: int, max_depth: int, limits: DraftLimits) -> tuple[tuple[int, int, int], ...]:
    """(bound on the expectation, m, most tokens) for m = 1 .. longest; largest bound first, then the longer match.

    D sums to at most 1 over the tokens of one depth, and no draft goes deeper than max_depth - m.
    """
    found = []
    for m in range(1, longest + 1):
        most = max(0, min(math.floor(limits.factor * m + limits.offset + 1e-6), budget))
        found.append((min(most, max_depth - m), m, most))
    return tuple(sorted(found, reverse=True))


def best_guess(
    tree: SuffixTree,
    text: array,
    longest: int,
    budget: int,
    limits: DraftLimits,
    *,
    waiting: Callable[[int], list[int]] | None = None,
    above: float = 0.0,
) -> Guess:
    """The draft expected to keep most, of equals the one with the longer match; NO_GUESS if none exceeds `above`.

    text     the context; its last `longest` tokens, and so any fewer, have a place in the tree
    waiting  m -> ends in the text of those occurrences of the last m tokens that the tree does not count
    """
    best = NO_GUESS
    counts = Occurrences(tree, text, longest, waiting)
    grown: dict[int, tuple[list[int], float]] = {}  # count -> the path, begun with the largest bound
    for bound, m, most in match_lengths(longest, budget, tree.max_depth, limits):
        if bound <= above or (bound, m) < (best.expected, best.match):
            break
        if limits.tree:
            place, ends = counts.places(m)
            tokens, parents, total = grow_tree(tree, *place, ends, text, most, tree.max_depth - m, limits.min_prob)
            expected = min(total, float(bound))  # sums round
        else:
            known = grown.get(counts.of(m)) if grown else None
            if known is None:
                place, ends = counts.places(m)
                floor = max(best.expected, above)
                known = grow_path(tree, *place, ends, text, bound, limits.min_prob, floor)
                grown[counts.note(m, tree.weight(place[0]) + len(ends))] = known
            tokens, expected = known  # the same occurrences have the same path, for which each has its bound
            if len(tokens) > bound:
                continue
            parents = list(range(-1, len(tokens) - 1))
        if expected > above and (expected, m) > (best.expected, best.match):
            best = Guess(tokens, parents, expected, m)
    return best


class Occurrences:
    """Of the last m tokens: where, and how many.

    Longer ones are no more frequent, so that lengths between two of equal count have that count, and the same places.
    """

    def __init__(self, tree: SuffixTree, text: array, longest: int, waiting: Callable[[int], list[int]] | None):
        self._tree, self._text, self._longest, self._waiting = tree, text, longest, waiting
        self._known: list[int] = []  # lengths, sorted
        self._counts: dict[int, int] = {}

    def places(self, m: int) -> tuple[TreePlace, list[int]]:
        """The place in the tree, and the ends in the text of those that wait."""
        n = len(self._text)
        place = self._tree.find(self._text, n - m, n)
        assert place is not None
        return place, self._waiting(m) if self._waiting else _NOWHERE

    def of(self, m: int) -> int:
        known, counts = self._known, self._counts
        if not known or m > known[-1]:
            self._look(self._longest)
        if m < known[0]:
            self._look((m + 1) // 2)
        if m not in counts:
            at = bisect_left(known, m)
            if counts[known[at - 1]] == counts[known[at]]:
                return counts[known[at]]
            self._look(m)
        return counts[m]

    def note(self, m: int, count: int) -> int:
        if m not in self._counts:
            insort(self._known, m)
            self._counts[m] = count
        return count

    def _look(self, m: int) -> None:
        place, ends = self.places(m)
        self.note(m, self._tree.weight(place[0]) + len(ends))


def grow_path(
    tree: SuffixTree, child: int, used: int, ends: Sequence[int], text: array, most: int, min_prob: float, floor: float
) -> tuple[list[int], float]:
    """(tokens, Σ D): the most frequent continuation of a place, of at most `most` tokens with D >= min_prob.

    Nothing, once it is clear that Σ D stays below `floor`.
    """
    tokens: list[int] = []
    prob, expected = 1.0, 0.0
    while len(tokens) < most:
        if ends:
            here = tree.weight(child) + len(ends)
            steps = _steps(tree, child, used, ends, text, most=1)
            if not steps:
                break
            times, token, child, used, ends = steps[0]
        else:
            run = tree.run(child, used, most - len(tokens))
            if run:
                tokens.extend(run)
                for _ in run:  # one by one: sums of floats are compared
                    expected += prob
                used += len(run)
                continue
            best = tree.best(child)
            if best is None:
                break
            here, token = tree.weight(child), best
            child, used = tree.kids(child)[token], 1
            times = tree.weight(child)
        prob *= times / here
        if prob < min_prob:
            break
        if expected + prob * (most - len(tokens)) < floor - 1e-9:
            return [], 0.0
        tokens.append(token)
        expected += prob
    return tokens, expected


def grow_tree(
    tree: SuffixTree,
    child: int,
    used: int,
    ends: Sequence[int],
    text: array,
    most: int,
    deepest: int,
    min_prob: float,
) -> tuple[list[int], list[int], float]:
    """(tokens, parents, Σ D): the `most` continuations with the largest D, at least min_prob, at most `deepest` deep.

    In the order of decreasing D, so that any first n are the best n.
    """
    tokens: list[int] = []
    parents: list[int] = []
    expected, number = 0.0, count()
    heap: list[tuple] = []

    def push(prob: float, parent: int, depth: int, child: int, used: int, ends: Sequence[int]) -> None:
        here = tree.weight(child) + len(ends)
        least = math.floor(min_prob / prob * here)
        for times, token, *place in _steps(tree, child, used, ends, text, most=most - len(tokens), least=least):
            after = prob * (times / here)
            if after >= min_prob:
                heapq.heappush(heap, (-after, next(number), token, parent, depth, *place))

    push(1.0, -1, 1, child, used, ends)
    while heap and len(tokens) < most:
        negative, _, token, parent, depth, child, used, ends = heapq.heappop(heap)
        tokens.append(token)
        parents.append(parent)
        expected -= negative
        if depth < deepest and len(tokens) < most:
            push(-negative, len(tokens) - 1, depth + 1, child, used, ends)
    return tokens, parents, expected


def _steps(
    tree: SuffixTree, child: int, used: int, ends: Sequence[int], text: array, *, most: int, least: int = 0
) -> list[tuple[int, int, int, int, Sequence[int]]]:
    """(count, token, child, used, ends) of the `most` most frequent next tokens, of equals the smaller token first.

    least  leave out what the tree counts less often, unless it waits, too
    """
    following: dict[int, list[int]] = {}
    for end in ends:
        if end < len(text):
            following.setdefault(text[end], []).append(end + 1)
    run = tree.run(child, used, 1)
    if run:
        places = {run[0]: (child, used + 1)}
    else:
        best = tree.best(child)
        if best is None:
            return []
        kids = tree.kids(child)
        if most == 1:
            heads = [best, *following]
        else:
            least -= len(ends)
            heads = [token for token, kid in kids.items() if tree.weight(kid) >= least]
        places = {token: (kids[token], 1) for token in heads}
    steps: list[tuple[int, int, int, int, Sequence[int]]] = []
    for token, (kid, n) in places.items():
        after = following.get(token, _NOWHERE)
        steps.append((tree.weight(kid) + len(after), token, kid, n, after))
    if len(steps) > 1:
        steps.sort(key=lambda step: (-step[0], step[1]))
    return steps[:most]
