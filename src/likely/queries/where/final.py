"""The eventual value of a clause on an unfinished text: (value, Final), as LMQL defines it.

FIN  the value can no longer change, whatever is generated      VAR  it can change arbitrarily
INC  it can only grow (text by prefix order, numbers)          DEC  it can only shrink

A value of None is not known yet.  Beurer-Kellner et al. 2023, "Prompting is programming", section on FINAL semantics;
for `in` over a list we take exact membership (their implementation is true already on a prefix), and numbers compared
with == are final where growth rules equality out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from likely.queries.where.counting import count
from likely.queries.where.nodes import (
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
    children,
)


class Final(Enum):
    FIN = "fin"
    VAR = "var"
    INC = "inc"
    DEC = "dec"


FIN, VAR, INC, DEC = Final.FIN, Final.VAR, Final.INC, Final.DEC
_UP, _DOWN = (FIN, INC), (FIN, DEC)
Pair = tuple[Any, Final]
_OPERATORS = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Partial:
    """The text of a hole so far, and the tokens that wrote it.  done: it is finished."""

    text: str
    tokens: int = 0
    done: bool = False


PartialTexts = Mapping[str, Partial]  # holes that are not in it have not begun


def evaluate(node: Node, state: PartialTexts) -> Pair:
    """(value, Final) of a clause."""
    match node:
        case Const(value, _):
            return value, FIN if value is not None else VAR
        case Hole(name):
            found = state.get(name)
            return (None, VAR) if found is None else (found.text, FIN if found.done else INC)
        case Count(kind, of):
            value, final = evaluate(of, state)
            if value is None:
                return None, VAR
            tokens = state[of.name].tokens if isinstance(of, Hole) else of.tokens if isinstance(of, Const) else 0
            return count(kind, str(value), tokens), final
        case And(parts):
            return conjunction([evaluate(p, state) for p in parts])
        case Or(parts):
            return negation(conjunction([negation(evaluate(p, state)) for p in parts]))
        case Not(part):
            return negation(evaluate(part, state))
        case Stop():
            return True, FIN  # ends a hole, forbids nothing
    pairs = [evaluate(p, state) for p in children(node)]
    return apply(node, pairs)


def apply(node: Node, pairs: list[Pair]) -> Pair:
    """(value, Final) of a comparison or call whose operands are `pairs`."""
    values, finals = [v for v, _ in pairs], [f for _, f in pairs]
    if any(v is None for v in values):
        return None, VAR
    everything = FIN if all(f is FIN for f in finals) else VAR
    match node:
        case Compare(op, _, _):
            return compare(op, pairs[0], pairs[1])
        case In(_, options) | StartsWith(_, options):
            text, final = values[0], finals[0]
            if isinstance(node, In) and text in options:
                return True, everything
            if isinstance(node, StartsWith) and text.startswith(options):
                return True, FIN if final in _UP else VAR
            hopeless = final is INC and not any(o.startswith(text) for o in options)
            return False, FIN if final is FIN or hopeless else VAR
        case Contains():
            (needle, text), (of_needle, of_text) = values, finals
            if needle in text:
                return True, FIN if of_needle is FIN and of_text in _UP else VAR
            return False, everything
        case Matches(_, pattern):
            return _regex(pattern).fullmatch(values[0]) is not None, everything
        case FunctionCall():
            value = node.forward(*values)
            if node.final is None or everything is FIN:
                return value, everything
            return value, node.final(values, finals, value)
    raise TypeError(f"not a condition: {node!r}")


def compare(op: str, left: Pair, right: Pair) -> Pair:
    """Numbers by order; texts by equality, where a text that can only grow is settled once it leaves the other."""
    (a, of_a), (b, of_b) = left, right
    value = _OPERATORS[op](a, b)
    if of_a is FIN and of_b is FIN:
        return value, FIN
    if op in (">", ">="):
        (a, of_a), (b, of_b), op = (b, of_b), (a, of_a), {">": "<", ">=": "<="}[op]
    if op in ("<", "<="):
        stays = of_a in _DOWN and of_b in _UP if value else of_a in _UP and of_b in _DOWN
        return value, FIN if stays else VAR
    if a == b:
        return value, VAR
    if isinstance(a, str) and isinstance(b, str):
        apart = (of_a is FIN or not b.startswith(a)) and (of_b is FIN or not a.startswith(b))
        return value, FIN if apart and of_a in _UP and of_b in _UP else VAR
    apart = (a > b and of_a in _UP and of_b in _DOWN) or (a < b and of_a in _DOWN and of_b in _UP)
    return value, FIN if apart else VAR


def conjunction(pairs: list[Pair]) -> Pair:
    """Kleene's and: false is final with one final false operand, true with all final."""
    if any(v is not None and not v for v, _ in pairs):
        return False, FIN if any(v is not None and not v and f is FIN for v, f in pairs) else VAR
    if any(v is None for v, _ in pairs):
        return None, VAR
    return True, FIN if all(f is FIN for _, f in pairs) else VAR


def negation(pair: Pair) -> Pair:
    value, final = pair
    return (None if value is None else not value), (final if final is FIN else VAR)


@lru_cache(maxsize=512)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
