from __future__ import annotations

import re
import string
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import DataError
from likely.metrics.grading import choice_index, choices_of, chosen, grader, last_number, normalise, numbers, same_text


def squad_steps(text):
    """SQuAD's four steps, one after the other, for ASCII."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(st.text(alphabet=string.ascii_letters + string.digits + string.punctuation + " \n\t"))
def test_normalising_ascii_follows_squad(text):
    assert normalise(text) == squad_steps(text)
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        ("The Eiffel Tower.", "eiffel tower", True),
        ("  PARIS!\n", "Paris", True),
        ("“Zoë”", "Zoe\u0308", True),
        ("Paris, France", "Paris", False),
        ("another", "other", False),
        ("", "x", False),
        ("+", "+", True),
        ("-", "+", False),
        ("the", "The", False),
    ],
)
def test_exact(text, reference, same):
    assert same_text(text, reference) is same


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It costs $1,234.50 in all.", "1234.5"),
        ("1,000,000 people", "1000000"),
        ("numbers 1,2,3", "3"),
        ("1,2345", "2345"),
        ("x = -3", "-3"),
        ("x = −3", "-3"),
        ("-$4 today", "-4"),
        ("$-4 today", "-4"),
        ("5-3", "3"),
        ("pages 3–5", "5"),
        ("one half is 1/2.", "1/2"),
        ("2 1/3 cups", "7/3"),
        ("10 / 4", "5/2"),
        ("division by 1/0", "0"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"\boxed{42}", "42"),
        (".5 litres", "0.5"),
        ("about 1e-3", "0.001"),
        ("3rd place, 5km", "5"),
        ("50%", "50"),
        ("drink H2O", None),
        ("none here", None),
        ("", None),
        ("9" * 5000, None),
        ("2 + 2 = <<2+2=4>>4\n#### 4", "4"),
        ("#### 42\n\nQuestion: what is 7 + 8?", "42"),
        ("#### $1,200", "1200"),
        ("#### -3", "-3"),
        ("#### Solution\n\nIt is 9.", "9"),
        ("####", None),
    ],
)
def test_the_number_a_text_ends_in(text, value):
    assert last_number(text) == (None if value is None else Fraction(value))


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "so {:,}.", "#### {}", "$x={}$", "({})", "**{}**"])
)
def test_a_whole_number_is_read_in_any_dress(number, dress):
    assert last_number(dress.format(number)) == number


@given(st.fractions(max_denominator=999), st.integers(-9, 9).map(lambda e: f"1e{e}"))
def test_fractions_and_powers_are_exact(fraction, power):
    assert last_number(f"it is {fraction.numerator}/{fraction.denominator}") == fraction
    assert last_number(power) == Fraction(power)


@settings(max_examples=300)
@given(st.text(alphabet="0123456789.,/-+$eE# \\frac{}aA\n"))
def test_no_text_breaks_the_reading_of_numbers(text):
    assert all(isinstance(value, Fraction) for value in numbers(text))
    last_number(text)


CHOICES = ["vitamin C", "iron", "a dog", "red iron ore"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("b)", 1),
        ("(C)", 2),
        ("**D**", 3),
        ("Answer: D. red iron ore", 3),
        ("The answer is A because of B", 0),
        ("A dog is what you see", 2),
        ("It's vitamin C.", 0),
        ("VITAMIN C", 0),
        ("I think it is D", 3),
        ("Iron!", 1),
        ("red iron ore, of course", 3),
        ("iron and vitamin C", None),
        ("E", None),
        ("E or B", 1),
        ("USB", None),
        ("don't know", None),
        ("", None),
    ],
)
def test_which_option_a_text_chooses(text, index):
    assert chosen(text, CHOICES) == index


OPTION = st.text(alphabet="abcdef ", min_size=3).filter(lambda text: len(normalise(text)) > 1)


@given(st.lists(OPTION, min_size=2, max_size=9, unique_by=normalise), st.data())
def test_letters_and_option_texts_choose_that_option(choices, data):
    index = data.draw(st.integers(0, len(choices) - 1))
    letter = chr(65 + index)
    for form in ("{}", "({})", "{}.", "Answer: {}", "The answer is {}.", "**{}**", "{}\n"):
        assert chosen(form.format(letter), choices) == index
    assert chosen(choices[index], choices) == index


def test_a_letter_that_is_no_option_can_be_the_text_of_one():
    assert chosen("K", ["O", "K"]) == 1 and chosen("B", ["a b", "c"]) == 1


def test_without_options_any_letter_counts():
    assert chosen("It is (Q).") == 16


def test_answers_are_numbers_letters_or_texts():
    assert [choice_index(a, CHOICES) for a in (0, 3, "A", "d", "iron")] == [0, 3, 0, 3, 1]
    for bad in (4, -1, True, 1.0, "E", "1", "", None, ["A"]):
        with pytest.raises(ValueError, match=r"must be a number in 0\.\.3, a letter in A\.\.D"):
            choice_index(bad, CHOICES)
    with pytest.raises(ValueError, match="as a number"):
        choice_index("A", ["B", "A"])
    assert choice_index("B", ["A", "B"]) == 1


@pytest.mark.parametrize("bad", ["ab", ["a"], ["a", ""], ["a", 1], [], ["x"] * 27, {"A": "a"}])
def test_choices_are_two_to_26_texts(bad):
    with pytest.raises(DataError, match='f:3: field "choices"'):
        choices_of({"choices": bad}, "f:3")


def test_graders_on_records():
    record = {"text": "So it is 42.", "reference": "#### 42"}
    assert grader("number")(record) and not grader("exact")(record)
    assert grader("number")({**record, "reference": 42}) and grader("number")({**record, "reference": 42.0})
    assert grader("exact")({"text": "the cat", "reference": ["dog", "Cat"]})
    assert grader("choice")({"text": "(B)", "reference": 1, "choices": ["x", "y"]})
    assert grader("choice")({"text": "(B)", "reference": "B"})
    assert grader("regex")({"text": "on 3 May", "reference": r"\d+ May"})
    assert not grader("regex", "^May")({"text": "on 3 May"})


@pytest.mark.parametrize(
    ("method", "record", "why"),
    [
        ("exact", {"text": "x"}, "no reference"),
        ("exact", {"text": "x", "reference": True}, "must be a text"),
        ("exact", {"text": "x", "reference": []}, "must be a text"),
        ("number", {"text": "3", "reference": "three"}, "holds no number"),
        ("choice", {"text": "A", "reference": "iron"}, "letter in A..Z"),
    ],
)
def test_a_reference_that_does_not_suit_is_an_error_not_a_wrong_answer(method, record, why):
    with pytest.raises(ValueError, match=why):
        grader(method)(record)


def test_methods_are_checked_by_name():
    with pytest.raises(ValueError, match='did you mean "number"'):
        grader("numbr")
    with pytest.raises(ValueError, match="pattern belongs"):
        grader("exact", "x")
