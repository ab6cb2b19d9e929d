"""JSON Schemas, pydantic models, dataclasses and other types as forms whose texts are guaranteed to follow them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from likely.errors import CapabilityError
from likely.guided.json_schema.document import Document
from likely.guided.json_schema.errors import InvalidSchema, InvalidText
from likely.guided.json_schema.formats import FORMATS
from likely.guided.json_schema.generation import is_bounded, unbounded
from likely.guided.json_schema.report import LLGUIDANCE, SchemaBackend, preflight
from likely.guided.json_schema.validator import Validator
from likely.guided.settings import Form, FormSettings

KEPT = 256  # forms of schemas
LARGEST_KEPT = 100_000  # characters of a schema


def schema_form(schema: Any, settings: FormSettings, backend: SchemaBackend = LLGUIDANCE) -> Form:
    """The form of a JSON Schema, or of a Python type: its values are then objects of that type.

    Its source is the schema to generate from; its `read` tries a finished text against the whole schema.
    UnsupportedSchema for a keyword that the backend does not enforce, unless `on_unsupported` says otherwise;
    InvalidSchema.
    """
    if settings.backend == "reference":
        raise CapabilityError('backend="reference" takes no schemas: use backend="llguidance"')
    if isinstance(schema, (Mapping, bool)):
        return _form_of(schema, settings, backend)
    source, read_type = _of_type(schema)
    form = _form_of(source, settings, backend, typed=True)
    return replace(form, read=_reader(form.read, read_type))


def _form_of(schema: Any, settings: FormSettings, backend: SchemaBackend, *, typed: bool = False) -> Form:
    try:  # equal for equal schemas with their properties in the same order
        text = json.dumps(schema if isinstance(schema, bool) else dict(schema))
    except (TypeError, ValueError, RecursionError):
        return _make(Document.of(schema), settings, backend, typed)  # says what is wrong
    make = _form_of_text if len(text) <= LARGEST_KEPT else _form_of_text.__wrapped__
    return make(text, settings, backend, typed)


@lru_cache(maxsize=KEPT)
def _form_of_text(text: str, settings: FormSettings, backend: SchemaBackend, typed: bool) -> Form:
    return _make(Document.of(json.loads(text)), settings, backend, typed)


def _make(document: Document, settings: FormSettings, backend: SchemaBackend, typed: bool) -> Form:
    """typed  a Python type reads every text besides, so that what our own check does not know needs no word"""
    validator = Validator(document)
    report, generation = preflight(document, validator, settings, backend)
    refusals = [r for r in report.refused if r.checkable or not typed]
    for refused in refusals:
        if settings.on_unsupported == "error" or (settings.on_unsupported == "validate" and not refused.checkable):
            raise refused.error()
    read: Callable[[str], Any] = validator.read
    if settings.on_unsupported == "ignore":
        warnings = [f'not enforced: "{r.keyword}" at {r.pointer or "the top"}' for r in refusals]
        if report.refused:
            weaker = backend.generation(document, validator, unbounded(settings), generation.dropped)
            read = Validator(Document.of(weaker.schema())).read
    else:
        unknown = [r for r in refusals if not r.checkable]
        warnings = [f'not checked: "{r.keyword}" at {r.pointer or "the top"} ({r.reason})' for r in unknown]
    for pointer in document.reachable:
        node = document.at(pointer)
        if isinstance(node, dict) and node.get("format", "date") not in FORMATS:
            warnings.append(f'not checked: the format "{node["format"]}" at {pointer or "the top"} is not known')
    if is_bounded(settings) and not generation.deep:
        warnings.append("the bounds do not hold inside values that the schema says nothing about")
    return Form("schema", generation.schema(), settings, read, tuple(warnings))


# --- Python types -----------------------------------------------------------------------------------------------------


def _of_type(kind: Any) -> tuple[Any, Callable[[str], Any]]:
    try:
        return _adapted(kind)
    except TypeError:  # not hashable
        return _adapted.__wrapped__(kind)


class _TypeSchema(GenerateJsonSchema):
    """Sets may hold a value twice in the text: the type drops it, unless that could leave too few."""

    def _set(self, schema: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in found.items() if k != "uniqueItems" or (schema.get("min_length") or 0) > 1}

    def set_schema(self, schema: Any) -> dict[str, Any]:
        return self._set(schema, super().set_schema(schema))

    def frozenset_schema(self, schema: Any) -> dict[str, Any]:
        return self._set(schema, super().frozenset_schema(schema))


@lru_cache(maxsize=KEPT)
def _adapted(kind: Any) -> tuple[Any, Callable[[str], Any]]:
    if isinstance(kind, (str, bytes, int, float, list, tuple, set)):
        raise InvalidSchema("", f"a schema is an object, a boolean or a type, got {kind!r:.60}")
    try:
        adapter = TypeAdapter(kind)
        source = adapter.json_schema(schema_generator=_TypeSchema)
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else ""
        raise InvalidSchema(
            "", f"{kind!r:.80} has none that pydantic can write ({type(error).__name__}: {reason})"
        ) from None
    return source, adapter.validate_json


def _reader(read: Callable[[str], Any], read_type: Callable[[str], Any]) -> Callable[[str], Any]:
    """First the schema, then what the type says beyond it."""

    def both(text: str) -> Any:
        read(text)
        try:
            return read_type(text)
        except ValidationError as error:
            raise InvalidText(
                [f"/{'/'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5]]
            ) from None
        except Exception as error:  # a validator of the user's own that failed otherwise
            raise InvalidText([f"{type(error).__name__}: {error}"]) from None

    return both
