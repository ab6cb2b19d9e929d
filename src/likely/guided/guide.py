"""Forms become constraints on one model's tokens; compiled ones are kept, a bounded number of them."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property

from likely.decoding.steer import Constraint
from likely.guided.form import Form
from likely.guided.llguidance_constraint import LLGuidance
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

    @cached_property
    def llguidance(self) -> LLGuidance:
        return LLGuidance(self.vocabulary)

    def _compile(self, form: Form) -> Constraint:
        return self.llguidance.compile(lark_of(form))


def lark_of(form: Form) -> str:
    """The form in llguidance's dialect of Lark."""
    if form.kind == "grammar":
        return form.source
    if form.kind == "regex":
        return f"start: TEXT\nTEXT: /{_in_slashes(form.source)}/"
    if form.kind == "choices":
        return "start: TEXT\nTEXT: " + " | ".join(json.dumps(c) for c in form.source)
    whitespace = {"compact": {"whitespace_flexible": False}}.get(form.settings.whitespace, {})
    return "start: %json " + json.dumps({**form.source, "x-guidance": whitespace})


def _in_slashes(pattern: str) -> str:
    """The pattern with every / escaped once."""
    return re.sub(r"(\\.)|/", lambda m: m.group(1) or r"\/", pattern, flags=re.DOTALL)
