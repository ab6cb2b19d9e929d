"""Where dots ask for members: against Python's own tokenizer, and places that it cannot see."""

from __future__ import annotations

import io
import keyword
import sys
import tokenize
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.code.analysis.python_lexer import START, step
from likely.code.ends import LineEnd, MethodEnd

FILES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))[::4]


def dots(code: str) -> list[int]:
    state, found = START, []
    for at, character in enumerate(code):
        for byte in character.encode():
            state = step(state, byte)
        if state.member:
            found.append(at)
    return found


def dots_by_tokenize(code: str) -> set[int]:
    starts = [0]
    for line in code.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    found, first, before = set(), None, None
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            first = before = None
        elif token.type not in (tokenize.NL, tokenize.COMMENT):
            first = first or token.string
            value = before is not None and (
                before.string in (")", "]", "}")
                or before.type == tokenize.STRING
                or (before.type == tokenize.NAME and not keyword.iskeyword(before.string))
                or before.string in ("True", "False", "None")
            )
            if token.string == "." and value and first not in ("import", "from"):
                found.add(starts[token.start[0] - 1] + token.start[1])
            before = token
    return found


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later tokenizers look into f-strings, as the lexer does")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_dots_are_those_of_tokenize(path):
    """Fields of f-strings aside, which tokenize of this version does not look into."""
    code = path.read_text()
    mine, theirs = set(dots(code)), dots_by_tokenize(code)
    assert theirs <= mine
    strings = [t for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type == tokenize.STRING]
    inside = "".join(t.string for t in strings if "f" in t.string.lower().split(t.string[-1])[0])
    assert len(mine - theirs) <= inside.count(".")


@pytest.mark.parametrize(
    "code, count",
    [
        ("x.", 1), ("x .", 1), ("f().", 1), ("a[0].", 1), ("'s'.", 1), ('"""s""".', 1), ("''.", 1), ("x.\n    y", 1),
        ("1.", 0), ("1.5.", 1), ("0x1F.", 0), ("1e5.", 1), ("x = .", 0), ("...", 0), ("return .", 0), ("x...", 1),
        ("# x.", 0), ("'x.", 0), ("'x.'", 0), ('"""x.', 0), ("'it\\'s x.", 0), ("r'x\\' y.", 0), ("import a.", 0),
        ("from a.", 0), ("from . import x\ny.", 1), ("import a; b.", 1), ("yield from a.", 1), ("raise E from a.", 1),
        ("f'{x.", 1), ("f'x.", 0), ("f'{{x.", 0), ("f'{x:.", 0), ("f'{x:{y.", 1), ("f'{x}.", 0), ("f'{x}'.", 1),
        ('f"{d[\'a\'].', 1), ("x\\\n.", 1), ("é.", 1), ("if True: x.", 1), ("(\n# c.\nx.", 1), ("print(.", 0),
        ("x = 'a' 'b'.", 1), ("lambda: x.", 1), ("a.b.", 2), ("@a.", 1), ("rb'x.", 0),
    ],
)  # fmt: skip
def test_known_places(code, count):
    assert len(dots(code)) == count


@given(st.text(alphabet="ab.1'\"\\\n{}()[]#f: =é,", max_size=60))
def test_feeding_at_once_is_feeding_byte_by_byte(text):
    state = START
    for byte in text.encode():
        state = step(state, byte)
    assert START.feed(text.encode()) == state


@pytest.mark.parametrize(
    "prefix, text, kept",
    [
        ("x = a.", "b()\ny", "b()"),
        ("x = f(", "a,\n  b)\ny", "a,"),  # the bracket was open before
        ("x = a.", "b(1,\n 2)\ny", "b(1,\n 2)"),
        ("x = a.", "b + '''\n'''\ny", "b + '''\n'''"),
        ("x = a.", "b", None),
    ],
)
def test_line_end(prefix, text, kept):
    ends = [LineEnd(prefix).push(text)]
    one = LineEnd(prefix)
    ends.append(next((end for c in text if (end := one.push(c)) is not None), None))
    assert ends == [None if kept is None else len(kept)] * 2


@pytest.mark.parametrize(
    "prefix, text, kept",
    [
        ("def f(a):\n    return a.", "b\n\ndef g(): pass", "b"),
        ("class A:\n    def f(self):\n        self.", "x()\n\n    def g(self):", "x()"),
        ("def f(a):\n    a.", "b(\n1)\n# note\n    if a:\n        c\nx = 1", "b(\n1)\n# note\n    if a:\n        c"),
        ("def f(a):\n    a.", 'b("""\nq\n""")\n    c\n@d', 'b("""\nq\n""")\n    c'),
        ("x = a.", "b\ny", None),
    ],
)
def test_method_end(prefix, text, kept):
    one = MethodEnd(prefix)
    end = next((end for c in text if (end := one.push(c)) is not None), None)
    assert (end if end is None else text[:end]) == kept
