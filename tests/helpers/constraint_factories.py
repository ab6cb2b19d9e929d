"""One factory per constraint under test: name -> a function of a vocabulary that gives a constraint in its first state.

The vocabulary is `guided.small_vocabularies.all_bytes()`: every byte, longer tokens, duplicates, two end tokens, ids
without text.  A factory skips where an optional package is missing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from likely.decoding.constraint import Constraint
from likely.guided.form import make_form
from likely.guided.settings import FormSettings
from likely.guided.vocabulary import Vocabulary

Factory = Callable[[Vocabulary], Constraint]

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a"],
    "additionalProperties": False,
}
GRAMMAR = 'start: "(" start* ")" | /[a-z]+/'


def form(backend: str = "llguidance", **options) -> Factory:
    """A form as `generate` holds it, without closing."""
    settings = FormSettings(backend=backend, close_on_budget=options.pop("close_on_budget", False))  # type: ignore[arg-type]

    def build(vocabulary: Vocabulary) -> Constraint:
        if backend == "llguidance":
            pytest.importorskip("llguidance")
        from likely.guided.guide import Guide

        return Guide(vocabulary).constraint(make_form(**options, settings=settings))

    return build


def reference(**options) -> Factory:
    return form("reference", **options)


def both(vocabulary: Vocabulary) -> Constraint:
    from likely.guided.combinators import AllOf

    return AllOf(reference(regex=r"[a-c]{1,6}")(vocabulary), reference(regex=r"(ab|c)*")(vocabulary))


def either(vocabulary: Vocabulary) -> Constraint:
    from likely.guided.combinators import AnyOf

    return AnyOf(reference(regex=r"a[0-9]{1,3}")(vocabulary), reference(choices=["abc", "ab", "a1"])(vocabulary))


def in_turn(vocabulary: Vocabulary) -> Constraint:
    from likely.guided.combinators import InOrder

    parts = reference(regex=r"[ab]{1,3}")(vocabulary), reference(regex=r"b*c")(vocabulary)
    return InOrder(parts, vocabulary)


def nested(vocabulary: Vocabulary) -> Constraint:
    from likely.guided.combinators import AllOf, AnyOf, InOrder

    first = AnyOf(reference(choices=["yes", "no"])(vocabulary), reference(regex="[0-9]+")(vocabulary))
    then = AllOf(reference(regex=r"[^\"]*")(vocabulary), reference(regex=r"( not| a)*!")(vocabulary))
    return InOrder((first, then), vocabulary)


def healing(then: Factory | None, rest: bytes) -> Factory:
    def build(vocabulary: Vocabulary) -> Constraint:
        from likely.guided.guide import Guide

        return Guide(vocabulary).healed(rest, then(vocabulary) if then else None)

    return build


def monitor(across: str, prefix: str) -> Factory:
    def build(vocabulary: Vocabulary) -> Constraint:
        from fixed_members import FixedMembers

        from likely.code.analysis.members import Analyses
        from likely.code.buffer import CodeBuffer
        from likely.code.monitors.monitor import MonitorConstraint
        from likely.code.monitors.triggers import DereferenceMonitor

        provider = FixedMembers({"x": ["no", "not", "né"], "no": ["a"], "é": ["b"]})
        state = MonitorConstraint([DereferenceMonitor(Analyses(provider), across)], vocabulary, CodeBuffer("", prefix))
        state.ready(wait=True)
        return state

    return build


def spans(vocabulary: Vocabulary) -> Constraint:
    from likely.alignment.labelling.codec import SpanCodec
    from likely.alignment.labelling.constraint import SpanAutomaton, SpanConstraint

    return SpanConstraint(SpanAutomaton(SpanCodec(["a", "not"]), ["ab", "12:3", "\u00e9b"], " "), vocabulary)


FACTORIES: dict[str, Factory] = {
    "llguidance schema": form(schema=SCHEMA),
    "llguidance regex": form(regex=r"[a-c]+(12|20)?"),
    "llguidance grammar": form(grammar=GRAMMAR),
    "llguidance choices": form(choices=["no", "not", "maybe not"]),
    "reference regex": reference(regex=r"[a-c]+(12|20)?"),
    "reference choices": reference(choices=["no", "not", "maybe not"]),
    "reference text": reference(regex=r".*"),
    "and": both,
    "or": either,
    "sequence": in_turn,
    "nested": nested,
    "closing schema": form(schema=SCHEMA, close_on_budget=True),
    "closing regex": form(regex=r"[a-c]+(12|20)?", close_on_budget=True),
    "closing grammar": form(grammar=GRAMMAR, close_on_budget=True),
    "healing, then a regex": healing(reference(regex=r"[a-c]+(12|20)?"), b"ht"),
    "healing, then closing": healing(form(choices=["bc", "b"], close_on_budget=True), b"a"),
    "spans of a sentence": spans,
    "monitor, split": monitor("split", "x."),
    "monitor, allow": monitor("allow", "(x."),
}
