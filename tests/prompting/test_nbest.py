"""n-best lists: words alone, duplicates summed before n are taken, posteriors, and prompts that show them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.prompting.speech.nbest import (
    EXPLANATION,
    STYLES,
    NBest,
    SpokenTask,
    nbest_prompt,
    plain_words,
    transcript_prompt,
)

TASK = SpokenTask("What does the user want?", ("light", "music"))
words = st.sampled_from(["turn", "on", "off", "the", "light"])
transcripts = st.lists(words, min_size=1, max_size=4).map(" ".join)
lists = st.lists(st.tuples(transcripts, st.floats(-300, 300)), min_size=1, max_size=8).map(
    lambda entries: NBest(tuple(t for t, _ in entries), tuple(s for _, s in entries))
)


def slow_distinct(nbest, n, kappa):
    """Posteriors of entries, then summed by words, then cut, then renormalised."""
    powers = np.exp(kappa * (np.array(nbest.logscores) - max(nbest.logscores)))
    totals = {}
    for text, share in zip(nbest.hyps, powers / powers.sum(), strict=True):
        totals[text] = totals.get(text, 0.0) + share
    kept = list(totals.items())[:n]
    whole = sum(share for _, share in kept)
    return [text for text, _ in kept], [share / whole for _, share in kept]


def test_words_alone():
    assert plain_words("<s> Turn ON(2) [NOISE] the\n++breath++ LIGHT(3) <sil> </s>") == "turn on the light"
    assert plain_words("(null)") == plain_words(" <sil> ") == ""
    assert plain_words("call (2) people (now)") == "call (2) people (now)"  # a mark is attached to its word
    assert plain_words("3 < 4 and a[0]") == "3 < 4 and a"


def test_duplicates_are_summed_before_n_are_taken():
    nbest = NBest(["turn on", "Turn on ", "turn in"], np.log([0.5, 0.3, 0.2]).tolist())
    texts, posteriors = nbest.distinct()
    assert texts == ["turn on", "turn in"] and posteriors == pytest.approx([0.8, 0.2])
    assert nbest.distinct(2)[0] == texts  # not ["turn on", "turn on"]
    late = NBest(["a", "b", "c", "a"], np.log([0.1, 0.3, 0.2, 0.4]).tolist())
    texts, posteriors = late.distinct(2)  # what comes after the n-th still counts for those taken
    assert texts == ["a", "b"] and posteriors == pytest.approx([0.5 / 0.8, 0.3 / 0.8])


@given(lists, st.integers(1, 9), st.sampled_from([0.0, 0.01, 0.1]))
def test_posteriors_are_those_of_the_slow_way(nbest, n, kappa):
    texts, posteriors = nbest.distinct(n, kappa=kappa)
    expected = slow_distinct(nbest, n, kappa)
    assert texts == expected[0] and posteriors == pytest.approx(expected[1], rel=1e-9, abs=1e-12)


@given(lists, st.integers(1, 9), st.sampled_from([0.0, 0.1, 1.0, 7.0]), st.floats(-1e4, 1e4))
def test_posteriors_sum_to_one_and_a_constant_changes_nothing(nbest, n, kappa, constant):
    texts, posteriors = nbest.distinct(n, kappa=kappa)
    assert posteriors.sum() == pytest.approx(1) and (posteriors >= 0).all() and len(texts) <= n
    shifted = NBest(nbest.hyps, tuple(s + constant for s in nbest.logscores))
    again, others = shifted.distinct(n, kappa=kappa)
    assert again == texts and others == pytest.approx(posteriors, abs=1e-8)


def test_posteriors_of_those_taken_do_not_underflow():
    """The best transcript lies far above those taken: their ratio still stands."""
    nbest = NBest(["a", "b", "c"], [math.log(3) - 2000, -2000, 0])
    assert nbest.distinct(2)[1] == pytest.approx([0.75, 0.25])


def test_impossible_transcripts():
    assert NBest(["a", "b"], [0, -math.inf]).distinct()[1].tolist() == [1, 0]
    assert NBest(["a", "b"], [0, -math.inf]).distinct(kappa=0)[1].tolist() == [1, 0]
    assert NBest(["a", "b", "c"], [-math.inf, -math.inf, 0]).distinct(2)[1].tolist() == [0.5, 0.5]


def test_kappa_flattens_and_sharpens():
    nbest = NBest(["a", "b"], [2.0, 0.0])
    assert nbest.distinct(kappa=0)[1].tolist() == [0.5, 0.5]
    assert nbest.distinct(kappa=0.5)[1][0] == pytest.approx(1 / (1 + math.exp(-1)))
    assert nbest.distinct(kappa=1000)[1][0] == 1


def test_nothing_heard_is_one_empty_transcript():
    for nbest in (NBest([], []), NBest(["<sil>", " "], [0, 0]), NBest.heard(None), NBest.heard("", [None, ("", 0.0)])):
        texts, posteriors = nbest.distinct(5)
        assert texts == [""] and posteriors.tolist() == [1]


def test_the_best_path_comes_first():
    listed = [None, ("turn in", -1.0), ("", -1.5), ("turn <sil> on", -2.0), ("turn on", -3.0)]
    found = NBest.heard("turn on", listed)
    assert found.distinct()[0] == ["turn on", "turn in"]
    assert found.logscores == (-2.0, -1.0, -3.0)  # moved, not counted twice
    outside = NBest.heard("burn on", listed)
    assert outside.distinct()[0] == ["burn on", "turn in", "turn on"] and outside.logscores[0] == -1.0
    assert NBest.heard("alone").distinct()[0] == ["alone"]
    for others in ([("a", -np.inf)], [("b", -np.inf), ("a", -np.inf)], [("b", -np.inf)]):  # heard all the same
        texts, posteriors = NBest.heard("a", others).distinct()
        assert texts[0] == "a" and posteriors.tolist() == [1, 0][: len(texts)]
    assert NBest.heard(None, listed).distinct()[0] == ["turn in", "turn on"]


@pytest.mark.parametrize(
    ("hyps", "logscores", "said"),
    [
        (["a"], [0, 0], "1 transcripts have 2 scores"),
        (["a", "b"], [0, math.nan], "entry 1 is nan"),
        (["a"], [math.inf], "entry 0 is inf"),
        (["a"], [-math.inf], "every entry is -inf"),
        ("a", [0], "list of transcripts"),
    ],
    ids=["lengths", "nan", "inf", "impossible", "text"],
)
def test_lists_that_mean_nothing_are_errors(hyps, logscores, said):
    with pytest.raises(ValueError, match=said):
        NBest(hyps, logscores)


def test_settings_that_mean_nothing_are_errors():
    nbest = NBest(["a"], [0])
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        nbest.distinct(0)
    for kappa in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="kappa"):
            nbest.distinct(kappa=kappa)
    with pytest.raises(ValueError, match='did you mean "scores"'):
        nbest_prompt(TASK, nbest, 5, "score")
    for answers in (("one",), ("one", "one"), ("one", " ")):
        with pytest.raises(ValueError, match="answers"):
            SpokenTask("", answers)


@pytest.mark.parametrize("style", STYLES)
def test_one_transcript_gives_the_prompt_of_one_byte_for_byte(style):
    nbest = NBest(["Turn on(2)", "turn in", "burn on"], [-1, -2, -3])
    expected = transcript_prompt(TASK, "turn on").encode()
    assert nbest_prompt(TASK, nbest, 1, style).encode() == expected
    only = NBest(["turn on", "TURN ON", "<sil> turn on"], [-1, -2, -3])  # fewer than n: nothing is padded
    assert nbest_prompt(TASK, only, 5, style).encode() == expected


def test_prompts_as_they_read():
    nbest = NBest(["turn on", "turn in", "Turn on"], np.log([0.5, 0.2, 0.3]).tolist())
    assert transcript_prompt(TASK, "turn on") == (
        "What does the user want?\nOptions: light, music\nHeard: turn on\nAnswer:"
    )
    head = "What does the user want?\nOptions: light, music\n"
    assert nbest_prompt(TASK, nbest, 5, "plain") == head + "Heard:\n1. turn on\n2. turn in\nAnswer:"
    assert nbest_prompt(TASK, nbest, 5) == head + EXPLANATION + "\nHeard:\n1. turn on\n2. turn in\nAnswer:"
    assert nbest_prompt(TASK, nbest, 5, "scores") == (
        head + EXPLANATION + "\nHeard:\n1. turn on (0.80)\n2. turn in (0.20)\nAnswer:"
    )
    bare = SpokenTask("", ("a", "b"), listed=False)
    assert nbest_prompt(bare, nbest, 1) == "Heard: turn on\nAnswer:"


@given(lists, st.integers(1, 9))
def test_a_prompt_shows_each_of_the_first_n_once(nbest, n):
    texts, _ = nbest.distinct(n)
    lines = nbest_prompt(TASK, nbest, n, "plain").split("\n")[2:-1]
    shown = [lines[0].removeprefix("Heard: ")] if len(texts) == 1 else [x.split(". ", 1)[1] for x in lines[1:]]
    assert shown == texts and len(set(shown)) == len(shown)
