"""What a text must look like, as a user says it: a schema, a regular expression, a grammar or a list of choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from likely.errors import ConstraintError
from likely.guided.settings import FORM_OPTIONS, Form, FormSettings, check_choices


def make_form(
    *,
    schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    settings: FormSettings | None = None,
) -> Form:
    """The form that exactly one of the four arguments names.

    schema   a JSON Schema (mapping, True), a pydantic model, a dataclass, or any type pydantic understands
    regex    the whole text matches it (Rust's regex syntax: no look-around, no back-references)
    grammar  in Lark notation, its start rule named "start"
    choices  the text is one of them
    """
    settings = settings or FormSettings()
    given = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"give exactly one of {', '.join(FORM_OPTIONS)}; got {', '.join(named) or 'none'}")
    if schema is not None:
        from likely.guided.json_schema.form import schema_form

        return schema_form(schema, settings)
    if regex is not None:
        if not isinstance(regex, str):
            raise ValueError(f"regex must be a string, got {type(regex).__name__}")
        return Form("regex", regex, settings)
    if grammar is not None:
        if not (isinstance(grammar, str) and grammar.strip()):
            raise ConstraintError("the grammar is empty: it needs at least a rule named start")
        return Form("grammar", grammar, settings)
    assert choices is not None
    return Form("choices", tuple(check_choices(choices)), settings)
