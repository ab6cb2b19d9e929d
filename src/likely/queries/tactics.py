"""What stands behind the colon of a hole: a type, a pattern, or another query; and how text becomes its value."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from likely.errors import ConstraintError
from likely.guided.form import make_form
from likely.guided.settings import Form, check_choices
from likely.queries.where.nodes import FLOAT, INT, THIS, TRUE, Call, Hole, In, Matches, Node


@dataclass(frozen=True)
class Tactic:
    """What a type asks of the text.

    node   a condition on THIS, for what is regular;  form: else, for a schema
    read   text -> value;  shown: for messages
    """

    node: Node | None
    form: Form | None
    read: Callable[[str], Any]
    shown: str

    def rest(self, hole: Hole) -> Node:
        """As a condition on a finished text, for what ends the hole before its constraint does."""
        if self.form is None:
            return TRUE
        return Call(f"whole {self.shown}", self._reads, (hole,))

    def _reads(self, text: str) -> bool:
        try:
            self.read(text)
        except ValueError:
            return False
        return True


FREE = Tactic(None, None, str, "str")


def tactic_of(kind: Any) -> Tactic:
    """int, float, bool, str, Literal of texts or numbers, a regular expression, or whatever pydantic understands."""
    if kind is None or kind is str:
        return FREE
    if kind is int:
        return Tactic(Matches(THIS, INT), None, int, "int")
    if kind is float:
        return Tactic(Matches(THIS, FLOAT), None, float, "float")
    if kind is bool:
        return Tactic(In(THIS, ("True", "False")), None, lambda text: text == "True", "bool")
    if isinstance(kind, str):
        return Tactic(Matches(THIS, kind), None, str, f"text like {kind}")
    if typing.get_origin(kind) is Literal:
        values = {str(v): v for v in typing.get_args(kind)}
        texts = check_choices(list(values))
        return Tactic(In(THIS, tuple(texts)), None, values.__getitem__, f"one of {', '.join(texts)}")
    if isinstance(kind, type | types.GenericAlias | types.UnionType) or typing.get_origin(kind) is not None:
        form = make_form(schema=kind)
        return Tactic(None, form, form.read, getattr(kind, "__name__", str(kind)))
    raise ConstraintError(
        f"a hole's type must be int, float, bool, str, Literal[...], a pydantic model, a dataclass, a regular "
        f"expression or a query, got {kind!r}"
    )
