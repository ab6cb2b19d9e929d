"""Is an answer right?  Pure functions of the answer's text and the reference.

exact   equal after normalising case, space, punctuation and English articles, as SQuAD's script does
number  the last number of the text equals that of the reference, as exact fractions
choice  the first letter that stands alone, or the text of exactly one option
regex   a pattern occurs in the text (linear time)
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from likely.errors import DataError, check_choice
from likely.io.linear_regex import LinearRegex

METHODS = ("exact", "number", "choice", "regex")
LETTERS = string.ascii_uppercase


def normalise(text: str) -> str:
    """Lower case, no punctuation, no "a", "an", "the", single spaces.  "" is possible ("The!")."""
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))


def same_text(text: str, reference: str) -> bool:
    """Equal after `normalise`; where nothing is left of the reference ("+", "The"), equal as they stand."""
    if not normalise(reference):
        return text.strip() == reference.strip()
    return normalise(text) == normalise(reference)


_UNSIGNED = (
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))(?P<part>\.[0-9]+)?"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?![0-9A-Za-z]))?"
)
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]\.)"  # not inside a word, nor the rest of 3.14.15
    rf"(?:(?<![0-9A-Za-z)\]])(?P<sign>[-−+]))?\s?[$€£¥]?(?P<sign2>[-−])?{_UNSIGNED}"
    r"(?:(?:\s(?P<top>[0-9]+))?\s?/\s?(?P<bottom>[0-9]+)(?![0-9]))?"
)
_MARKED = re.compile(r"####\s*(?=[-−+$€£¥]?\s?[-−$€£¥]?[.0-9])")
_FRAC = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
MAX_DIGITS = 1000


def numbers(text: str) -> list[Fraction]:
    """Every number written in a text: 1,234.5 · -3 · $20 · 1/2 · 2 1/3 · 1e-3 · \\frac{1}{2}.  Digits of a word
    such as H2O are none."""
    found: list[Fraction] = []
    for match in _NUMBER.finditer(_FRAC.sub(r" \1/\2 ", text)):
        if len(match[0]) <= MAX_DIGITS:
            found += _values(match)
    return found


def _values(match: re.Match[str]) -> list[Fraction]:
    whole, part, exponent = match["whole"].replace(",", ""), match["part"] or "", match["exponent"]
    value = Fraction(f"{whole or '0'}{part}") * Fraction(10) ** int(exponent or 0)
    sign = -1 if (match["sign"] in ("-", "−")) != (match["sign2"] is not None) else 1
    if match["bottom"] is None:
        return [sign * value]
    plain = not part and exponent is None
    bottom = int(match["bottom"])
    if match["top"] is not None:
        if plain and 0 < int(match["top"]) < bottom:
            return [sign * (value + Fraction(int(match["top"]), bottom))]
        rest = [Fraction(int(match["top"]), bottom)] if bottom else [Fraction(int(match["top"])), Fraction(0)]
        return [sign * value, *rest]
    return [sign * value / bottom] if bottom else [sign * value, Fraction(0)]


def last_number(text: str) -> Fraction | None:
    """The number that a text ends in: the one after the last "#### " (as GSM8K marks it), else the last one."""
    marked = [m.end() for m in _MARKED.finditer(text)]
    if marked and (after := numbers(text[marked[-1] :].split("\n", 1)[0])):
        return after[0]
    found = numbers(text)
    return found[-1] if found else None


def same_number(text: str, reference: str) -> bool:
    """The last numbers are equal; ValueError if the reference holds none."""
    wanted = last_number(reference)
    if wanted is None:
        raise ValueError(f"the reference holds no number: {reference[:60]!r}")
    return last_number(text) == wanted


def chosen(text: str, choices: Sequence[str] | None = None) -> int | None:
    """Which option a text chooses (0-based), None if none or several.

    The whole text is a letter or an option; else the first capital letter that stands alone, outside an option's
    text, and is not the word "A" or "I"; else the one option whose words occur in the text.
    """
    letters = LETTERS[: len(choices)] if choices is not None else LETTERS
    forms = [normalise(choice) for choice in choices or ()]
    alone = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", text)
    if alone and alone[1].upper() in letters:
        return letters.index(alone[1].upper())
    if forms.count(normalise(text)) == 1 and normalise(text):
        return forms.index(normalise(text))
    spans = [m.span() for choice in choices or () if choice for m in re.finditer(re.escape(choice), text, re.I)]
    for match in re.finditer(r"(?<![\w'’])[A-Z](?![\w'’])", text):
        inside = any(start <= match.start() < end for start, end in spans)
        if match[0] in letters and not inside and not _is_a_word(text, match):
            return letters.index(match[0])
    words = f" {normalise(text)} "
    found = {form for form in forms if form and f" {form} " in words}
    longest = [f for f in found if not any(f != other and f" {f} " in f" {other} " for other in found)]
    return forms.index(longest[0]) if len(longest) == 1 and forms.count(longest[0]) == 1 else None


def _is_a_word(text: str, match: re.Match[str]) -> bool:
    """ "A dog ..." at the start of a sentence, and "I think"."""
    before, after = text[: match.start()].rstrip(" \"'“‘*"), text[match.end() :]
    if match[0] == "A":
        return (not before or before[-1] in ".!?:\n") and re.match(r"\s+[a-z]", after) is not None
    return match[0] == "I" and re.match(r"\s+[a-z]", after) is not None


def choice_index(reference: object, choices: Sequence[str] | None) -> int:
    """An answer given as 0-based index, letter, or text of an option; ValueError otherwise."""
    count = len(choices) if choices is not None else len(LETTERS)
    allowed = f"a number in 0..{count - 1}, a letter in A..{LETTERS[min(count, 26) - 1]}"
    if isinstance(reference, int) and not isinstance(reference, bool):
        if 0 <= reference < count:
            return reference
        raise ValueError(f"the answer must be {allowed}, got {reference}")
    if not isinstance(reference, str):
        raise ValueError(f"the answer must be {allowed}, got {type(reference).__name__}")
    by_text = [i for i, choice in enumerate(choices or ()) if choice == reference]
    letter = reference.strip().upper()
    by_letter = [LETTERS.index(letter)] if len(letter) == 1 and letter in LETTERS[:count] else []
    found = set(by_text) | set(by_letter)
    if len(found) == 1:
        return found.pop()
    if found:
        raise ValueError(f"{reference!r} is a letter and the text of another choice: give the answer as a number")
    raise ValueError(f"the answer must be {allowed}, or the text of a choice, got {reference[:60]!r}")


def grader(method: str, pattern: str | None = None) -> Callable[[Mapping[str, Any]], bool]:
    """A function of an answers record {"text", "reference", "choices"?} that says whether it is right.

    It raises ValueError where the reference does not suit the method.  exact, number and regex take a list of
    references, too: one of them must hold.  pattern  for "regex": one pattern for all, instead of the references
    """
    check_choice("method", method, METHODS)
    if pattern is not None and method != "regex":
        raise ValueError(f'a pattern belongs to "regex", not to "{method}"')
    if method == "choice":
        return _grade_choice
    if method == "regex":
        if pattern is not None:
            one = LinearRegex(pattern)
            return lambda record: one.search(record["text"])
        return lambda record: any([LinearRegex(r).search(record["text"]) for r in _references(record)])
    same = same_text if method == "exact" else same_number
    return lambda record: any([same(record["text"], r) for r in _references(record)])


def _grade_choice(record: Mapping[str, Any]) -> bool:
    choices = record.get("choices")
    return chosen(record["text"], choices) == choice_index(_reference(record), choices)


def _reference(record: Mapping[str, Any]) -> Any:
    if record.get("reference") is None:
        raise ValueError('no reference: give "answer" in the questions file, or grade --by person')
    return record["reference"]


def _references(record: Mapping[str, Any]) -> list[str]:
    given = _reference(record)
    several = given if isinstance(given, list) else [given]
    if not several or not all(isinstance(r, str | int | float) and not isinstance(r, bool) for r in several):
        raise ValueError('"reference" must be a text, a number, or a list of these')
    return [str(r) for r in several]


def choices_of(record: Mapping[str, Any], where: str) -> list[str] | None:
    """The field "choices": two to 26 texts, or None where it is missing."""
    choices = record.get("choices")
    if choices is None:
        return None
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataError(f'{where}: field "choices" must be a list of texts that are not empty')
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f'{where}: field "choices" must hold 2 to {len(LETTERS)} texts, found {len(choices)}')
    return choices


def graded(answer: Mapping[str, Any], correct: bool, by: str) -> dict[str, Any]:
    """An answer's record with the decision, who decided, and p(answer | question) as its raw confidence.

    Of an answer in a given form it is the probability among the texts of that form.
    """
    logprob = answer.get("guided_logprob")
    logprob = answer.get("sequence_logprob") if logprob is None else logprob
    return {
        **answer,
        "confidence": answer.get("confidence"),
        "raw_confidence": math.exp(logprob) if isinstance(logprob, int | float) else None,
        "correct": int(correct),
        "graded_by": by,
    }
