"""Prompts without their examples: nothing of an example stays, nothing else goes."""

from __future__ import annotations

import ast

import pytest

from likely.audit.code.lame_prompts import NoContrast, lame_prompt
from likely.data import load_records

DOCTEST = '''def add(a, b):
    """Add two numbers.

    >>> add(1, 2)
    3
    >>> add(1,
    ...     1)
    2

    Numbers may be negative.
    """
'''


def test_doctest_lines_and_their_output_go_and_the_rest_stays():
    kept = '''def add(a, b):
    """Add two numbers.


    Numbers may be negative.
    """
'''
    assert lame_prompt(DOCTEST) == kept


@pytest.mark.parametrize("header", ["Example:", "Examples", "For example:", "for examble:", "Example 2:", "EXAMPLES:"])
def test_a_section_of_examples_goes(header):
    examples = f"    {header}\n    f(1) returns 2\n      f(2) => 4\n"
    text = f'def f(x):\n    """Twice x.\n{examples}    Note:\n    x is whole.\n    """\n'
    assert lame_prompt(text) == 'def f(x):\n    """Twice x.\n    Note:\n    x is whole.\n    """\n'


def test_quotes_on_the_line_of_an_example_stay():
    assert lame_prompt('def f():\n    """One.\n    >>> f()\n    1"""\n') == 'def f():\n    """One.\n    """\n'
    assert lame_prompt('def f():\n    """>>> f()\n    1\n    """\n') == 'def f():\n    """\n    """\n'


def test_code_outside_docstrings_is_never_an_example():
    text = '"""Doc.\n>>> 1\n1\n"""\nassert f(1) == 2\nf(1) == 2\n# Example:\nx = 1\n'
    assert lame_prompt(text) == '"""Doc.\n"""\nassert f(1) == 2\nf(1) == 2\n# Example:\nx = 1\n'


def test_a_text_without_docstrings_counts_as_one():
    assert lame_prompt("Write f.\nExample:\nf(1) == 2\n") == "Write f.\n"


def test_asserts_and_the_sentence_that_announces_them_go():
    text = "Write a function. Your code should pass these tests:\nassert f(1) == 2\n  assert f(2) == 3\n[BEGIN]\n"
    assert lame_prompt(text, "asserts") == "Write a function.\n[BEGIN]\n"
    alone = "Task.\nYour code should satisfy the following tests:\nassert f(1)\nassertive.\n"
    assert lame_prompt(alone, "asserts") == "Task.\nassertive.\n"


def test_solved_examples_go():
    assert lame_prompt("Q: 1\nA: 2\n\nQ: 2\nA: 3\n\nQ: 4\nA:", "shots") == "Q: 4\nA:"
    assert lame_prompt("a[DONE]\nb[DONE]\nc", "shots", separator="[DONE]\n") == "c"
    assert lame_prompt("a\n\nb\n\n", "shots") == "b\n\n"


@pytest.mark.parametrize(
    ("text", "style"), [("def f():\n    pass\n", "docstring"), ("Task.\n", "asserts"), ("Q: 4\nA:\n\n", "shots")]
)
def test_a_prompt_without_examples_is_an_error(text, style):
    with pytest.raises(NoContrast, match="no examples"):
        lame_prompt(text, style)


def test_an_unknown_style_is_an_error():
    with pytest.raises(ValueError, match="style must be"):
        lame_prompt("x", "poem")


def test_humaneval(data_dir):
    """All problems: no ">>>" is left, what is left is the prompt's own lines in order, and it is still Python."""
    without = []
    for problem in load_records("humaneval", data_dir=data_dir):
        prompt = problem["prompt"]
        try:
            cut = lame_prompt(prompt)
        except NoContrast:
            without.append(problem["task_id"])
            continue
        assert ">>>" not in cut and "➞" not in cut and "==>" not in cut
        lines = iter(prompt.splitlines())
        assert all(any(line == other for other in lines) for line in cut.splitlines())
        ast.parse(cut + "    pass\n")
        assert problem["entry_point"] in cut
    assert without == [f"HumanEval/{n}" for n in (38, 41, 50, 83)]


def test_mbpp(data_dir):
    for record in load_records("mbpp", "test", data_dir=data_dir):
        tests = "\n".join(record["test_list"])
        text = f"{record['text']} Your code should pass these tests:\n{tests}\n"
        cut = lame_prompt(text, "asserts")
        assert "assert " not in cut and cut.startswith(record["text"].rstrip()[:40])
