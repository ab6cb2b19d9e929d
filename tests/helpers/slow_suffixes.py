"""SuffixDecoding, slowly: a dictionary of all n-grams, and every match length tried."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence


def ngrams(texts: Iterable[Sequence[int]], max_depth: int) -> Counter:
    """n-gram (tuple of at most max_depth tokens) -> how often it occurs."""
    return Counter(
        tuple(text[i : i + n])
        for text in texts
        for i in range(len(text))
        for n in range(1, min(max_depth, len(text) - i) + 1)
    )


def path(counts: Counter, match: tuple, most: int, min_prob: float, max_depth: int):
    tokens, parents, expected, prob = [], [], 0.0, 1.0
    while len(tokens) < most and len(match) < max_depth:
        options = [(-counts[gram], gram[-1]) for gram in counts if len(gram) == len(match) + 1 and gram[:-1] == match]
        if not options:
            break
        times, token = min(options)
        prob *= -times / counts[match]
        if prob < min_prob:
            break
        parents.append(len(tokens) - 1)
        tokens.append(token)
        expected += prob
        match = (*match, token)
    return tokens, parents, expected


def tree(counts: Counter, match: tuple, most: int, min_prob: float, max_depth: int):
    tokens, parents, expected = [], [], 0.0
    waiting: list[tuple] = []  # (-prob, order, gram, parent)
    order = 0

    def push(gram, prob, parent):
        nonlocal order
        following = [g for g in counts if len(g) == len(gram) + 1 and g[:-1] == gram]
        for longer in sorted(following, key=lambda g: (-counts[g], g[-1])):
            after = prob * (counts[longer] / counts[gram])
            if after >= min_prob:
                waiting.append((-after, order, longer, parent))
                order += 1

    push(match, 1.0, -1)
    while waiting and len(tokens) < most:
        waiting.sort()
        negative, _, gram, parent = waiting.pop(0)
        tokens.append(gram[-1])
        parents.append(parent)
        expected -= negative
        push(gram, -negative, len(tokens) - 1)
    return tokens, parents, expected


def guess(texts, context, budget, rules, max_depth, counts=None):
    """(tokens, parents, expected, match) from the counts of `texts` for a context."""
    counts = ngrams(texts, max_depth) if counts is None else counts
    best = ([], [], 0.0, 0)
    for m in range(1, min(max_depth, len(context))):
        match = tuple(context[-m:])
        if match not in counts:
            break
        most = max(0, min(math.floor(rules.factor * m + rules.offset + 1e-6), budget))
        tokens, parents, expected = (tree if rules.tree else path)(counts, match, most, rules.min_prob, max_depth)
        expected = min(expected, float(min(most, max_depth - m)))  # more only by rounding
        if expected >= best[2] and tokens:
            best = (tokens, parents, expected, m)
    return best


def proposal(others, context, budget, rules, max_depth):
    """From the request's own text and from the answers of others; its own wins ties."""
    own = guess([context], context, budget, rules, max_depth)
    other = guess(others, context, budget, rules, max_depth)
    return other if other[2] > own[2] else own
