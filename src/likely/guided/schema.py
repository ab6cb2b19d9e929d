"""JSON Schemas, pydantic models and dataclasses as forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from likely.errors import ConstraintError
from likely.guided.form import Form, FormSettings


def schema_form(schema: Any, settings: FormSettings) -> Form:
    """The form of a JSON Schema, or of a Python type: its values are then objects of that type."""
    if isinstance(schema, (Mapping, bool)):
        return Form("schema", schema, settings, json.loads)
    try:
        adapter = TypeAdapter(schema)
        source = adapter.json_schema()
    except Exception as error:
        raise ConstraintError(
            f"schema must be a JSON Schema, a pydantic model, a dataclass or a type, got {schema!r} "
            f"({type(error).__name__})"
        ) from None
    return Form("schema", source, settings, adapter.validate_json)
