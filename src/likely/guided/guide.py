"""Forms become constraints on one model's tokens; compiled ones are kept, a bounded number of them."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property

from likely.decoding.constraint import Constraint
from likely.guided.engines.llguidance import LLGuidance, LLGuidanceConstraint
from likely.guided.engines.reference import Reference
from likely.guided.length_limit.constraint import LengthLimit, LengthLimiter
from likely.guided.settings import Form
from likely.guided.token_healing import TokenHealing
from likely.guided.vocabulary import Vocabulary

KEPT = 256  # compiled forms


@dataclass(eq=False)
class Guide:
    """The compiler of forms for one vocabulary."""

    vocabulary: Vocabulary
    _compiled: OrderedDict[str, Constraint] = field(default_factory=OrderedDict, repr=False)

    def constraint(self, form: Form) -> Constraint:
        """A constraint in its first state; compiled once per form."""
        key = form.key
        if key not in self._compiled:
            self._compiled[key] = self._compile(form)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key].fork()

    def forget(self) -> None:
        """Keep no compiled form."""
        self._compiled.clear()

    @cached_property
    def llguidance(self) -> LLGuidance:
        return LLGuidance(self.vocabulary)

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.vocabulary)

    @cached_property
    def limiter(self) -> LengthLimiter:
        return LengthLimiter(self.vocabulary, self.reference)

    def _compile(self, form: Form) -> Constraint:
        if form.settings.backend == "reference":
            constraint: Constraint = self.reference.compile(form)
        else:
            constraint = compile_form(form, self.llguidance)
        if form.settings.close_on_budget:
            return self.limiter.limit(constraint, form, lambda engine: compile_form(form, engine))
        return constraint

    def healed(self, rest: bytes, then: Constraint | None) -> Constraint:
        """First the bytes of the prompt that are generated again, then the form, if any, with its length limit."""
        if isinstance(then, LengthLimit):
            return then.after_prefix(rest, TokenHealing(self.vocabulary, rest, then.inner), self.limiter.tokenization)
        return TokenHealing(self.vocabulary, rest, then)


def compile_form(form: Form, engine: LLGuidance) -> LLGuidanceConstraint:
    """The form in llguidance."""
    if form.kind == "schema":
        return engine.compile_schema(form.source, form.settings)
    return engine.compile(lark_of(form))


def lark_of(form: Form) -> str:
    """The form in llguidance's dialect of Lark."""
    if form.kind == "grammar":
        return form.source
    if form.kind == "regex":
        return f"start: TEXT\nTEXT: /{_in_slashes(form.source)}/"
    if form.kind == "choices":
        return "start: TEXT\nTEXT: " + " | ".join(json.dumps(c) for c in form.source)
    raise ValueError(f"a {form.kind} is not written in Lark")


def _in_slashes(pattern: str) -> str:
    """The pattern with every / escaped once."""
    return re.sub(r"(\\.)|/", lambda m: m.group(1) or r"\/", pattern, flags=re.DOTALL)
