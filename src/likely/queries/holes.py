"""One hole: its type, what decides it, and the event that records it."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from likely.errors import ConstraintError
from likely.guided.form import make_form
from likely.guided.settings import Form, check_choices
from likely.queries.session import Decoded
from likely.queries.trace import QueryEvent
from likely.queries.where.constraint import CompiledClause
from likely.queries.where.nodes import FLOAT, INT, THIS, TRUE, FunctionCall, Hole, In, Matches, Node


@dataclass(frozen=True)
class HoleType:
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
        return FunctionCall(f"whole {self.shown}", self._reads, (hole,))

    def _reads(self, text: str) -> bool:
        try:
            self.read(text)
        except ValueError:
            return False
        return True


FREE = HoleType(None, None, str, "str")


def hole_type(kind: Any) -> HoleType:
    """int, float, bool, str, Literal of texts or numbers, a regular expression, or whatever pydantic understands."""
    if kind is None or kind is str:
        return FREE
    if kind is int:
        return HoleType(Matches(THIS, INT), None, int, "int")
    if kind is float:
        return HoleType(Matches(THIS, FLOAT), None, float, "float")
    if kind is bool:
        return HoleType(In(THIS, ("True", "False")), None, lambda text: text == "True", "bool")
    if isinstance(kind, str):
        return HoleType(Matches(THIS, kind), None, str, f"text like {kind}")
    if typing.get_origin(kind) is Literal:
        values = {str(v): v for v in typing.get_args(kind)}
        texts = check_choices(list(values))
        return HoleType(In(THIS, tuple(texts)), None, values.__getitem__, f"one of {', '.join(texts)}")
    if isinstance(kind, type | types.GenericAlias | types.UnionType) or typing.get_origin(kind) is not None:
        form = make_form(schema=kind)
        return HoleType(None, form, form.read, getattr(kind, "__name__", str(kind)))
    raise ConstraintError(
        f"a hole's type must be int, float, bool, str, Literal[...], a pydantic model, a dataclass, a regular "
        f"expression or a query, got {kind!r}"
    )


@dataclass(frozen=True)
class Pending:
    """A hole that is about to be decoded."""

    name: str
    type: HoleType
    compiled: CompiledClause
    where: str
    prompt: tuple[int, ...]
    max_tokens: int


class Undecided(BaseException):
    """Unwinds a program at its first hole without a value; decoders that branch catch it."""

    def __init__(self, pending: Pending):
        super().__init__(pending.name)
        self.pending = pending


def hole_event(pending: Pending, decoded: Decoded) -> QueryEvent:
    value: Any = decoded.text
    if decoded.complete is not False and pending.type.shown != "str":
        value = plain(pending.type.read(decoded.text))
    return QueryEvent(
        "hole", text=decoded.text, name=pending.name, value=value, prompt=pending.prompt, tokens=tuple(decoded.tokens),
        logprobs=tuple(decoded.logprobs), log_masses=tuple(decoded.log_masses), reason=decoded.reason,
        where=pending.where, complete=decoded.complete, approximate=decoded.approximate, written=decoded.written,
    )  # fmt: skip


def plain(value: Any) -> Any:
    """The value as JSON can hold it; objects as pydantic writes them, anything else by its repr."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    try:
        from pydantic import TypeAdapter

        return TypeAdapter(type(value)).dump_python(value, mode="json")
    except Exception:
        return repr(value)
