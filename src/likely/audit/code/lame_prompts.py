"""A prompt without its examples: what a model says to it is what it says when it has not been shown what is wanted.

The "lame prompt" of USCD (Wang et al. 2024, arXiv:2409.05923): contrasting with it keeps what the examples brought.
"""

from __future__ import annotations

import re
from typing import Literal

from likely.errors import DataError

ExampleStyle = Literal["docstring", "asserts", "shots"]

_QUOTES = re.compile(r'"""|\'\'\'')
_HEADER = re.compile(r"^\s*(?:for\s+)?exam[pb]les?\s*\d*\s*:?\s*$", re.IGNORECASE)
_HEADING = re.compile(r"^[A-Z][\w ]*:$")
_PROSE = re.compile(r"^[A-Z][A-Za-z ,'-]+\.$")
_CALL = re.compile(r"^\s*\*?\s*\w+\(.*\)\s*(?:==>|=>|==|->|➞|→)")
_ASSERT = re.compile(r"^\s*assert\b")
_TESTS = re.compile(r"\s*your code should (?:pass|satisfy) (?:these|this|the following) tests?:?\s*$", re.IGNORECASE)


class NoContrast(DataError):
    """The prompt holds no examples, so that without them it is the same prompt."""


def lame_prompt(text: str, style: ExampleStyle = "docstring", *, separator: str = "\n\n") -> str:
    """The prompt without its input-output examples; every line that stays is the same, byte for byte.

    docstring  of a function, as in HumanEval: ">>>" lines with the output after them, sections that begin with
               "Example:", "For example:" and so on, and lines such as "f(1, 2) == 3".  A text without docstrings counts
               as one
    asserts    as in MBPP: "assert ..." lines, and the sentence that announces them
    shots      solved examples before the task: all up to the last `separator`
    NoContrast if nothing was cut.
    """
    if style == "docstring":
        out = _without_docstring_examples(text)
    elif style == "asserts":
        out = _without_asserts(text)
    elif style == "shots":
        out = text[text.rstrip().rfind(separator) + len(separator) :] if separator in text.rstrip() else text
    else:
        raise ValueError(f"style must be docstring, asserts or shots, got {style!r}")
    if out == text:
        raise NoContrast(f"the prompt holds no examples of style {style!r}; give another negative prompt, or none")
    return out


def _without_docstring_examples(text: str) -> str:
    inside = not _QUOTES.search(text)
    out: list[str] = []
    section: int | None = None  # the indentation of the header of the examples that we are in
    output = False  # within the output of a ">>>" line
    for line in text.splitlines(keepends=True):
        marks = list(_QUOTES.finditer(line))
        first, last = (0, len(line)) if not marks else (marks[0].end(), marks[-1].start())
        if marks and inside and len(marks) % 2:  # the docstring ends here
            first, last = 0, marks[0].start()
        elif marks and not inside:
            last = marks[1].start() if len(marks) > 1 else len(line)
        before, body, after = line[:first], line[first:last], line[last:]
        looking = inside or bool(marks)
        if not inside:
            section, output = None, False
        if len(marks) % 2:
            inside = not inside
        if not looking:
            out.append(line)
            continue
        bare, indent = body.strip(), len(body) - len(body.lstrip())
        if section is not None and bare and not _HEADER.match(body):
            heading = _HEADING.match(bare) and indent <= section
            if heading or _PROSE.match(bare):
                section = None
        if _HEADER.match(body):
            section = indent
            cut = True
        elif bare.startswith(">>>"):
            cut = output = True
        elif not bare:
            cut, output = False, False
        else:
            cut = output or section is not None or bool(_CALL.match(body))
        if not cut:
            out.append(line)
        elif before or after:
            margin = body[:indent] if not before else ""
            out.append(before + margin + after if after else before + "\n")
    return "".join(out)


def _without_asserts(text: str) -> str:
    out: list[str] = []
    for line in text.splitlines(keepends=True):
        if _ASSERT.match(line):
            continue
        ending = line[len(line.rstrip("\r\n")) :]
        cut = _TESTS.sub("", line.rstrip("\r\n"))
        if cut == line.rstrip("\r\n"):
            out.append(line)
        elif cut.strip():
            out.append(cut + ending)
    return "".join(out)
