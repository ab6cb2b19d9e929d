"""A number after "0.": two likeliest digits, the mean over the first, and which tokens count as digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama
from toy_model import Told, digits

import likely
from likely.scoring.digits import DIGITS, digit_tokens, expected_number, likeliest, official_number, read_numbers


def test_sevens_then_threes_are_point_73():
    told = Told(digits({"7": 0.9, "6": 0.05}, {"3": 0.8, "9": 0.1}))
    [number] = read_numbers(told, ["Answer (between 0 and 1): 0."])
    assert number.official == 0.73 and number.mass == pytest.approx(0.95)
    assert number.expected == pytest.approx((0.9 * 0.75 + 0.05 * 0.65) / 0.95)
    [cheaper] = read_numbers(Told(told.law), ["x 0."], official=False)
    assert cheaper.official is None and cheaper.expected == number.expected


def test_expected_number():
    assert expected_number({d: math.log(0.1) for d in DIGITS}) == pytest.approx(0.5)
    assert expected_number({"0": 0.0, "9": -math.inf}) == pytest.approx(0.05)
    assert expected_number({"73": 0.0, "7": -math.inf}) == pytest.approx(0.735)
    assert expected_number({"1": -900.0, "9": -900.0}) == pytest.approx((0.15 + 0.95) / 2)
    assert math.isnan(expected_number({"1": -math.inf, "2": -math.inf}))
    rng = np.random.default_rng(0)
    assert all(0 <= expected_number(dict(zip(DIGITS, rng.normal(size=10), strict=True))) <= 1 for _ in range(20))


def test_official_number():
    assert official_number(["7", "3"]) == 0.73 and official_number(["73", "3"]) == 0.733
    assert likeliest({"3": -1.0, "7": -1.0}) == "3"


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama"])
def test_a_local_model_is_read_by_token_id_as_by_text(tmp_path, tokenizer):
    with likely.load(str(write_tiny_llama(tmp_path / "t.gguf", tokenizer=tokenizer))) as lm:
        found = digit_tokens(lm.tokenizer, lm.runtime.vocab_size)
        assert set(DIGITS) <= set(found.values()) and all(text.isdigit() for text in found.values())
        assert digit_tokens(lm.tokenizer, max(found) + 1) == found  # ids beyond the logits are left out
        assert len(digit_tokens(lm.tokenizer, max(found))) == len(found) - 1
        text = "the cat 0."
        [number] = read_numbers(lm, [text])
        law = {d: lm.score(text, [d])[0].sequence_logprob for d in DIGITS}
        assert number.expected == pytest.approx(expected_number(law), abs=1e-4)
        first = likeliest(law)
        second = likeliest({d: lm.score(text + first, [d])[0].sequence_logprob for d in DIGITS})
        assert number.official == float(f"0.{first}{second}")


def test_a_tokenizer_without_digits_is_refused():
    class Wordy:
        vocab_size, special_tokens = 3, {"7": 2}

        def token_bytes(self, token):
            return [b"the", b"7a", b"7"][token]

    with pytest.raises(ValueError, match="no token of digits"):
        digit_tokens(Wordy(), 3)
