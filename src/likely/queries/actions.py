"""What a query's program calls: arithmetic, a dictionary, and functions marked as reaching outside.

The first two are pure.  Results of marked functions are recorded, so that a program can run again without calling anew.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from likely.errors import LikelyError

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
LONGEST = 200  # characters of an expression
LARGEST = 1e15


class ActionError(LikelyError):
    """A tool refused what it was given."""


def calculate(expression: str) -> int | float:
    """The value of an arithmetic expression: numbers, + - * / // % **, parentheses; nothing else is evaluated.

    A comma between digits and a currency sign are left out; x between numbers is *.  Whole results are ints.
    ActionError for anything else, for division by zero and for numbers past 1e15.
    """
    text = expression.strip().replace("$", "").replace("×", "*").replace("÷", "/").replace("^", "**")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)  # 1,000 -> 1000
    if not text or len(text) > LONGEST:
        raise ActionError(f"an expression has 1 to {LONGEST} characters, got {len(text)}")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ActionError(f"not arithmetic: {expression!r}") from None
    except ZeroDivisionError:
        raise ActionError(f"division by zero: {expression!r}") from None
    except OverflowError:
        raise ActionError(f"too large: {expression!r}") from None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and (abs(b) > 64 or abs(a) > 1e6):
                raise OverflowError
            return _bounded(_BINARY[type(op)](a, b))
    raise ValueError


def _bounded(value: Any) -> Any:
    if isinstance(value, complex):
        raise ValueError
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise OverflowError
    return value


@dataclass(frozen=True)
class Lookup:
    """A dictionary to look things up in: exact keys first, else without case and surrounding space or full stop.

    missing  what is answered for a key that is not there
    """

    entries: Mapping[str, str]
    missing: str = "not found"

    def __call__(self, key: str) -> str:
        if key in self.entries:
            return self.entries[key]
        wanted = _plain(key)
        return next((v for k, v in self.entries.items() if _plain(k) == wanted), self.missing)


def _plain(key: str) -> str:
    return key.strip().strip(".\"'").casefold()


# --- functions that reach outside -------------------------------------------------------------------------------------

P = ParamSpec("P")
R = TypeVar("R")
Recorder = Callable[[str, Callable[[], Any]], Any]
RECORDER: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def effect(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that reaches outside (a search, a clock, a file).

    Decoders that branch run the body again and again; a marked function is called once per branch and place, and its
    recorded result is given back after that.  Outside a query it is an ordinary function.
    """

    @wraps(function)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        recorder = RECORDER.get()
        if recorder is None:
            return function(*args, **kwargs)
        return recorder(function.__name__, lambda: function(*args, **kwargs))

    return recorded
