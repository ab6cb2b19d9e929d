"""How a chain of reasoning says its answer, and how the answers of several chains become one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from likely.errors import check_choice
from likely.metrics.grading import chosen, grader, last_number, normalise, numbers

Vote = Literal["majority", "likelihood"]

_SAID = r"(?:\\boxed\{|####|\b(?:final )?answer(?: is)?\s*:|\banswer is\b)"
_NUMBER_SAID = re.compile(rf"{_SAID}[^\w\n]{{0,20}}\d[\d,.]*(?=[^\d,.])", re.I)
_LETTER_SAID = re.compile(rf"{_SAID}[^\w\n]{{0,20}}(?-i:[A-Z])\b", re.I)
_LINE_SAID = re.compile(rf"{_SAID}[ \t*]*\S[^\n]*\n", re.I)
_MARK = re.compile(_SAID, re.I)


def _after_mark(text: str) -> str:
    """What follows the last mark of an answer; the whole text where there is none."""
    marks = [match.end() for match in _MARK.finditer(text)]
    return text[marks[-1] :] if marks else text


def _number(text: str) -> str | None:
    said = numbers(after.split("\n", 1)[0]) if (after := _after_mark(text)) is not text else []
    found = said[0] if said else last_number(text)
    return None if found is None else str(found)


def _letter(text: str) -> str | None:
    found = chosen(_after_mark(text))
    return None if found is None else chr(ord("A") + found)


def _line(text: str) -> str | None:
    lines = _after_mark(text).strip().splitlines()
    return normalise(lines[0]) or None if lines else None


@dataclass(frozen=True)
class AnswerForm:
    """What counts as an answer.

    is_said  whether a text that may go on has said it: "#### 7", "\\boxed{7}", "answer is 7", "ANSWER: B"
    read     the answer of a text that has ended, in a form in which equal answers are equal; None: there is none
    """

    about: str
    is_said: Callable[[str], bool]
    read: Callable[[str], str | None]


ANSWER_FORMS: Mapping[str, AnswerForm] = {
    "number": AnswerForm("the number said, else the last one", lambda t: bool(_NUMBER_SAID.search(t)), _number),
    "choice": AnswerForm("a letter of choices", lambda t: bool(_LETTER_SAID.search(t)), _letter),
    "line": AnswerForm("the line said, else the first one", lambda t: bool(_LINE_SAID.search(t)), _line),
}


def vote(
    answers: Sequence[str | None], mean_logprobs: Sequence[float | None], *, by: Vote = "majority"
) -> tuple[str | None, dict[str, float]]:
    """(the answer with the greatest weight, the weight of each); None where no chain has an answer.

    by  "majority": a chain weighs 1;  "likelihood": exp of its mean log-probability per token, in nats (0 if unknown)
    Equal weights: the greater sum of likelihoods, then the answer that came first in the list.
    """
    check_choice("vote", by, get_args(Vote))
    weights: dict[str, float] = {}
    likelihoods: dict[str, float] = {}
    for answer, logprob in zip(answers, mean_logprobs, strict=True):
        if answer is not None:
            likelihood = 0.0 if logprob is None else math.exp(logprob)
            weights[answer] = weights.get(answer, 0.0) + (1.0 if by == "majority" else likelihood)
            likelihoods[answer] = likelihoods.get(answer, 0.0) + likelihood
    best = max(weights, key=lambda a: (weights[a], likelihoods[a]), default=None)
    return best, weights


def is_right(form: str, answer: str | None, record: Mapping[str, Any]) -> bool | None:
    """Whether an answer is the record's "reference"; None where there is none, or none of this form."""
    check_choice("answer", form, ANSWER_FORMS)
    if record.get("reference") is None:
        return None
    method = {"number": "number", "choice": "choice", "line": "exact"}[form]
    try:
        return grader(method)({**record, "text": answer or ""})
    except ValueError:
        return None
