"""What a `where` clause says, as a tree: holes, counts, comparisons, and, or, not.

Text queries are translated into these nodes; in Python they are written with operators on THIS:

    q.gen("NAME", where=(THIS.words <= 3) & THIS.stops_before("."))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

CountKind = Literal["chars", "words", "sentences", "tokens"]
Operator = Literal["<", "<=", ">", ">=", "==", "!="]
FLIPPED: dict[str, Operator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
OPPOSITE: dict[str, Operator] = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
INT = r"-?(0|[1-9][0-9]*)"
FLOAT = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?"


class Node:
    """Any part of a clause.  & | ~ join conditions; comparisons with numbers make conditions of counts."""

    def __and__(self, other: Node) -> Node:
        return And((self, other))

    def __or__(self, other: Node) -> Node:
        return Or((self, other))

    def __invert__(self) -> Node:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a condition on a hole has no truth value yet: join conditions with & | ~, not and, or, not")

    def __lt__(self, other: Any) -> Node:
        return Compare("<", self, term(other))

    def __le__(self, other: Any) -> Node:
        return Compare("<=", self, term(other))

    def __gt__(self, other: Any) -> Node:
        return Compare(">", self, term(other))

    def __ge__(self, other: Any) -> Node:
        return Compare(">=", self, term(other))

    def equals(self, other: Any) -> Node:
        return Compare("==", self, term(other))

    def differs(self, other: Any) -> Node:
        return Compare("!=", self, term(other))


@dataclass(frozen=True)
class Const(Node):
    """A value that no longer changes; None: not known yet.  tokens: that wrote it, for the text of a finished hole."""

    value: Any
    tokens: int = 0


TRUE, FALSE, UNKNOWN = Const(True), Const(False), Const(None)


@dataclass(frozen=True)
class Hole(Node):
    """The text of a hole; "" is the one that is being written."""

    name: str = ""

    @property
    def chars(self) -> Count:
        return Count("chars", self)

    @property
    def words(self) -> Count:
        return Count("words", self)

    @property
    def sentences(self) -> Count:
        return Count("sentences", self)

    @property
    def tokens(self) -> Count:
        return Count("tokens", self)

    def one_of(self, options: Sequence[str]) -> Node:
        return In(self, tuple(options))

    def contains(self, text: str) -> Node:
        return Contains(Const(text), self)

    def starts_with(self, *options: str) -> Node:
        return StartsWith(self, options)

    def matches(self, pattern: str) -> Node:
        """The whole text matches this regular expression (Rust's syntax, no look-around)."""
        return Matches(self, pattern)

    def is_int(self) -> Node:
        return Matches(self, INT)

    def is_float(self) -> Node:
        return Matches(self, FLOAT)

    def stops_at(self, text: str) -> Node:
        return Stop(self, text, include=True)

    def stops_before(self, text: str) -> Node:
        return Stop(self, text, include=False)

    def satisfies(self, predicate: Callable[[str], Any], name: str = "") -> Node:
        """predicate(text) is true when the hole ends."""
        return FunctionCall(name or getattr(predicate, "__name__", "predicate"), predicate, (self,))


THIS = Hole()


@dataclass(frozen=True)
class Count(Node):
    """How many characters, words, sentences or tokens a text has (see counting.py)."""

    kind: CountKind
    of: Node


@dataclass(frozen=True)
class Compare(Node):
    op: Operator
    left: Node
    right: Node


@dataclass(frozen=True)
class In(Node):
    """item is exactly one of the options."""

    item: Node
    options: tuple[str, ...]


@dataclass(frozen=True)
class Contains(Node):
    needle: Node
    text: Node


@dataclass(frozen=True)
class StartsWith(Node):
    text: Node
    options: tuple[str, ...]


@dataclass(frozen=True)
class Matches(Node):
    text: Node
    pattern: str


@dataclass(frozen=True)
class Stop(Node):
    """The hole ends where `string` appears, with it (include) or before it; only as a part of a conjunction."""

    text: Node
    string: str
    include: bool


@dataclass(frozen=True)
class FunctionCall(Node):
    """A function of texts: a predicate of the user's, or a registered operator.

    final(values, finals, result) -> Final; None: fixed when all arguments are.
    regex(values) -> pattern of the one unfinished argument (None in values), or None
    """

    name: str
    forward: Callable[..., Any]
    args: tuple[Node, ...]
    final: Callable[..., Any] | None = None
    regex: Callable[..., str | None] | None = None


@dataclass(frozen=True)
class And(Node):
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Or(Node):
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not(Node):
    part: Node


def term(value: Any) -> Node:
    return value if isinstance(value, Node) else Const(value)


def _parts(node: Node) -> list[Any]:
    return [getattr(node, part.name) for part in fields(node)]  # type: ignore[arg-type]  # every node is a dataclass


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly inside, in order."""
    parts = [each for part in _parts(node) for each in (part if isinstance(part, tuple) else (part,))]
    return tuple(part for part in parts if isinstance(part, Node))


def holes_of(node: Node) -> set[str]:
    """Names of the holes in a clause."""
    if isinstance(node, Hole):
        return {node.name}
    return set().union(*map(holes_of, children(node)))


def replace_holes(node: Node, found: Callable[[str], Node]) -> Node:
    """The clause with every hole replaced."""
    if isinstance(node, Hole):
        return found(node.name)

    def go(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(map(go, part))
        return replace_holes(part, found) if isinstance(part, Node) else part

    return type(node)(*map(go, _parts(node)))


def describe(node: Node) -> str:
    """The clause in the notation of the query language, for messages."""
    match node:
        case Const(value):
            return repr(value)
        case Hole(name):
            return name or "THIS"
        case Count(kind, of):
            return f"len({describe(of)})" if kind == "chars" else f"len({kind.upper()}({describe(of)}))"
        case Compare(op, left, right):
            return f"{describe(left)} {op} {describe(right)}"
        case In(item, options):
            shown = ", ".join(map(repr, options[:4])) + (", ..." if len(options) > 4 else "")
            return f"{describe(item)} in [{shown}]"
        case Contains(needle, text):
            return f"{describe(needle)} in {describe(text)}"
        case StartsWith(text, options):
            return f"STARTS_WITH({describe(text)}, {list(options)!r})"
        case Matches(text, pattern):
            names = {INT: "INT", FLOAT: "FLOAT"}
            return (
                f"{names[pattern]}({describe(text)})" if pattern in names else f"REGEX({describe(text)}, {pattern!r})"
            )
        case Stop(text, string, include):
            return f"STOPS_{'AT' if include else 'BEFORE'}({describe(text)}, {string!r})"
        case FunctionCall(name, _, args, _, _):
            return f"{name}({', '.join(map(describe, args))})" if name.isidentifier() else name
        case And(parts):
            return " and ".join(f"({describe(p)})" if isinstance(p, Or) else describe(p) for p in parts)
        case Or(parts):
            return " or ".join(map(describe, parts))
        case Not(part):
            return f"not ({describe(part)})"
    return type(node).__name__
