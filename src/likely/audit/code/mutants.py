"""Programs with one small fault: a swapped operator, a constant off by one, a negated condition.

The edit is made in the text, so that all else, layout and comments included, stays as it is: what a likelihood then
differs by is the fault.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

MutantKind = Literal["operator", "constant", "condition"]
SWAPPED = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "/", "%": "*", "**": "*", "<<": ">>", ">>": "<<", "&": "|", "|": "&",
    "^": "&", "and": "or", "or": "and", "==": "!=", "!=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "in": "not in", "not in": "in", "is": "is not", "is not": "is",
}  # fmt: skip
NEGATED = {**SWAPPED, "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
SYMBOLS = re.compile(rb"\*\*|//|<<|>>|==|!=|<=|>=|\bnot\s+in\b|\bis\s+not\b|\b(?:and|or|in|is)\b|[-+*/%<>&|^]")
_CONDITIONAL = (ast.If, ast.While, ast.IfExp)


@dataclass(frozen=True)
class Mutant:
    """A program that differs from another by one edit in this line (1-based)."""

    kind: MutantKind
    line: int
    code: str


def mutants(code: str) -> list[Mutant]:
    """Every program one edit away, in order of the place; all of them compile.  SyntaxError if `code`
    is no Python.

    operator   + for -, and for or, < for <=, in for not in ...
    constant   a whole number one more, and one less where it is positive
    condition  of if, while, a conditional expression or a comprehension: negated
    """
    tree, source = ast.parse(code), _Source(code)
    edits = sorted(_edits(tree, source), key=lambda edit: edit[1:3])
    found: dict[str, Mutant] = {}
    for kind, start, stop, text in edits:
        changed = (source.raw[:start] + text + source.raw[stop:]).decode()
        if changed != code and changed not in found and _compiles(changed):
            found[changed] = Mutant(kind, source.raw.count(b"\n", 0, start) + 1, changed)
    return list(found.values())


def one_of_each_kind(
    found: list[Mutant], seed: int = 0, *, accept: Callable[[Mutant], bool] = lambda mutant: True
) -> list[Mutant]:
    """At most one mutant of each kind, drawn among those that are accepted."""
    rng = random.Random(seed)
    by_kind: dict[MutantKind, list[Mutant]] = {"operator": [], "constant": [], "condition": []}
    for mutant in found:
        by_kind[mutant.kind].append(mutant)
    drawn = [rng.sample(group, len(group)) for group in by_kind.values()]
    chosen = [next(filter(accept, group), None) for group in drawn]
    return [mutant for mutant in chosen if mutant is not None]


class _Source:
    """Places of nodes in the bytes of a text."""

    def __init__(self, code: str):
        self.raw = code.encode()
        self._lines = [0]
        for line in self.raw.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._lines[node.lineno - 1] + node.col_offset, self._lines[node.end_lineno - 1] + node.end_col_offset

    def between(self, left: ast.expr, right: ast.expr) -> tuple[int, int, str] | None:
        """Where the operator between two expressions stands, and which it is; None where a comment is in the way."""
        start, stop = self.span(left)[1], self.span(right)[0]
        gap = self.raw[start:stop]
        match = SYMBOLS.search(gap)
        if match is None or b"#" in gap:
            return None
        return start + match.start(), start + match.end(), " ".join(match[0].decode().split())


_Edit = tuple[MutantKind, int, int, bytes]


def _edits(tree: ast.AST, source: _Source) -> Iterator[_Edit]:
    for node in _outside_formatted_text(tree):
        if isinstance(node, ast.BinOp):
            yield from _swap(source.between(node.left, node.right))
        elif isinstance(node, ast.AugAssign):
            yield from _swap(source.between(node.target, node.value))
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from _swap(source.between(left, right))
        elif isinstance(node, ast.Compare):
            for left, right in zip([node.left, *node.comparators], node.comparators, strict=False):
                yield from _swap(source.between(left, right))
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            start, stop = source.span(node)
            if source.raw[start:stop] == str(node.value).encode():
                for value in (node.value + 1, node.value - 1)[: 2 if node.value > 0 else 1]:
                    yield "constant", start, stop, str(value).encode()
        elif isinstance(node, _CONDITIONAL):
            yield from _negate(node.test, source)
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                yield from _negate(test, source)


def _outside_formatted_text(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes but those of f-strings, whose places are not those of the text."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.JoinedStr):
            yield from _outside_formatted_text(child)


def _swap(found: tuple[int, int, str] | None) -> Iterator[_Edit]:
    if found is not None and found[2] in SWAPPED:
        yield "operator", found[0], found[1], SWAPPED[found[2]].encode()


def _negate(test: ast.expr, source: _Source) -> Iterator[_Edit]:
    start, stop = source.span(test)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        place = source.between(test.left, test.comparators[0])
        if place is not None:
            yield "condition", place[0], place[1], NEGATED[place[2]].encode()
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield "condition", start, source.span(test.operand)[0], b""
    elif isinstance(test, ast.Name | ast.Call | ast.Attribute | ast.Subscript):
        yield "condition", start, start, b"not "
    else:
        yield "condition", start, stop, b"not (" + source.raw[start:stop] + b")"


def _compiles(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True
