"""Clauses of text queries: the expression after `where`, rewritten so that it builds a tree of nodes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from likely.queries.where.nodes import (
    FLOAT,
    INT,
    And,
    Compare,
    Const,
    Contains,
    Count,
    FunctionCall,
    Hole,
    In,
    Matches,
    Node,
    Not,
    Or,
    StartsWith,
    Stop,
    term,
)
from likely.queries.where.ops import registered

_COMPARES: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
_COUNTS = {"TOKENS": "tokens", "WORDS": "words", "SENTENCES": "sentences", "CHARS": "chars"}
_TESTS = ("STOPS_AT", "STOPS_BEFORE", "INT", "FLOAT", "REGEX", "STARTS_WITH")


class Clauses:
    """What rewritten clauses call to build their nodes."""

    both, either, no, hole, compare, count = And, Or, Not, Hole, Compare, Count
    value = staticmethod(term)

    @staticmethod
    def length(of: Node) -> Node:
        return of if isinstance(of, Count) else Count("chars", of)

    @staticmethod
    def member(item: Node, of: Node) -> Node:
        """item in of: one of a list, or a part of a text."""
        if isinstance(of, Const) and not isinstance(of.value, str):
            options = tuple(of.value)
            if not options:
                raise ValueError("in [...]: the list is empty, nothing could be written")
            return In(item, tuple(str(o) for o in options))
        return Contains(item, of)

    @staticmethod
    def test(name: str, hole: Node, *args: Any) -> Node:
        match name, args:
            case (("STOPS_AT" | "STOPS_BEFORE"), (str(text),)):
                return Stop(hole, text, name == "STOPS_AT")
            case "INT", ():
                return Matches(hole, INT)
            case "FLOAT", ():
                return Matches(hole, FLOAT)
            case "REGEX", (str(pattern),):
                return Matches(hole, pattern)
            case "STARTS_WITH", (str() | list() | tuple() as options,):
                return StartsWith(hole, (options,) if isinstance(options, str) else tuple(options))
        raise TypeError(
            f"{name} takes a hole and {'a text' if name != 'STARTS_WITH' else 'a list of texts'}, got {args!r}"
        )

    @staticmethod
    def op(name: str, *args: Node) -> Node:
        return registered()[name].node(*args)

    @staticmethod
    def opaque(function: Callable[..., Any], source: str, *holes: Node) -> Node:
        return FunctionCall(source, function, holes)


CLAUSES = Clauses()


class ClauseWriter:
    """Turns an expression of the query's source into one that builds its node."""

    NAMES: ClassVar[tuple[str, ...]] = (*_COUNTS, *_TESTS)

    def __init__(self, holes: set[str], run: str, fail: Callable[..., Exception]):
        self.holes, self.run, self.fail = holes, run, fail

    def call(self, name: str, args: list[ast.expr]) -> ast.expr:
        clauses = ast.Attribute(ast.Name(self.run, ast.Load()), "clauses", ast.Load())
        return ast.Call(ast.Attribute(clauses, name, ast.Load()), args, [])

    def _joined(self, name: str, parts: Iterable[ast.expr]) -> ast.expr:
        return self.call(name, [ast.Tuple(list(parts), ast.Load())])

    def condition(self, node: ast.expr) -> ast.expr:
        match node:
            case ast.BoolOp(op=op, values=values):
                return self._joined("both" if isinstance(op, ast.And) else "either", map(self.condition, values))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.call("no", [self.condition(operand)])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                terms = [left, *comparators]
                parts = [self._pair(op, a, b) for op, a, b in zip(ops, terms, terms[1:], strict=False)]
                return parts[0] if len(parts) == 1 else self._joined("both", parts)
            case ast.Call(func=ast.Name(id=name), args=args) if name in _TESTS or name in registered():
                if name in registered():
                    return self.call("op", [ast.Constant(name), *map(self.term, args)])
                if not args or not (isinstance(args[0], ast.Name) and args[0].id in self.holes):
                    raise self.fail(f"{name} is about a hole: {name}(HOLE, ...) with one of {self._known()}", node)
                return self.call("test", [ast.Constant(name), self.term(args[0]), *args[1:]])
        return self.term(node)

    def _pair(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> ast.expr:
        if isinstance(op, (ast.In, ast.NotIn)):
            made = self.call("member", [self.term(left), self.term(right)])
            return self.call("no", [made]) if isinstance(op, ast.NotIn) else made
        if type(op) not in _COMPARES:
            return self._opaque(ast.Compare(left, [op], [right]))
        return self.call("compare", [ast.Constant(_COMPARES[type(op)]), self.term(left), self.term(right)])

    def term(self, node: ast.expr) -> ast.expr:
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & self.holes
        match node:
            case ast.Name(id=name) if name in self.holes:
                return self.call("hole", [ast.Constant(name)])
            case ast.Call(func=ast.Name(id="len"), args=[of]) if names:
                return self.call("length", [self.term(of)])
            case ast.Call(func=ast.Name(id=name), args=[of]) if name in _COUNTS:
                return self.call("count", [ast.Constant(_COUNTS[name]), self.term(of)])
        if not names:
            return self.call("value", [node])
        return self._opaque(node)

    def _opaque(self, node: ast.expr) -> ast.expr:
        """Any other expression about holes: a function of their texts."""
        names = sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & self.holes)
        arguments = ast.arguments(
            posonlyargs=[], args=[ast.arg(n) for n in names], kwonlyargs=[], kw_defaults=[], defaults=[]
        )
        holes = [self.call("hole", [ast.Constant(n)]) for n in names]
        return self.call("opaque", [ast.Lambda(arguments, node), ast.Constant(ast.unparse(node)), *holes])

    def _known(self) -> str:
        return ", ".join(sorted(self.holes)) or "none"
