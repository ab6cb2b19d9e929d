"""From a clause to a constraint: each part goes to the strongest tier that can hold it.

1. regular   one grammar through llguidance: complete, and contradictions are refused at once
2. counter   numbers of tokens, words, sentences, long texts: a counter and looked-up masks
3. opaque    Python predicates: the end is forbidden while they are false
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from likely.decoding.constraint import Constraint
from likely.errors import ConstraintError
from likely.guided.combinators import AnyOf
from likely.guided.engines.llguidance import LLGuidance
from likely.guided.vocabulary import Vocabulary
from likely.queries.where.counting import Counted, TokenCounts
from likely.queries.where.nodes import (
    FALSE,
    TRUE,
    And,
    Compare,
    Const,
    Count,
    FunctionCall,
    Hole,
    Node,
    Or,
    children,
    describe,
)
from likely.queries.where.opaque import Opaque, Peek, Tiers
from likely.queries.where.regular import HEAD, interval, normal, terminal
from likely.queries.where.stops import HoleConstraint, StopRule, split_stops

NO_TEXT = "NoExtensionBias"  # how llguidance calls a terminal that no text matches


class NoText(ConstraintError):
    """A clause, or a branch of one, that no text fulfils."""


@dataclass(frozen=True)
class CompiledClause:
    """constraint: None where nothing is masked;  rule: when the hole is cut;  peek: a transform to run beside."""

    constraint: Constraint | None
    rule: StopRule
    peek: Peek | None = None


@dataclass(eq=False)
class WhereCompiler:
    """For one vocabulary.  engine: llguidance on it, made when it is first needed."""

    vocabulary: Vocabulary
    engine: Callable[[], LLGuidance]

    def __post_init__(self) -> None:
        self._grammar = lru_cache(maxsize=256)(self._compile_grammar)
        self._counts = lru_cache(maxsize=8)(lambda kind: TokenCounts(kind, self.vocabulary.tokens))

    def compile(
        self, clause: Node, hole: str, *, form: Constraint | None = None, form_rest: Node = TRUE
    ) -> CompiledClause:
        """The constraint of one hole, from its clause and its type.

        clause     all other holes replaced by values or UNKNOWN;  form: a constraint of the type's own
        form_rest  the same as a condition on a finished text
        """
        stops, rest = split_stops(clause)
        wanted = normal(rest)
        said = describe(clause)
        if wanted == FALSE:
            raise NoText(f"hole {hole}: no text fulfils where {said}")
        peek = Peek() if _has_final(wanted) else None
        parts = [] if form is None else [form]
        if wanted is not TRUE:
            parts += self._all(wanted, hole, said, peek)
        rule = StopRule(stops, wanted if form_rest is TRUE else And((wanted, form_rest)), hole)
        if not parts:
            return CompiledClause(None, rule)
        return CompiledClause(HoleConstraint(self.vocabulary, all_of(parts), rule, said), rule, peek)

    def stops_only(self, rule: StopRule, clause: str) -> Constraint:
        """A constraint that only ends the text after a stop, for searches that cannot be cut from outside."""
        return HoleConstraint(self.vocabulary, None, rule, clause)

    def _all(self, node: Node, hole: str, said: str, peek: Peek | None) -> list[Constraint]:
        parts = node.parts if isinstance(node, And) else (node,)
        regular = [t for p in parts if (t := terminal(p)) is not None]
        others = [p for p in parts if terminal(p) is None]
        found: list[Constraint] = self._regular(regular, hole, said) if regular else []
        return found + [self._one(p, hole, said, peek) for p in others]

    def _one(self, node: Node, hole: str, said: str, peek: Peek | None) -> Constraint:
        if isinstance(node, (And, Or)):
            if isinstance(node, And):
                return all_of(self._all(node, hole, said, peek))
            return self._either(node.parts, hole, said, peek)
        if isinstance(node, Compare) and isinstance(node.left, Count) and isinstance(node.left.of, Hole):
            counts = self._counts(node.left.kind)
            bounds = interval(node)
            if bounds is not None:
                if bounds[1] is not None and bounds[1] < bounds[0]:
                    raise NoText(f"hole {hole}: no text fulfils {describe(node)}")
                return Counted(self.vocabulary, counts, *bounds)
            if isinstance(node.right, Const) and isinstance(node.right.value, int):
                value = node.right.value  # !=
                sides = [(value + 1, None)] if value <= 0 else [(0, value - 1), (value + 1, None)]
                return AnyOf(*(Counted(self.vocabulary, counts, max(0, low), high) for low, high in sides))
        return Opaque(self.vocabulary, node, hole, peek)

    def _either(self, parts: Sequence[Node], hole: str, said: str, peek: Peek | None) -> Constraint:
        """Of the branches that some text fulfils; NoText if there is none."""
        found = []
        for part in parts:
            with suppress(NoText):
                found.append(all_of(self._all(part, hole, said, peek)))
        if not found:
            raise NoText(f"hole {hole}: no text fulfils where {said}")
        return found[0] if len(found) == 1 else AnyOf(*found)

    def _regular(self, terminals: Sequence[str], hole: str, said: str) -> list[Constraint]:
        """One grammar of all; apart if together they are too large for the engine."""
        try:
            return [self._grammar(HEAD + " & ".join(f"({t})" for t in terminals)).fork()]
        except ConstraintError as error:
            if NO_TEXT in str(error):
                raise NoText(f"hole {hole}: no text fulfils where {said}") from None
            if len(terminals) == 1:
                raise ConstraintError(f"hole {hole}: where {said}: {error}") from None
        return [c for t in terminals for c in self._regular([t], hole, said)]

    def _compile_grammar(self, lark: str) -> Constraint:
        made = self.engine().compile(lark)
        if not made.allowed().any() and not made.accepting:
            raise ConstraintError(NO_TEXT)
        return made


def all_of(parts: Sequence[Constraint]) -> Constraint:
    return parts[0] if len(parts) == 1 else Tiers(*parts)


def _has_final(node: Node) -> bool:
    if isinstance(node, FunctionCall) and node.final is not None:
        return True
    return any(map(_has_final, children(node)))
