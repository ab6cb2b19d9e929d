from __future__ import annotations

import itertools
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_suffixes import ngrams

from likely.decoding.drafting.suffix.tree import END, ROOT, GrowingText, SuffixTree

ALPHABET = 3


def grams_of(tree: SuffixTree) -> dict[tuple[int, ...], int]:
    """All n-grams of a tree with their counts, by walking it; every rule of its structure is checked on the way."""
    found: dict[tuple[int, ...], int] = {}
    live = {ROOT}

    def walk(node: int, prefix: tuple[int, ...]) -> None:
        kids, here = tree.kids(node), tree.weight(node)
        counts = {token: tree.weight(child) for token, child in kids.items()}
        assert sum(counts.values()) <= here or node == ROOT
        if node != ROOT and len(kids) == 1:
            assert max(counts.values()) < here, "a node and its only child have the same count"
        expected = min(counts, key=lambda token: (-counts[token], token)) if counts else None
        assert tree.best(node) == expected
        for token, child in kids.items():
            run = tree.run(child, 0, tree.max_depth - len(prefix)).tolist()
            assert run[0] == token and END not in run
            for n in range(1, len(run) + 1):
                found[(*prefix, *run[:n])] = tree.weight(child)
            if child >= 0:
                assert child not in live and child not in tree._free and tree.weight(child) > 1
                live.add(child)
                walk(child, (*prefix, *run))

    walk(ROOT, ())
    assert len(live) + len(tree._free) == len(tree._children), "a node is neither used nor free"
    return found


def add(tree: SuffixTree, text) -> int:
    at = tree.base + len(tree.text)
    tree.text.extend(text)
    tree.text.append(END)
    for i in range(len(text)):
        tree.insert(at + i, min(tree.max_depth, len(text) - i))
    return at


def remove(tree: SuffixTree, at: int, text) -> None:
    for i in range(len(text)):
        tree.remove(at + i, min(tree.max_depth, len(text) - i))


texts = st.lists(st.lists(st.integers(0, ALPHABET - 1), min_size=1, max_size=30), max_size=8)


@settings(max_examples=150, deadline=None)
@given(texts, st.integers(2, 7), st.data())
def test_counts_equal_the_dictionary_whatever_came_and_went(sequences, depth, data):
    tree, kept = SuffixTree(depth, newest=True), []
    for sequence in sequences:
        kept.append((add(tree, sequence), sequence))
        while kept and data.draw(st.booleans()):
            remove(tree, *kept.pop(0))
        assert grams_of(tree) == ngrams([text for _, text in kept], depth)


def test_counts_equal_the_dictionary_on_long_texts_while_the_front_is_dropped():
    rng = np.random.default_rng(1)
    tree, kept = SuffixTree(6, newest=True), []
    for _ in range(20):
        text = rng.integers(0, ALPHABET, 200).tolist()
        kept.append((add(tree, text), text))
        if len(kept) > 5:
            remove(tree, *kept.pop(0))
            del tree.text[:201]
            tree.base += 201
    assert grams_of(tree) == ngrams([text for _, text in kept], 6)
    grams = list(itertools.product(range(ALPHABET), repeat=3))
    counts = ngrams([text for _, text in kept], 6)
    assert [tree.count(g) for g in grams] == [counts[g] for g in grams]


def test_of_two_equal_texts_one_goes_and_then_nothing_is_left():
    text = [0, 1, 2, 0, 1, 2, 2, 0]
    tree = SuffixTree(5, newest=True)
    first, second = add(tree, text), add(tree, text)
    remove(tree, first, text)
    assert grams_of(tree) == ngrams([text], 5)
    remove(tree, second, text)
    assert grams_of(tree) == {} and tree.count([]) == 0 and len(tree._free) == len(tree._children) - 1


def waiting_counts(text: GrowingText) -> dict[tuple[int, ...], int]:
    grams = {tuple(text.text[i : i + n]) for n in range(1, text.tree.max_depth + 1) for i in range(len(text) - n + 1)}
    return {gram: text.count(gram) for gram in grams}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=50), st.integers(2, 8))
def test_a_growing_text_has_exact_counts_after_each_token(tokens, depth):
    grown = GrowingText(depth)
    for n, token in enumerate(tokens, 1):
        grown.append(token)
        sofar = tokens[:n]
        repeats = [m for m in range(1, n) if tokens[n - m : n] in [sofar[i : i + m] for i in range(n - m)]]
        assert grown.repeated == min(max(repeats, default=0), depth - 1)
    grams_of(grown.tree)
    assert waiting_counts(grown) == ngrams([tokens], depth)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40), st.integers(2, 8), st.data())
def test_cut_is_as_if_the_tokens_had_never_come(kept, dropped, depth, data):
    grown = GrowingText(depth, kept)
    fresh = GrowingText(depth, kept)
    twin = grown.copy()
    for token in dropped:
        grown.append(token)
    half = data.draw(st.integers(0, len(dropped)))
    grown.cut(half)
    grown.cut(len(dropped) - half)
    for text in (grown, twin):
        assert grams_of(text.tree) == grams_of(fresh.tree) and text.text == fresh.text
        assert (text._inserted, text._after) == (fresh._inserted, fresh._after)
    more = data.draw(st.lists(st.integers(0, 2), max_size=20))
    for token in more:  # and it goes on alike
        grown.append(token)
        fresh.append(token)
    assert waiting_counts(grown) == waiting_counts(fresh)
    assert twin.text.tolist() == kept


def test_a_repetitive_text_costs_a_few_steps_per_token(monkeypatch):
    """64 suffixes wait all the time; each token touches one of them."""
    calls = 0
    original = SuffixTree.insert

    def counted(self, at, size):
        nonlocal calls
        calls += 1
        original(self, at, size)

    monkeypatch.setattr(SuffixTree, "insert", counted)
    text = GrowingText(64, [1, 2, 3] * 1000)
    assert calls <= 3000 and len(text.tree._children) < 200


def test_memory_is_what_the_allocator_says():
    import tracemalloc

    rng = np.random.default_rng(0)
    tokens = rng.zipf(1.3, 20_000).clip(0, 5000).tolist()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    text = GrowingText(64, tokens)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.75 * used < text.tree.size_bytes < 1.25 * used


def test_errors():
    text = GrowingText(4, [1, 2])
    with pytest.raises(ValueError, match="cannot take back 3 of 2"):
        text.cut(3)
    text.cut(2)
    assert len(text) == 0 and text.repeated == 0
    assert SuffixTree(4, newest=True).find(array("i", [1]), 0, 1) is None
