"""FOLLOW maps: what a clause would be after each next token; the slow, obvious form of every mask here.

A follow map is a list of (set of tokens, (value, Final)) that covers the vocabulary and None, the end of the text.
Operators combine maps by the product of their operands; equal results merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from likely.queries.where.final import FIN, Pair, Partial, PartialTexts, apply, conjunction, evaluate, negation
from likely.queries.where.nodes import And, Count, Hole, Node, Not, Or, children, holes_of

TokenSet = frozenset[int | None]
FollowMap = list[tuple[TokenSet, Pair]]


def follow(node: Node, state: PartialTexts, hole: str, vocabulary: Sequence[str]) -> FollowMap:
    """Follow[node](state, t) for every t.  vocabulary: text of each token; `hole` is the one being written."""
    everything: TokenSet = frozenset([None, *range(len(vocabulary))])
    if hole not in holes_of(node):
        return [(everything, evaluate(node, state))]
    if isinstance(node, (Hole, Count)):
        return merge([(frozenset([t]), evaluate(node, after(state, hole, t, vocabulary))) for t in everything])
    if isinstance(node, And):
        return combine([follow(p, state, hole, vocabulary) for p in node.parts], conjunction)
    if isinstance(node, Or):
        negated = [[(s, negation(pair)) for s, pair in follow(p, state, hole, vocabulary)] for p in node.parts]
        return [(s, negation(pair)) for s, pair in combine(negated, conjunction)]
    if isinstance(node, Not):
        return [(s, negation(pair)) for s, pair in follow(node.part, state, hole, vocabulary)]
    return combine([follow(t, state, hole, vocabulary) for t in children(node)], lambda pairs: apply(node, pairs))


def after(state: PartialTexts, hole: str, token: int | None, vocabulary: Sequence[str]) -> dict[str, Partial]:
    """The state once `token` was written; None ends the hole."""
    now = state[hole]
    if token is None:
        return {**state, hole: Partial(now.text, now.tokens, done=True)}
    return {**state, hole: Partial(now.text + vocabulary[token], now.tokens + 1)}


def combine(maps: list[FollowMap], operator: Callable[[list[Pair]], Pair]) -> FollowMap:
    """The product of maps: token sets meet, the operator is applied to the pairs."""
    found: FollowMap = []
    for rows in product(*maps):
        tokens = frozenset.intersection(*(s for s, _ in rows))
        if tokens:
            found.append((tokens, operator([pair for _, pair in rows])))
    return merge(found)


def merge(rows: FollowMap) -> FollowMap:
    out: dict[tuple, tuple[set, Pair]] = {}
    for tokens, (value, final) in rows:
        out.setdefault((type(value), value, final), (set(), (value, final)))[0].update(tokens)
    return [(frozenset(tokens), pair) for tokens, pair in out.values()]


def mask(rows: FollowMap) -> TokenSet:
    """M = all tokens after which the clause is not false for good."""
    return frozenset(t for tokens, (v, f) in rows if v is None or v or f is not FIN for t in tokens)
