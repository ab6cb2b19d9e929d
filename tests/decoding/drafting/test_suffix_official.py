"""Our proposals against those of the official code (arctic-inference, where it is installed) on random streams.

Where two continuations are equally frequent we take the smaller token, it the one that came first: where drafts differ,
that is checked to be the reason.
"""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from likely.decoding.drafting.suffix.drafter import Seen, SuffixMemory, longest_match
from likely.decoding.drafting.suffix.guess import DraftLimits, best_guess
from likely.decoding.drafting.suffix.tree import GrowingText

official = pytest.importorskip("arctic_inference.suffix_decoding._C")
RULES = [
    DraftLimits(),
    DraftLimits(tree=True),
    DraftLimits(factor=2.0, min_prob=0.3),
    DraftLimits(factor=0.5, offset=2.0, min_prob=0.0),
]
SHAPES = [(3, 6), (8, 12), (50, 64)]


def is_most_frequent(draft, context: list[int], count, vocab: int) -> bool:
    """Whether a path takes a most frequent token at each step, and its score is the sum of its D."""
    gram, prob, score = context[len(context) - draft.match_len :], 1.0, 0.0
    for token in draft.token_ids:
        counts = [count([*gram, t]) for t in range(vocab)]
        if counts[token] < max(counts):
            return False
        prob *= counts[token] / count(gram)
        score += prob
        gram = [*gram, token]
    return abs(score - draft.score) < 1e-4


def compare(theirs, ours, context: list[int], rules: DraftLimits, count, vocab: int) -> bool:
    """True if the drafts are the same; AssertionError if they differ by more than ties."""
    draft = theirs.speculate(context, 10, rules.factor, rules.offset, rules.min_prob, rules.tree)
    if (list(draft.token_ids), list(draft.parents)) == (ours.tokens, ours.parents):
        assert abs(draft.score - ours.expected) < 1e-4
        return True
    if rules.tree:
        assert abs(draft.score - ours.expected) < 1e-4
    else:
        assert is_most_frequent(draft, context, count, vocab)
    return False


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize(("vocab", "depth"), SHAPES)
def test_a_tree_of_many_texts(rules, vocab, depth):
    rng = np.random.default_rng(vocab)
    theirs, memory = official.SuffixTree(depth), SuffixMemory(max_depth=depth, max_requests=12)
    texts = []
    for number in range(20):
        texts.append((rng.zipf(1.3, 40) % vocab).tolist())
        theirs.extend(number, texts[-1])
        memory.remember(texts[-1])
        if number >= 12:
            theirs.remove(number - 12)
    same = 0
    for _ in range(150):
        end = int(rng.integers(2, 41))
        context = texts[rng.integers(8, 20)][max(0, end - depth) : end]
        text = array("i", context)
        longest = longest_match(memory._tree, text, len(text) - 1, Seen(ceiling=depth))
        ours = best_guess(memory._tree, text, longest, 10, rules)
        same += compare(theirs, ours, context, rules, memory._tree.count, vocab)
    assert same > 75


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize(("vocab", "depth"), SHAPES)
def test_a_text_that_grows(rules, vocab, depth):
    rng = np.random.default_rng(vocab)
    same = asked = 0
    for period in (40, 7, 2):  # with repetitions, down to a loop of two tokens
        theirs, own, text = official.SuffixTree(depth), GrowingText(depth), []
        loop = (rng.zipf(1.3, period) % vocab).tolist()
        for i in range(120):
            token = loop[i % period] if rng.random() < 0.95 else int(rng.integers(vocab))
            theirs.extend(0, [token])
            own.append(token)
            text.append(token)
            ours = best_guess(own.tree, own.text, own.repeated, 10, rules, waiting=own.ends)
            same += compare(theirs, ours, text[-depth:], rules, own.count, vocab)
            asked += 1
    assert same > asked / 2
