"""The regular tier: parts of a clause that are regular languages of the hole's text, as one terminal of a grammar.

llguidance intersects (&) and complements (~) terminals, so `and`, `or` and `not` of regular parts are one language:
its masks are complete, and a clause that no text fulfils is refused before anything is generated.
"""

from __future__ import annotations

import json

from likely.guided.form import make_form
from likely.guided.guide import lark_of
from likely.queries.where.final import evaluate
from likely.queries.where.nodes import (
    FALSE,
    FLIPPED,
    OPPOSITE,
    TRUE,
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
    holes_of,
)

MOST_CHARS = 64  # longer bounds on characters are counted: repeats of that size make the automata explode
ANY = r"/(?s:.*)/"
HEAD = "start: TEXT\nTEXT: "


def normal(node: Node, positive: bool = True) -> Node:
    """Negations pushed to the atoms, parts without a hole evaluated, unknown parts taken as no restriction.

    positive  False: of the clause's negation
    Sound: what is removed could still become true when the unknown holes are there.
    """
    if isinstance(node, Stop):
        return TRUE
    if not holes_of(node):
        value, _ = evaluate(node, {})
        return TRUE if value is None or bool(value) == positive else FALSE
    match node:
        case Not(part):
            return normal(part, not positive)
        case And(parts) | Or(parts):
            joined = [normal(p, positive) for p in parts]
            if isinstance(node, And) == positive:
                return _join(And, joined, neutral=TRUE, absorbing=FALSE)
            return _join(Or, joined, neutral=FALSE, absorbing=TRUE)
        case Compare(op, left, right):
            left, right = _folded(left), _folded(right)
            if Const(None) in (left, right):
                return TRUE
            if isinstance(left, Const) and not isinstance(right, Const):
                op, left, right = FLIPPED[op], right, left
            return Compare(op if positive else OPPOSITE[op], left, right)
    if any(isinstance(t, Const) and t.value is None for t in children(node)):
        return TRUE
    return node if positive else Not(node)


def _folded(node: Node) -> Node:
    return node if holes_of(node) else Const(evaluate(node, {})[0])


def _join(kind: type[And] | type[Or], parts: list[Node], *, neutral: Node, absorbing: Node) -> Node:
    flat = [q for p in parts for q in (p.parts if isinstance(p, kind) else (p,)) if q != neutral]
    if absorbing in flat:
        return absorbing
    if not flat:
        return neutral
    return flat[0] if len(flat) == 1 else kind(tuple(flat))


def interval(node: Compare) -> tuple[int, int | None] | None:
    """(least, most) count that the comparison allows, most None without a bound; None if it is no interval."""
    value = node.right.value if isinstance(node.right, Const) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    down, up = -(-value // 1), value // 1  # ceiling and floor
    match node.op:
        case "<":
            return 0, int(down) - 1
        case "<=":
            return 0, int(up)
        case ">":
            return max(0, int(up) + 1), None
        case ">=":
            return max(0, int(down)), None
        case "==":
            return (int(value), int(value)) if value == int(value) else (1, 0)
    return None


def terminal(node: Node) -> str | None:
    """The clause (in normal form) as a terminal expression over the hole's text; None if it is not regular here."""
    match node:
        case Const(value):
            return ANY if value else None
        case And(parts) | Or(parts):
            found = [terminal(p) for p in parts]
            if any(f is None for f in found):
                return None
            return (" & " if isinstance(node, And) else " | ").join(f"({f})" for f in found)
        case Not(part):
            inner = terminal(part)
            return None if inner is None else complement(inner)
        case In(Hole(), options):
            return " | ".join(map(quoted, options)) if options else None
        case StartsWith(Hole(), options):
            return f"({' | '.join(map(quoted, options))}) {ANY}"
        case Contains(Const(needle), Hole()):
            return f"{ANY} {quoted(needle)} {ANY}" if needle else ANY
        case Matches(Hole(), pattern):
            return pattern_terminal(pattern)
        case Compare(("==" | "!=") as op, Hole(), Const(str(text))):
            return quoted(text) if op == "==" else complement(quoted(text))
        case Compare(op, Count("chars", Hole()), Const()):
            return _length(node)
        case FunctionCall() if node.regex is not None and sum(isinstance(a, Hole) for a in node.args) == 1:
            values = [a.value if isinstance(a, Const) else None for a in node.args]
            matched = node.regex(*values)
            return None if matched is None else pattern_terminal(matched)
    return None


def _length(node: Compare) -> str | None:
    if node.op == "!=":
        inner = _length(Compare("==", node.left, node.right))
        return None if inner is None else complement(inner)
    bounds = interval(node)
    if bounds is None:
        return None
    least, most = bounds
    if max(least, most or 0) > MOST_CHARS:
        return None
    if most is not None and most < least:
        return f'"a" & {quoted("b")}'  # no text at all
    return rf"/(?s:.{{{least},{'' if most is None else most}}})/"


def quoted(text: str) -> str:
    return json.dumps(text)


def pattern_terminal(pattern: str) -> str:
    return lark_of(make_form(regex=pattern)).removeprefix(HEAD)


def complement(expression: str) -> str:
    """All other texts; without the second part also byte strings that are no text, and masks that lead nowhere else."""
    return f"{ANY} & ~({expression})"
