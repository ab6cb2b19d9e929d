"""Calls as plain JSON for any model: one schema gives the prompt, an example in it, the form, and the check."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from likely.serving.tools.grammar import NO_PARAMETERS

EXAMPLES = {"string": "text", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}


def call_schema(functions: Sequence[Mapping[str, Any]], *, several: bool = False) -> dict[str, Any]:
    """The JSON Schema of {"name", "arguments"} for one of the functions; several: of a list of one such call or more."""
    kinds = [
        {
            "type": "object",
            "properties": {"name": {"const": f["name"]}, "arguments": f.get("parameters") or NO_PARAMETERS},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for f in functions
    ]
    one = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {"type": "array", "items": one, "minItems": 1, "maxItems": 8} if several else one


def example_of(schema: Mapping[str, Any]) -> Any:
    """A value that the schema describes: the first choice, what is required, a word or number for the rest."""
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if schema.get("enum"):
        return schema["enum"][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            return example_of(schema[word][0])
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        listed, required = schema.get("properties", {}), schema.get("required", ())
        return {name: example_of(listed[name]) for name in required if name in listed}
    if kind == "array":
        items = schema.get("items")
        return [example_of(items)] if isinstance(items, Mapping) and items else []
    return EXAMPLES.get(kind, "text")


def signature_of(function: Mapping[str, Any]) -> str:
    """A function in few words: its name, its arguments with types and descriptions, optional ones marked."""
    parameters = function.get("parameters") or NO_PARAMETERS
    required = parameters.get("required", ())
    lines = [f"{function['name']}: {function.get('description', '')}".rstrip(": ")]
    for name, part in parameters.get("properties", {}).items():
        optional = "" if name in required else ", optional"
        lines.append(f"- {name} ({_type_of(part)}{optional}): {part.get('description', '')}".rstrip(": "))
    return "\n".join(lines)


def _type_of(part: Mapping[str, Any]) -> str:
    if part.get("enum"):
        return "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in part["enum"])
    kind = part.get("type", "anything")
    items = part.get("items")
    return f"array of {_type_of(items)}" if kind == "array" and isinstance(items, Mapping) else str(kind)


def call_prompt(question: str, functions: Sequence[Mapping[str, Any]], *, several: bool = False) -> str:
    """What a model is asked: the functions, an example of a call, and the question."""
    first = functions[0]
    example: Any = {"name": first["name"], "arguments": example_of(first.get("parameters") or NO_PARAMETERS)}
    shown = json.dumps([example] if several else example, ensure_ascii=False)
    what = "a JSON list of the calls that are needed" if several else "the one call that is needed as JSON"
    return (
        "Functions:\n" + "\n\n".join(map(signature_of, functions)) + f"\n\nAnswer with {what}, and nothing else. "
        f"The form of an answer, with values to be replaced:\n{shown}\n\nRequest: {question}"
    )


def read_calls(text: str) -> list[tuple[str, str]] | None:
    """The calls (name, arguments as JSON) of the first JSON value in the text that is a call or a list of calls.

    Words and fences around it are passed over.  None where there is none: the text holds no call.
    """
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        calls = value if isinstance(value, list) else [value]
        if calls and all(_is_call(call) for call in calls):
            return [(call["name"], json.dumps(call.get("arguments", {}), ensure_ascii=False)) for call in calls]
    return None


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def repair_prompt(prompt: str, answer: str, problems: Sequence[str]) -> str:
    """The same question once more, with the answer that was refused and why."""
    listed = "\n".join(f"- {problem}" for problem in problems)
    return f"{prompt}\n\nThis answer was refused:\n{answer[:1000]}\nbecause:\n{listed}\nGive the corrected answer."
