"""G-NLL and its relatives: against enumeration on toy languages, and identities."""

from __future__ import annotations

import numpy as np
import pytest
from toy_language import bigram, every_text, laws, table_of

from likely.errors import CapabilityError
from likely.uncertainty.likelihood import (
    answer_span,
    g_nll,
    greedy_probability,
    m_nll,
    max_nll,
    mean_nll,
    perplexity,
    token_entropy,
)
from likely.uncertainty.planner import gather
from likely.uncertainty.table import estimate
from likely.uncertainty.types import GenerationScores


def scores(rows, texts=None, reasons=None, **more):
    n = len(rows)
    return GenerationScores(
        [np.log(np.array(row)) for row in rows], texts or ["x"] * n, reasons or ["stop"] * n, np.arange(n), **more
    )


@pytest.mark.parametrize("seed", range(12))
def test_greedy_beams_and_the_mode_are_in_order_on_an_enumerable_language(seed):
    lm = bigram(seed)
    texts = dict(every_text(lm))
    assert np.logaddexp.reduce(list(texts.values())) == pytest.approx(0, abs=1e-9)
    mode = -max(texts.values())
    path, prefix = 0.0, ()
    while not prefix or prefix[-1] != lm.tokenizer.eos_id:
        law = laws(lm, prefix)
        path -= law.max()
        prefix += (int(law.argmax()),)
    gathered = gather(lm, [""], needs=["g_nll", "m_nll"], max_tokens=8, beams=3)
    found = estimate(gathered, ["g_nll", "m_nll"])
    g, m = found["g_nll"].values[0], found["m_nll"].values[0]
    assert g == pytest.approx(path, abs=1e-5) and not found["g_nll"].truncated[0]
    assert mode - 1e-5 <= m <= g
    wide = estimate(gather(lm, [""], needs=["m_nll"], max_tokens=8, beams=128), ["m_nll"])["m_nll"].values[0]
    assert wide == pytest.approx(mode, abs=1e-5)


def test_greedy_is_the_mode_where_every_step_has_a_majority():
    lm = table_of({"": {"a": 0.9, "b": 0.1}, "a": {".": 0.8, "b": 0.2}, "b": {".": 1}, "ab": {".": 1}}, "ab")
    gathered = gather(lm, [""], needs=["g_nll", "m_nll"], max_tokens=5)
    found = estimate(gathered, ["g_nll", "m_nll"])
    assert found["g_nll"].values[0] == pytest.approx(-np.log(0.72), abs=1e-6) == found["m_nll"].values[0]
    assert max(p for _, p in every_text(lm)) == pytest.approx(np.log(0.72), abs=1e-6)


def test_the_garden_path():
    """The first step prefers "a", whose continuations are many; the mode goes through "b"."""
    after_a = {letter: 0.25 for letter in "abcd"}
    rows = {"": {"a": 0.55, "b": 0.45}, "a": after_a, "b": {".": 1.0}, **{f"a{x}": {".": 1.0} for x in "abcd"}}
    lm = table_of(rows, "abcd")
    gathered = gather(lm, [""], needs=["g_nll", "m_nll"], max_tokens=5, beams=2)
    found = estimate(gathered, ["g_nll", "m_nll"])
    assert found["g_nll"].values[0] == pytest.approx(1.984, abs=1e-3)
    assert found["g_nll"].values[0] == pytest.approx(-np.log(0.55 / 4), abs=1e-6)
    assert found["m_nll"].values[0] == pytest.approx(0.7985, abs=1e-4)
    assert gathered.greedy.texts[0] == "aa" and gathered.beams.texts[0] == "b"


@pytest.mark.parametrize("seed", range(8))
def test_one_beam_is_the_greedy_text(seed):
    lm = bigram(seed)
    found = gather(lm, ["", "a", "bc"], needs=["beams"], max_tokens=6, beams=1)
    assert found.beams.texts == found.greedy.texts
    np.testing.assert_array_equal(m_nll(found.greedy, found.beams).values, g_nll(found.greedy).values)


def test_a_beam_that_lost_the_greedy_text_is_not_worse_than_it():
    greedy, beams = scores([[0.5, 0.5]]), scores([[0.2]], reasons=["length"])
    found = m_nll(greedy, beams)
    assert found.values[0] == pytest.approx(-np.log(0.25)) and not found.truncated[0]
    with pytest.raises(ValueError, match="2 texts of beam search for 1"):
        m_nll(greedy, scores([[0.2], [0.2]]))


def test_known_values():
    greedy = scores([[0.5, 0.25], [1.0]], token_entropies=[np.array([1.0, 2.0]), np.array([0.5])])
    assert g_nll(greedy).values == pytest.approx([np.log(8), 0])
    assert mean_nll(greedy).values == pytest.approx([np.log(8) / 2, 0])
    assert g_nll(greedy, normalise=True).name == "mean_nll"
    assert perplexity(greedy).values == pytest.approx([np.sqrt(8), 1])
    assert max_nll(greedy).values == pytest.approx([np.log(4), 0])
    assert token_entropy(greedy).values == pytest.approx([1.5, 0.5])
    sure = greedy_probability(greedy)
    assert sure.confidence() == pytest.approx([0.125, 1]) and sure.kind == "probability"
    assert (g_nll(greedy).certainty == -g_nll(greedy).values).all()
    with pytest.raises(ValueError, match="score, not a probability"):
        g_nll(greedy).confidence()
    with pytest.raises(ValueError, match="no entropies were gathered"):
        token_entropy(scores([[0.5]]))


def test_a_text_that_ends_at_once_is_valid_and_one_without_tokens_is_not():
    lm = table_of({"": {".": 0.7, "a": 0.3}, "a": {".": 1}}, "a")
    found = gather(lm, [""], needs=["g_nll"], max_tokens=4)
    assert found.greedy.texts == [""] and g_nll(found.greedy).values[0] == pytest.approx(-np.log(0.7), abs=1e-6)
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        scores([[0.5], []])


def test_a_cut_text_is_accepted_and_marked():
    lm = table_of({"a" * i: {"a": 1.0} for i in range(9)}, "a")
    found = estimate(gather(lm, [""], needs=["g_nll", "predictive_entropy"], max_tokens=3, samples=2), ["g_nll"])
    assert found["g_nll"].truncated.tolist() == [True]


def test_bad_log_probabilities_are_refused():
    with pytest.raises(ValueError, match="text 0: a token's log-probability must be a number <= 0"):
        scores([[1.5]])
    with pytest.raises(ValueError, match="text 0: a token's"):
        scores([[np.nan]])
    with pytest.raises(ValueError, match="token_sizes has 2 entries, token_logprobs 1"):
        scores([[0.5]], token_sizes=[np.array([1, 2])])


def test_only_the_answers_tokens_count():
    pieces = ["The", " answer", " is", " Par", "is", ".", ""]
    p = [0.9, 0.9, 0.9, 0.5, 0.25, 0.8, 0.7]
    sizes = [np.array([len(piece) for piece in pieces])]
    greedy = scores([p], texts=["The answer is Paris."], token_sizes=sizes)
    assert g_nll(answer_span(greedy, r"is (\w+)")).values[0] == pytest.approx(np.log(8))
    assert g_nll(answer_span(greedy, "Paris")).values[0] == pytest.approx(np.log(8))
    assert g_nll(answer_span(greedy, lambda text: (14, 15))).values[0] == pytest.approx(np.log(2))
    assert g_nll(answer_span(greedy, "London")).values[0] == g_nll(greedy).values[0]
    with pytest.raises(ValueError, match="text 0: the answer's span"):
        answer_span(greedy, lambda text: (5, 5))
    with pytest.raises(CapabilityError, match="does not show its tokens"):
        answer_span(scores([p]), "Paris")


def test_the_span_counts_bytes_not_characters():
    pieces = ["é", "ü", "x"]
    greedy = scores([[0.5, 0.25, 0.1]], texts=["éüx"], token_sizes=[np.array([len(q.encode()) for q in pieces])])
    assert g_nll(answer_span(greedy, "ü")).values[0] == pytest.approx(np.log(4))
    assert g_nll(answer_span(greedy, "x")).values[0] == pytest.approx(np.log(10))


def test_temperature_changes_the_value_but_not_the_greedy_path():
    from toy_language import toy

    base = bigram(3)
    hot = toy(lambda prefix: base.runtime._logits_of((3, *prefix)) / 3)
    one, other = (gather(lm, [""], needs=["g_nll"], max_tokens=8).greedy for lm in (base, hot))
    assert one.texts == other.texts and abs(one.logprobs[0] - other.logprobs[0]) > 0.1
