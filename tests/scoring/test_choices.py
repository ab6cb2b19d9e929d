from __future__ import annotations

import gzip
import json
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

import likely
from likely.errors import DataError
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer, ToyRuntime, exact_logprob
from likely.scoring.choices import (
    ChoiceItem,
    choice_item,
    choice_pairs,
    choice_result,
    decide,
    normalised,
    score_choices,
)
from likely.scoring.scored import Scored

TOKENIZER = CharTokenizer(string.printable, add_bos=True)
ITEM = ChoiceItem("Who?", ("me", "you", "they"), 1)


@pytest.fixture
def toy():
    runtime = ToyRuntime.random(TOKENIZER.vocab_size, seed=1, order=60, context_length=200)
    return Model(runtime, TOKENIZER, ModelInfo("toy", "toy", "toy", "float32", "0", "chars", False))


def by_hand(model, prompt, answer):
    tokens = [TOKENIZER.bos_id, *TOKENIZER.encode(prompt)]
    return exact_logprob(model.runtime, TOKENIZER.encode(answer), given=tokens)


PROMPTS = {
    "answers": ("Question: Who?\nAnswer:", [" me", " you", " they"]),
    "letters": ("Question: Who?\nA. me\nB. you\nC. they\nAnswer:", [" A", " B", " C"]),
}


@pytest.mark.parametrize("style", ["answers", "letters"])
@pytest.mark.parametrize("normalise", ["sum", "token", "byte", "pmi"])
def test_values_are_those_computed_by_hand(toy, style, normalise):
    [result] = score_choices(toy, [ITEM], style=style, normalise=normalise).results
    prompt, answers = PROMPTS[style]
    expected = []
    for answer in answers:
        value = by_hand(toy, prompt, answer)
        if normalise == "pmi":
            value -= by_hand(toy, "Answer:", answer)
        expected.append(value / {"token": len(answer), "byte": len(answer) - 1}.get(normalise, 1))
    assert result.values == pytest.approx(expected, abs=1e-4)
    assert result.prediction == expected.index(max(expected)) and result.correct == (result.prediction == 1)
    shares = [math.exp(v) for v in expected]
    assert result.raw_confidence == pytest.approx(max(shares) / sum(shares), rel=1e-3)
    assert [sum(row) for row in result.token_logprobs] == pytest.approx(result.sequence_logprobs)
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_order_of_choices_does_not_change_the_choice_by_words(toy):
    turned = ChoiceItem("Who?", ITEM.choices[::-1], 1)
    first, second = score_choices(toy, [ITEM, turned], normalise="byte").results
    assert second.values == pytest.approx(first.values[::-1], abs=1e-5) and second.prediction == 2 - first.prediction


def scored(*sums):
    return [Scored("", None, [s], s, s, []) for s in sums]


def test_a_tie_at_the_top_is_wrong_whatever_the_order():
    for label in (0, 1):
        result = choice_result(ChoiceItem("?", ("a", "b", "c"), label), scored(-1.0, -1.0, -2.0),
                               style="answers", normalise="sum")  # fmt: skip
        assert result.tie and result.prediction is None and not result.correct
    lower = choice_result(ChoiceItem("?", ("a", "b", "c"), 0), scored(-1.0, -2.0, -2.0),
                          style="answers", normalise="sum")  # fmt: skip
    assert not lower.tie and lower.correct


def test_equal_choices_tie(toy):
    report = score_choices(toy, [ChoiceItem("Who?", ("me", "me"), 0)])
    assert report.ties == 1 and report.accuracy.correct == 0


@given(st.lists(st.floats(-500, 0), min_size=2, max_size=9))
def test_the_decision_is_the_one_maximum(values):
    prediction, share = decide(values)
    assert (prediction is None) == (values.count(max(values)) > 1)
    assert prediction is None or values[prediction] == max(values)
    assert 1 / len(values) - 1e-12 <= share <= 1


def test_impossible_answers_lose_and_what_is_no_number_is_an_error():
    assert decide([-math.inf, -3.0]) == (1, 1.0)
    assert decide([-math.inf, -math.inf])[0] is None
    with pytest.raises(ValueError, match="not a number"):
        decide([math.nan, 0.0])
    with pytest.raises(ValueError, match="unconditional"):
        normalised([-1.0], normalise="pmi", tokens=[1], sizes_bytes=[1])


def test_pmi_scores_the_same_answers_without_the_question():
    pairs = choice_pairs(ITEM, style="answers", normalise="pmi")
    assert [p for p, _ in pairs[3:]] == ["Answer:"] * 3 and [a for _, a in pairs[3:]] == [a for _, a in pairs[:3]]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({}, '"question" is missing'),
        ({"question": "?", "choices": ["a", "b"]}, '"answer" is missing'),
        ({"question": "?", "choices": ["a"], "answer": 0}, "2 to 26"),
        ({"question": " ", "choices": ["a", "b"], "answer": 0}, "not empty"),
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, r"0\.\.1"),
        ({"question": "?", "choices": ["a", "b"], "answer": "C"}, r"A\.\.B"),
        ({"question": "?", "choices": "ab", "answer": 0}, "list"),
    ],
)
def test_bad_records_name_their_place(record, why):
    with pytest.raises(DataError, match=f"^f:7: .*{why}"):
        choice_item(record, "f:7")


def test_letters_and_numbers_name_the_same_answer():
    record = {"question": "?", "choices": ["x", "y"], "answer": "B"}
    assert choice_item(record) == choice_item({**record, "answer": 1}) == ChoiceItem("?", ("x", "y"), 1)


def test_settings_are_checked_by_name(toy):
    with pytest.raises(ValueError, match='did you mean "letters"'):
        score_choices(toy, [ITEM], style="letter")
    with pytest.raises(ValueError, match='did you mean "byte"'):
        score_choices(toy, [ITEM], normalise="bytes")
    assert score_choices(toy, []).accuracy.value is None


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.xdist_group("real")
def test_arc_easy_is_what_score_says_question_by_question(data_dir):
    with gzip.open(data_dir / "arc-easy" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][:20]
    with likely.load("smollm2", threads=1) as lm:
        reports = {n: score_choices(lm, records, normalise=n) for n in ("sum", "byte")}
        hand = {"sum": 0, "byte": 0}
        for record in records:
            answers = [f" {c}" for c in record["choices"]]
            sums = [s.sequence_logprob for s in lm.score(f"Question: {record['question']}\nAnswer:", answers)]
            per_byte = [s / (len(a.encode()) - 1) for s, a in zip(sums, answers, strict=True)]
            hand["sum"] += sums.index(max(sums)) == record["answer"]
            hand["byte"] += per_byte.index(max(per_byte)) == record["answer"]
    assert {n: report.accuracy.correct for n, report in reports.items()} == hand
    assert 8 <= hand["sum"] <= 18 and reports["sum"].ties == 0
