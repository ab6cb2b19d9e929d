"""Which texts mean the same."""

from __future__ import annotations

import numpy as np
import pytest

from likely.uncertainty.clusters import EXACT, NUMBER, by_model, embedding, grouped, lexical, nli, numbered
from likely.uncertainty.samples import common_length, rouge_l, similarities


def test_words_but_for_case_articles_and_punctuation():
    assert EXACT.groups("?", ["Paris", " paris. ", "The Paris!", "London", "", ".", "A", "a"]) == [
        0,
        0,
        0,
        1,
        2,
        3,
        4,
        4,
    ]


def test_values_of_numbers():
    texts = ["1,000", "1000.0", "$1000", "1000 cats", "1000 dogs", "12", "12.", "-12", "H2O", "H3O", "1/2", "0.5"]
    assert NUMBER.groups("?", texts) == [0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7]


def test_shared_words_or_the_same_numbers():
    same = lexical(0.7)
    assert same.groups("?", ["the cat sat down", "the cat sat", "a dog ran"]) == [0, 0, 1]
    assert same.groups("?", ["The answer is 12", "The answer is 13", "12"]) == [0, 1, 0]
    assert same.groups("?", ["it has 3 of 4", "it has 4 of 3", "4 and 4"]) == [0, 0, 1]


def test_rouge_l_by_hand():
    assert rouge_l("the cat sat on the mat", "the cat on mat") == pytest.approx(2 * 4 / 10)
    assert rouge_l("a b c d", "d c b a") == pytest.approx(2 * 1 / 8)
    assert rouge_l("...", "...") == 1 and rouge_l("...", "!") == 0 and rouge_l("a", "") == 0
    matrix = similarities(["a b", "a c", "b"])
    assert (matrix == matrix.T).all() and (np.diag(matrix) == 1).all() and matrix[0, 1] == 0.5


def test_the_common_length_is_the_longest_by_brute_force():
    from itertools import combinations

    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 7))) for _ in range(2))
        kept = {"".join(c) for n in range(len(a) + 1) for c in combinations(a, n)}
        best = max(len(c) for n in range(len(b) + 1) for t in combinations(b, n) if (c := "".join(t)) in kept)
        assert common_length(a, b) == best


def test_greedy_clustering_compares_with_first_members_only():
    near = grouped(lambda a, b: abs(int(a) - int(b)) <= 1, ["1", "2", "3", "2", "4"])
    assert near == [0, 0, 1, 0, 1]
    assert numbered(["x", "y", "x"]) == [0, 1, 0]


def test_entailment_both_ways_with_the_question_in_front():
    asked = []

    def entails(premise, hypothesis):
        asked.append((premise, hypothesis))
        return len(premise) >= len(hypothesis)  # longer texts say more

    assert nli(entails).groups("Where?", ["Paris", "in Paris", "Tours"]) == [0, 1, 0]
    assert ("Where? Paris", "Where? in Paris") in asked


def test_embeddings_by_cosine():
    vectors = {"a": [1, 0], "b": [10, 1], "c": [0, 1], "z": [0, 0]}
    same = embedding(lambda texts: [vectors[t] for t in texts], 0.9)
    assert same.groups("?", ["a", "b", "c", "a"]) == [0, 0, 1, 0] and same.name == "embedding(0.9)"
    with pytest.raises(ValueError, match="the embedding of 'z' has no direction"):
        same.groups("?", ["a", "z"])
    with pytest.raises(ValueError, match=r"embed must give \(2, D\)"):
        embedding(lambda texts: [1.0]).groups("?", ["a", "b"])


def test_the_model_is_asked_only_about_different_words():
    class Yes:
        asked = 0

        def score(self, prompt, answers):
            from likely.scoring.scored import Scored

            self.asked += 1
            assert answers == [" yes", " no"] and "Who?" in prompt
            yes = -1.0 if "King" in prompt and "Ruler" in prompt else -3.0
            return [Scored(a, None, [lp], lp, lp, [a]) for a, lp in zip(answers, (yes, -2.0), strict=True)]

    lm = Yes()
    assert by_model(lm).groups("Who?", ["King", "king.", "Ruler", "Cook"]) == [0, 0, 0, 1]
    assert lm.asked == 2
