"""Confidence that a text states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.uncertainty.types import GenerationScores
from likely.uncertainty.verbal import stated, stated_confidence, stated_confidences, without_confidence

CASES = {
    "confidence 85%": 0.85,
    "Confidence: 0.85": 0.85,
    "(85)": 0.85,
    "It is (B) with (85)": 0.85,
    "I do not know": None,
    "Confidence: 150": None,
    "Confidence: 150%": None,
    "Confidence: 80 percent": 0.8,
    "Confidence: 80 per cent": 0.8,
    "Confidence: 8/10": 0.8,
    "Confidence: 8 out of 10": 0.8,
    "Confidence: 85/100": 0.85,
    "Confidence: 11/10": None,
    "Confidence: 1/0": None,
    "Confidence: 85": 0.85,
    "Confidence: 1": 1.0,
    "Confidence: 1%": 0.01,
    "Confidence: 0": 0.0,
    "Confidence: 0%": 0.0,
    "Confidence: 100": 1.0,
    "confidence is 0.9": 0.9,
    "Confidence: .9": 0.9,
    "Confidence: 0.9.": 0.9,
    "Confidence: 99.5%": 0.995,
    "Confidence: -0.5": None,
    "Confidence: 1,000": None,
    "Confidence (0-100): 85": 0.85,
    "Confidence:\n**85%**": 0.85,
    "Confidence: high": None,
    "confidence 60%. After thought, confidence 90%": 0.9,
    "Confidence: between 70% and 80%": 0.8,
    "It was 30%. Confidence: 80": 0.8,
    "Confidence: 80%. A year has 12 months.": 0.8,
    "Confidence: 80\nA year has 12 months.": 0.8,
    "I am 90% sure": 0.9,
    "90% confident; it was 1969": 0.9,
    "10% of 50 people are 70% sure": 0.7,
    "The probability that it is right is 0.7": 0.7,
    "It was 1969": None,
    "H2O2 and B52": None,
    "Overconfidence 90": None,
    "": None,
}


@pytest.mark.parametrize("text", CASES)
def test_cases(text):
    found = stated_confidence(text)
    assert found == (None if CASES[text] is None else pytest.approx(CASES[text]))


@given(st.text(alphabet="confidencprbaly 0123456789.,%/()-:\n", max_size=60))
def test_always_in_range_or_missing(text):
    found = stated_confidence(text)
    assert found is None or 0 <= found <= 1


@given(st.integers(0, 100))
def test_percentages_are_read_back(p):
    for text in (f"Confidence: {p}%", f"confidence {p} percent", f"Probability: {p}/100"):
        assert stated_confidence(text) == pytest.approx(p / 100)


def test_a_missing_value_is_missing_and_never_a_half():
    texts = ["Confidence: 80%", "no idea", "Confidence: 150%", "Confidence: 0%"]
    rows = [np.array([-0.1])] * 4
    found = stated(GenerationScores(rows, texts, ["stop"] * 4, np.arange(4)))
    assert found.missing.tolist() == [False, True, True, False] and found.note == "stated in 50% of the texts"
    assert found.values[[0, 3]].tolist() == [0.8, 0.0]
    with pytest.warns(UserWarning, match="2 of 4 missing"):
        assert np.isnan(found.confidence()[1])
    assert np.isnan(stated_confidences(["?"])[0])


def test_the_answer_stands_before_it():
    assert without_confidence("Paris. Confidence: 80%") == "Paris."
    assert without_confidence("Paris (confidence 80%)") == "Paris"
    assert without_confidence("Confidence: 80%") == "Confidence: 80%"
    assert without_confidence("Paris") == "Paris"
