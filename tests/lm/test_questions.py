from __future__ import annotations

import pytest

from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.lm.model import Model
from likely.lm.outcomes import outcomes
from likely.lm.questions import question_of
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer, ToyRuntime


def test_a_line_is_read_with_what_its_answer_carries_on():
    question = question_of({"question": "Q?", "id": 7, "answer": "x", "system": "s", "note": 1}, "f:1")
    assert (question.asked, question.system) == ("Q?", "s")
    assert question.passed_on == {"id": 7, "question": "Q?", "system": "s", "reference": "x"}
    assert question_of({"question": "Q?", "label": 0}, "f:1").passed_on["reference"] == 0
    assert "reference" not in question_of({"question": "Q?", "answer": None}, "f:1").passed_on


def test_choices_are_asked_as_lettered_lines():
    assert question_of({"question": "Q?", "choices": ["x", "y"]}, "f:1").asked == "Q?\nA. x\nB. y"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({}, '"question" is missing'),
        ({"prompt": "x"}, 'found: "prompt"'),
        ({"question": 3}, "must be a string, found int"),
        ({"question": "  "}, "is empty"),
        ({"question": "x", "system": 3}, '"system" must be a string'),
        ({"question": "x", "choices": ["y"]}, "2 to 26"),
    ],
)
def test_bad_lines_name_their_place(record, why):
    with pytest.raises(DataError, match=f"^f:4: .*{why}"):
        question_of(record, "f:4")


def test_a_fingerprint_knows_order_of_values_but_not_of_keys():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2}) != fingerprint("a")


def test_a_batch_comes_in_the_order_asked_each_as_if_alone():
    tokenizer = CharTokenizer("abcd")
    runtime = ToyRuntime.random(6, seed=3)
    model = Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float32", "0", "chars", False))
    lengths = [9, 1, 5, 1, 12, 2]
    requests = [Request((i % 4,), Sampling(temperature=0.0), max_tokens=n) for i, n in enumerate(lengths)]

    def loop():
        return Loop(runtime, tokenizer.token_bytes, frozenset())

    together = [answer for [answer] in outcomes(loop(), requests, model.generation)]
    assert [len(answer.token_ids) for answer in together] == lengths
    for request, answer in zip(requests, together, strict=True):
        [[alone]] = outcomes(loop(), [request], model.generation)
        assert (alone.token_ids, alone.token_logprobs) == (answer.token_ids, answer.token_logprobs)
