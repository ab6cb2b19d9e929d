"""What a request says about the form of its text: OpenAI's response_format, the names that vLLM uses, and our own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from likely.errors import nearest
from likely.guided.form import FormSettings
from likely.serving.api.schemas import ChatRequest, GenerationRequest
from likely.serving.form_worker import FormDescription
from likely.serving.limits import ApiError

# field of the request -> option of generate; structured_outputs and response_format hold theirs inside
_FIELDS = {
    "regex": "regex",
    "choices": "choices",
    "grammar": "grammar",
    "guided_json": "schema",
    "guided_regex": "regex",
    "guided_choice": "choices",
    "guided_grammar": "grammar",
}
_STRUCTURED = {"json": "schema", "regex": "regex", "choice": "choices", "grammar": "grammar", "json_object": "schema"}
DEFAULT_BUDGET = 512  # tokens, for the trial of a form in a chat that names none
ANY_OBJECT: dict[str, Any] = {"type": "object"}


def form_of(asked: GenerationRequest) -> tuple[FormDescription | None, str]:
    """(the form that the request names, by which field); ApiError 400 in one line for two and for what is none."""
    named = _named_form(asked)
    choice = asked.calls_tools if isinstance(asked, ChatRequest) else None
    if choice is not None and isinstance(asked, ChatRequest):
        if named is not None and choice.mode == "auto":
            raise ApiError(400, f"a text has one form: drop {named[0]} or tools", param=named[0])
        if (
            named is not None
            and (told := f'"{named[0]}" has no effect where a call must be made') not in asked.warnings
        ):
            asked.warnings.append(told)
        functions = [each.function.model_dump() for each in asked.tools]
        budget = asked.max_tokens or DEFAULT_BUDGET
        return FormDescription("tools", functions, choice=choice, budget=budget), "tools"
    if named is None:
        return None, ""
    name, (option, value, settings) = named
    budget = asked.max_tokens or DEFAULT_BUDGET
    return FormDescription(option, value, settings.on_unsupported, budget=budget), name


def form_options(asked: GenerationRequest) -> dict[str, Any]:
    """The form as options of `generate`; empty without one."""
    calls = isinstance(asked, ChatRequest) and asked.calls_tools is not None  # which have a form of their own
    if calls or (named := _named_form(asked)) is None:
        return {}
    _, (option, value, settings) = named
    unsupported = {} if settings.on_unsupported == "error" else {"on_unsupported": settings.on_unsupported}
    return {option: value, **unsupported}


def _named_form(asked: GenerationRequest) -> tuple[str, tuple[str, Any, FormSettings]] | None:
    """(field of the request, (option of generate, its value, settings))"""
    found: dict[str, tuple[str, Any, FormSettings]] = {}
    for name, option in _FIELDS.items():
        if (value := getattr(asked, name)) is not None:
            found[name] = (option, value, FormSettings())
    for name, read in _NESTED.items():
        if (held := getattr(asked, name)) is not None and (inside := read(held)) is not None:
            found[name] = inside
    if not found:
        return None
    if len(found) > 1:
        raise ApiError(400, f"a text has one form, got {' and '.join(found)}: choose one", param=list(found)[1])
    ((name, (option, value, settings)),) = found.items()
    if option == "schema":
        value = _schema(value, name)
    return name, (option, value, settings)


def _response_format(held: Mapping[str, Any]) -> tuple[str, Any, FormSettings] | None:
    """{"type": "text" | "json_object" | "json_schema", "json_schema": {"name", "schema", "strict", "description"}}"""
    kind = held.get("type")
    _known(held, "response_format", ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "text":
        return None
    if kind == "json_object":
        return "schema", ANY_OBJECT, FormSettings()
    if kind != "json_schema":
        raise ApiError(
            400, f"response_format.type must be text, json_object or json_schema, got {str(kind)[:40]!r}",
            param="response_format",
        )  # fmt: skip
    inside = held.get("json_schema")
    if not isinstance(inside, Mapping) or inside.get("schema") is None:
        raise ApiError(400, 'response_format.json_schema must be an object with a "schema"', param="response_format")
    _known(inside, "response_format.json_schema", ("name", "schema", "strict", "description"))
    strict = inside.get("strict")
    if strict not in (None, True, False):
        raise ApiError(400, "response_format.json_schema.strict must be true or false", param="response_format")
    return "schema", inside["schema"], FormSettings(on_unsupported="ignore" if strict is False else "error")


def _structured_outputs(held: Mapping[str, Any]) -> tuple[str, Any, FormSettings] | None:
    """{"json": SCHEMA} or {"regex"}, {"choice"}, {"grammar"}, {"json_object": true}, as vLLM takes it."""
    given = {name: value for name, value in held.items() if value is not None and value is not False}
    _known(given, "structured_outputs", tuple(_STRUCTURED))
    if not given:
        return None
    if len(given) > 1:
        raise ApiError(
            400, f"structured_outputs: a text has one form, got {' and '.join(given)}", param="structured_outputs"
        )
    ((name, value),) = given.items()
    return _STRUCTURED[name], ANY_OBJECT if name == "json_object" else value, FormSettings()


_NESTED: dict[str, Callable[[Mapping[str, Any]], tuple[str, Any, FormSettings] | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
}


def _schema(value: Any, name: str) -> Any:
    """A schema as an object; some clients send it as a string of JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ApiError(400, f"{name}: the schema is no JSON", param=name) from None
    if not isinstance(value, (dict, bool)):
        raise ApiError(400, f"{name}: a JSON Schema is an object, got {type(value).__name__}", param=name)
    return value


def _known(held: Mapping[str, Any], name: str, known: tuple[str, ...]) -> None:
    for key in held:
        if key not in known:
            hint = nearest(str(key)[:100], known)
            raise ApiError(
                400, f'{name}: unknown field "{str(key)[:100]}"{hint} (known: {", ".join(known)})',
                param=name.partition(".")[0],
            )  # fmt: skip
