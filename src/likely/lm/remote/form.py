"""A form that is asked of a server: what is sent, and whether the answer has it.

A server may ignore what it does not know, so every answer is checked here.  One without the form has no value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from likely.errors import CapabilityError, RemoteError
from likely.lm.options import FORM_SETTINGS, FORMS

if TYPE_CHECKING:
    from likely.guided.form import Form

_REFUSES = ("unknown", "unexpected", "unrecognized", "extra", "not supported", "unsupported", "not permitted")


@dataclass(frozen=True)
class RemoteForm:
    """form: reads and checks answers;  body: the fields of the request."""

    form: Form
    body: dict[str, Any]

    def judge(self, text: str) -> dict[str, Any]:
        """value, complete and warnings of a Generation."""
        try:
            value = self.form.read(text) if self.form.kind == "schema" else _member(self.form, text)
        except ValueError as error:  # InvalidText among them
            return {"value": None, "complete": False, "warnings": (f"the server's answer has another form: {error}",)}
        return {"value": value, "complete": True, "warnings": self.form.warnings}

    def refusal(self, error: RemoteError) -> CapabilityError | None:
        """What a refused request means, if it says that the server has no such thing."""
        field = next(iter(self.body))
        said = str(error).lower()
        if error.status in (400, 404, 422, 501) and field in said and any(word in said for word in _REFUSES):
            return CapabilityError(
                f"This server does not hold texts to a {self.form.kind}: {error}. Load the model locally."
            )
        return None


def take_form(options: Mapping[str, Any]) -> tuple[RemoteForm | None, dict[str, Any]]:
    """(the form that the options name, the other options)."""
    from likely.guided.form import FormSettings, make_form

    rest = {name: value for name, value in options.items() if name not in FORMS}
    given = {name: options[name] for name in FORMS if options.get(name) is not None}
    for name, setting in FORM_SETTINGS.items():
        if name in rest and rest.pop(name) != setting.default:
            raise CapabilityError(f"a server holds a form in its own way: drop {name}=, or load the model locally")
    if not given:
        return None, rest
    # the server decides what it can enforce; all of the schema is checked here
    form = make_form(**given, settings=FormSettings(on_unsupported="validate"))
    return RemoteForm(form, _body(form, given.get("schema"))), rest


def _body(form: Form, schema: Any) -> dict[str, Any]:
    """The fields that ask for it: OpenAI's for a schema, vLLM's for the others."""
    if form.kind == "schema":
        if not isinstance(schema, (Mapping, bool)):
            from pydantic import TypeAdapter

            schema = TypeAdapter(schema).json_schema()
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            }
        }
    name = "choice" if form.kind == "choices" else form.kind
    return {"structured_outputs": {name: list(form.source) if form.kind == "choices" else form.source}}


def _member(form: Form, text: str) -> str:
    """The text, if it is a whole member of the form's language; ValueError."""
    from likely.guided.guide import Guide
    from likely.guided.vocabulary import Vocabulary

    end = 256
    vocabulary = Vocabulary(
        (*(bytes([b]) for b in range(256)), b""), frozenset({end}), end, lambda written: list(written.encode())
    )
    state = Guide(vocabulary).constraint(form)
    for byte in text.encode():
        if not state.permits(byte):
            break
        state.advance(byte)
    else:
        if state.accepting:
            return text
    shown = json.dumps(text[:80], ensure_ascii=False)
    raise ValueError(f"{shown} does not follow the {form.kind}")
