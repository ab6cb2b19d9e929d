"""Operators of the user's for `where`: a function of texts, and what is known about it on unfinished ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from likely.queries.where.final import Final
from likely.queries.where.nodes import FunctionCall, Node, term

_OPS: dict[str, Op] = {}


@dataclass(frozen=True)
class Op:
    """name     as clauses write it
    forward  (*values) -> value; texts of holes are strings, as far as they are written
    final    (values, finals, result) -> Final: whether the result can still change; None: it can, until all arguments
             are finished.  FIN on a false result lets the decoder avoid a token at once
    regex    (*values) -> a pattern equal to the operator being true of its one unfinished argument (None in values), or
             None.  With it the operator is a part of the regular tier
    """

    name: str
    forward: Callable[..., Any]
    final: Callable[[list[Any], list[Final], Any], Final] | None = None
    regex: Callable[..., str | None] | None = None

    def node(self, *args: Any) -> Node:
        return FunctionCall(self.name, self.forward, tuple(map(term, args)), self.final, self.regex)

    __call__ = node


def op(
    name: str,
    *,
    final: Callable[[list[Any], list[Final], Any], Final] | None = None,
    regex: Callable[..., str | None] | None = None,
) -> Callable[[Callable[..., Any]], Op]:
    """Register an operator for clauses; in Python call the result on THIS: where=shorter_than(THIS, 5)."""
    if not name.isidentifier():
        raise ValueError(f"an operator's name must be a Python name, got {name!r}")

    def register(forward: Callable[..., Any]) -> Op:
        _OPS[name] = Op(name, forward, final, regex)
        return _OPS[name]

    return register


def registered() -> dict[str, Op]:
    return _OPS
