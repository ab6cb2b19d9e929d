"""What a newcomer types: numbers of numpy, no seed, lists for texts; and what an object says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_for_serving import toy_model

import likely
from likely.lm.remote.reply import ServerSettings
from likely.lm.results import Answer


@pytest.fixture(scope="module")
def lm():
    return toy_model()


def test_numbers_of_numpy_are_numbers(lm):
    plain = lm.generate("a", max_tokens=3, seed=3, temperature=0.5)
    assert lm.generate("a", max_tokens=np.int64(3), seed=np.int32(3), temperature=np.float32(0.5)).text == plain.text
    settings = ServerSettings.of({"max_tokens": np.int64(3), "temperature": np.float64(0.5)})
    assert type(settings.max_tokens) is int and type(settings.body()["temperature"]) is float


def test_no_seed_is_any_seed_and_the_result_names_it(lm):
    made = lm.generate("a", max_tokens=3, seed=None)
    assert isinstance(made.seed, int) and lm.generate("a", max_tokens=3, seed=made.seed).text == made.text
    assert made.seed != lm.generate("a", max_tokens=3, seed=None).seed
    assert ServerSettings.of({"seed": None}).seed is None


def test_wrong_types_are_named(lm):
    for call, words in (
        (lambda: likely.load(None), "got None"),
        (lambda: lm.ask(["a", "b"]), "ask_each"),
        (lambda: lm.stream_ask(3), "must be a string, got 3"),
        (lambda: lm.score("a", [1]), "must be strings, got 1"),
        (lambda: lm.score(b"a", ["a"]), "must be strings"),
        (lambda: lm.generate("a", stop=1), "stop must be a string or a list of strings, got 1"),
        (lambda: ServerSettings.of({"stop": [1]}), "stop must be"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
    with pytest.raises(likely.ModelError, match="does not exist"):
        likely.load(Path("/nowhere/model.gguf"))


def test_an_object_says_what_it_is(lm):
    assert repr(lm).startswith("Model(") and "runtime=" in repr(lm)
    made = lm.generate("a", max_tokens=3)
    assert repr(made) == (
        f"Generation({made.text!r}, 3 tokens, sequence_logprob={made.sequence_logprob!r}, "
        f"finish_reason={made.finish_reason!r})"
    )
    answer = Answer("a", [1], [-0.5], -0.5, -0.5, "stop", 1, 0.0, confidence=0.25)
    assert repr(answer) == "Answer('a', 1 tokens, sequence_logprob=-0.5, confidence=0.25, finish_reason='stop')"
