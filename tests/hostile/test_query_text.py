"""A query's text is read, or refused with its place in one line: never another exception."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from likely.queries.syntax.parse import QuerySyntaxError, parse

EXAMPLES = Path(__file__).parents[2] / "examples" / "queries"
TEXTS = [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.lmql"))]
PIECES = (
    "[", "]", "{", "}", '"', "'", "\\", "\n", " where ", " distribution ", " in ", "def f():", " from ", "argmax",
    "(", ")",
    "sample(n=)", ":", "[A: int]", "[@f X]", "[A: r'(']", "\t", "\0", "\f", "é", "if ", "return ", '"""', "#", "=",
    ":=", "yield", "class A:", "global x", "lambda", "await", "**", "*", ",",
)  # fmt: skip


def mutated(rng: random.Random) -> str:
    text = rng.choice(TEXTS)
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                text = text[:at] + rng.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[at + rng.choice([1, 2, 5, 30]) :]
            case 2:
                text = text[:at] + " " * rng.randrange(5) + text[at:]
            case _:
                lines = text.split("\n")
                lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
                text = "\n".join(lines)
    return text


@pytest.mark.parametrize("seed", range(4))
def test_any_text_is_read_or_refused_with_its_place(seed):
    rng, read = random.Random(seed), 0
    for _ in range(150):
        text = mutated(rng)
        try:
            parse(text, "q.lmql")
            read += 1
        except QuerySyntaxError as error:
            assert str(error).startswith("q.lmql:") and "\n" not in str(error), text
    assert 5 < read < 145


@pytest.mark.parametrize(
    "text",
    [
        "\0", '"a[X]"\0', "(" * 5000, '"a[X]" where ' + "(" * 3000 + ")" * 3000,
        '"a[X]" where ' + "not " * 50_000 + "X",
        '"a[X]' + "{" * 5000 + '"', "argmax[0]\n  \"a[X]\"\nfrom \"m\"", "sample(**3)\n\"a[X]\"",
        "sample('x')\n\"a[X]\"",
        "def f(" + "a," * 300 + "): '[X]'", "\ufeff'a[X]'", "",
    ],
)  # fmt: skip
def test_what_python_itself_stumbles_over(text):
    try:
        parse(text, "q.lmql")
    except QuerySyntaxError as error:
        assert str(error).startswith("q.lmql:") and "\n" not in str(error)
