"""Calls as plain JSON for any model: one schema gives the prompt, the form, and the check."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from likely.serving.tools.grammar import BEGIN, NO_PARAMETERS

MOST_STARTS = 64


def call_schema(functions: Sequence[Mapping[str, Any]], *, several: bool = False) -> dict[str, Any]:
    """The JSON Schema of {"name", "arguments"} for one of the functions; several: of a list of such calls."""
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


def placeholder_of(schema: Mapping[str, Any]) -> str:
    """The form of a value that the schema describes, as JSON with <types> in the place of values.

    Values themselves would be copied: small models do.
    """
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    kind = schema.get("type", "value")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object" and schema.get("properties"):
        listed, required = schema["properties"], schema.get("required", ())
        return "{" + ", ".join(f"{json.dumps(n)}: {placeholder_of(listed[n])}" for n in required if n in listed) + "}"
    if kind == "array":
        items = schema.get("items")
        return f"[{placeholder_of(items) if isinstance(items, Mapping) else '<value>'}]"
    return f'"<{kind}>"' if kind == "string" else f"<{kind}>"


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
    """What a model is asked: the functions, the request, the form of a call (of the first function)."""
    first = functions[0]
    arguments = placeholder_of({"type": "object", "properties": {}, **(first.get("parameters") or NO_PARAMETERS)})
    arguments = "{}" if arguments == "<object>" else arguments
    form = f'{{"name": {json.dumps(first["name"], ensure_ascii=False)}, "arguments": {arguments}}}'
    what = "a JSON list of the calls that it needs" if several else "the one call that it needs as JSON"
    return (
        "Functions:\n" + "\n\n".join(map(signature_of, functions)) + f"\n\nRequest: {question}\n\n"
        f"Answer the request with {what}, in this form, and nothing else:\n{f'[{form}]' if several else form}"
    )


def read_calls(text: str) -> list[tuple[str, str]] | None:
    """The calls (name, arguments as JSON) of the first JSON value in the text that is a call or a list of calls.

    Words and fences around it are passed over, `MOST_STARTS` brackets that begin something else at most.
    None where there is none: the text holds no call.
    """
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"[\[{]", text), MOST_STARTS):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        calls = value if isinstance(value, list) else [value]
        if calls and all(_is_call(call) for call in calls):
            return [(call["name"], json.dumps(call.get("arguments", {}), ensure_ascii=False)) for call in calls]
    return None


def read_free_calls(text: str) -> list[tuple[str, str]]:
    """The calls of a reply that no grammar held: those of each <tool_call> block, else what `read_calls` finds."""
    _, *blocks = text.split(BEGIN)
    return [call for block in blocks or [text] for call in read_calls(block) or ()]


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def repair_prompt(prompt: str, answer: str, problems: Sequence[str]) -> str:
    """The same question once more, with the answer that was refused and why."""
    listed = "\n".join(f"- {problem}" for problem in problems)
    return f"{prompt}\n\nThis answer was refused:\n{answer[:1000]}\nbecause:\n{listed}\nGive the corrected answer."
