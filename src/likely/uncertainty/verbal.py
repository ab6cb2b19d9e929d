"""Confidence that a text states in words: "Confidence: 85%", "0.85", "85 percent", "8/10", "(85)"."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from likely.metrics.checks import Floats
from likely.uncertainty.types import GenerationScores, Uncertainty

_ANCHOR = re.compile(r"\b(?:confidence|probability)\b", re.IGNORECASE)
_PROBABILITY = re.compile(r"\bprobability\b", re.IGNORECASE)
_VALUE = re.compile(
    r"(?<![\w.,/])(?P<sign>[-−])?(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?![0-9]|[.,][0-9])"
    r"(?:\s?(?P<percent>%|percent\b|per\s?cent\b)|\s?(?:/|out\s+of)\s?(?P<of>[0-9]+(?:\.[0-9]+)?)(?![0-9]|[.,][0-9]))?"
    r"(?![A-Za-z_])",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"\(\s*([0-9]+(?:\.[0-9]+)?)\s*\)")


def stated_confidence(text: str) -> float | None:
    """The confidence that a text states, in [0, 1]; None if it states none, or one that is out of range.

    Forms: 80% · 80 percent · 0.8 · 8/10 · 8 out of 10 · 80.  A bare number in (1, 100] is divided by 100.  Where:
    1. after the last "confidence" or "probability" that numbers follow, on that line or else on the next one: the last
       number marked as a share (%, /10, a decimal fraction), else the last number;
    2. else the last percentage of the text;  3. else the last number alone in brackets: "(85)".
    "150%" is no confidence: it is missing, not 1.
    """
    return _stated(text, _ANCHOR, _IN_BRACKETS)


def stated_probability(text: str) -> float | None:
    """The same for a text that reasons about a probability: "confidence" does not count, nor a number in brackets."""
    return _stated(text, _PROBABILITY, None)


def _stated(text: str, anchors: re.Pattern[str], alone: re.Pattern[str] | None) -> float | None:
    for anchor in reversed(list(anchors.finditer(text))):
        rest = text[anchor.end() :]
        if (following := _ANCHOR.search(rest)) is not None:
            rest = rest[: following.start()]
        lines = [line for line in rest.split("\n") if line.strip(" \t:*=-")]
        for line in lines[:2]:
            if found := list(_VALUE.finditer(line)):
                return _value(([m for m in found if _marked(m)] or found)[-1])
    if percentages := [m for m in _VALUE.finditer(text) if m["percent"]]:
        return _value(percentages[-1])
    if alone is not None and (bracketed := alone.findall(text)):
        return _share(float(bracketed[-1]))
    return None


def _marked(match: re.Match[str]) -> bool:
    return bool(match["percent"] or match["of"] or "." in match["number"])


def _value(match: re.Match[str]) -> float | None:
    number = float(match["number"])
    if match["sign"] and number:
        return None
    if match["percent"]:
        return number / 100 if number <= 100 else None
    if match["of"]:
        whole = float(match["of"])
        return number / whole if whole > 0 and number <= whole else None
    return _share(number)


def _share(number: float) -> float | None:
    if number <= 1:
        return number
    return number / 100 if number <= 100 else None


def without_confidence(text: str) -> str:
    """What stands before the first "confidence" or "probability": the answer, for comparing answers.

    The whole text if nothing stands before it.
    """
    match = _ANCHOR.search(text)
    before = re.sub(r"[\s(\[*;,|–-]+$", "", text[: match.start()]) if match else text
    return before if before.strip() else text


def stated_confidences(texts: Sequence[str]) -> Floats:
    """(M,) stated confidences, NaN where there is none."""
    found = [stated_confidence(text) for text in texts]
    return np.array([np.nan if value is None else value for value in found])


def stated(greedy: GenerationScores) -> Uncertainty:
    """The confidence that each greedy text states; `missing` says where there is none, which is never 0.5."""
    values = stated_confidences(greedy.texts)
    rate = float(np.mean(~np.isnan(values))) if len(values) else 0.0
    return Uncertainty(
        values, "probability", "more_certain", "stated_confidence", truncated=greedy.truncated,
        note=f"stated in {rate:.0%} of the texts",
    )  # fmt: skip
