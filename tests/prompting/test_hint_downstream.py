"""What a frozen model answers and states under a hint; what a writer of hints learns from it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import DataError
from likely.prompting.hints.downstream import LEVELS, STATE, ChoiceQuestion, Downstream, augment
from likely.prompting.hints.writer import WriterSettings, _one_line, hint_prompt, train_hint_writer

COW = ChoiceQuestion("Which animal gives milk?", ("hen", "cow"), 1)


class Fake:
    """Likes the second option by 2 nats; states 90 % without a hint and 30 % where the hint says careful."""

    def __init__(self):
        self.info = SimpleNamespace(name="fake", sha256="0", runtime="made up", dtype="f64")
        self.calls = []

    def score_pairs(self, pairs):
        self.calls.append(len(pairs))
        return [SimpleNamespace(sequence_logprob=self._value(*pair)) for pair in pairs]

    def _value(self, prompt, answer):
        if STATE not in prompt:
            return -1.0 if answer == " cow" else -3.0
        wanted = " 30%" if "careful" in prompt else " 90%"
        return 0.0 if answer == wanted else -50.0


def test_the_answer_and_the_stated_confidence_are_read_from_likelihoods():
    found = Downstream(Fake()).stated([COW, COW], ["", "Be careful."])
    assert found.chosen.tolist() == [1, 1] and found.correct.tolist() == [1, 1]
    assert found.confidence == pytest.approx([0.9, 0.3], abs=1e-9)
    p = 1 / (1 + np.exp(-2))
    assert found.entropy == pytest.approx([-p * np.log(p) - (1 - p) * np.log(1 - p)] * 2)
    assert found.rewards() == pytest.approx(np.log([0.9, 0.3]))


def test_what_was_asked_is_not_asked_again_not_even_by_another_run(tmp_path):
    lm, kept = Fake(), tmp_path / "deep" / "kept.jsonl"
    first = Downstream(lm, kept)
    first.stated([COW, COW, COW], ["", "Be careful.", ""])
    assert first.asked == 2 and lm.calls == [2 * 2, 2 * len(LEVELS)]
    with kept.open("a") as out:
        out.write('{"key": "cut')  # a run that was stopped in the middle of a line
    again = Downstream(Fake(), kept)
    assert again.stated([COW], ["Be careful."]).confidence == pytest.approx([0.3]) and again.asked == 0
    again.stated([COW], ["Be bold."])
    third = Downstream(Fake(), kept)  # what was written after the cut line is read
    third.stated([COW, COW], ["Be bold.", ""])
    assert third.asked == 0
    other = Fake()
    other.info = SimpleNamespace(name="fake", sha256="0", runtime="made up", dtype="f32")
    assert Downstream(other, kept).stated([COW], [""]).correct.tolist() == [1] and other.calls


@pytest.mark.parametrize(
    ("held", "said"), [(b"[1]\n", 'kept.jsonl:1: expected {"key"'), (b"\xff\n", 'kept.jsonl:1: expected {"key"')]
)
def test_a_file_of_something_else_is_refused(tmp_path, held, said):
    (tmp_path / "kept.jsonl").write_bytes(held)
    with pytest.raises(DataError, match=said):
        Downstream(Fake(), tmp_path / "kept.jsonl")


def test_prompts():
    assert augment("Why?", "") == augment("Why?", " \n") == "Question: Why?\nAnswer:"
    assert augment("Why?", "Think\n twice.") == "Question: Why?\nHint: Think twice.\nAnswer:"
    assert hint_prompt(COW).endswith("Question: Which animal gives milk?\n- hen\n- cow\nHint:")


def test_a_hint_is_one_line_in_training_and_in_use():
    pieces = {1: b"\n", 2: b"Be", 3: b" careful", 4: b".\nNo", 9: b""}
    tokenizer = SimpleNamespace(token_bytes=pieces.__getitem__)
    ends = frozenset({9})
    assert _one_line(tokenizer, [2, 3, 4, 2], ends) == ([2, 3, 4], "Be careful.")
    assert _one_line(tokenizer, [1, 2, 3], ends) == ([1], "")  # as `stop` ends it
    assert _one_line(tokenizer, [2, 9, 3], ends) == ([2, 9], "Be")


@pytest.mark.slow
def test_a_writer_learns_what_is_rewarded_and_leaves_the_model_as_it_was(tmp_path):
    """The tiny model is paid for hints with the letter e; the log-probabilities of the model itself stay the same."""
    pytest.importorskip("peft")
    questions = [COW, ChoiceQuestion("What is blue?", ("sky", "grass"), 0)]
    with likely.load(str(write_tiny_llama(tmp_path / "m.gguf", seed=2)), runtime="torch", dtype="float32") as lm:
        before = lm.score("the cat", [" sat"])[0].sequence_logprob

        def rewards(numbers, hints):
            assert len(numbers) == len(hints) == 16 and set(numbers) <= {0, 1}
            return [hint.count("e") for hint in hints]

        settings = WriterSettings(lr=2e-2, temperature=1.0, top_p=1.0, top_k=0, max_tokens=10, beta=0.0)
        writer = train_hint_writer(lm, questions, rewards, steps=12, settings=settings)
        assert np.mean(writer.rewards[-3:]) > np.mean(writer.rewards[:3]) + 0.5
        assert len(writer.hints) == 16
        assert lm.score("the cat", [" sat"])[0].sequence_logprob == before
        assert [isinstance(hint, str) and "\n" not in hint for hint in writer.write(questions)] == [True, True]
        with pytest.raises(ValueError, match="no questions"):
            train_hint_writer(lm, [], rewards, steps=1)
