"""Prompts that ask for the arguments of a function as JSON, from the Berkeley function-calling cases (bfcl)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from likely.data import load_records

FILE = ("bfcl", "simple_python.jsonl.gz")
TYPES = {"dict": "object", "float": "number", "tuple": "array"}  # the source's words for JSON Schema's
KEPT = ("type", "description", "enum", "items", "properties", "required")


@dataclass(frozen=True)
class Case:
    """One question, the function that answers it, and the schema of its arguments."""

    question: str
    function: str
    schema: dict[str, Any]

    @property
    def prompt(self) -> str:
        return (
            f"{self.question}\n\nAnswer with the arguments of the function {self.function} as one JSON object that "
            f"follows this JSON Schema, and nothing else:\n{json.dumps(self.schema)}"
        )


def as_json_schema(found: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter in the source's words as a JSON Schema; remarks that are no keywords are dropped."""
    out: dict[str, Any] = {}
    for key in KEPT:
        if key not in found:
            continue
        value = found[key]
        if key == "type":
            if value != "any":
                out[key] = TYPES.get(value, value)
        elif key == "items":
            out[key] = as_json_schema(value)
        elif key == "properties":
            out[key] = {name: as_json_schema(part) for name, part in value.items()}
        elif not (key == "enum" and not value):
            out[key] = value
    if out.get("type") == "object":
        out["additionalProperties"] = False
    return out


def cases(count: int) -> list[Case]:
    """The first `count` cases whose function has at least one required argument."""
    found = []
    for row in load_records(*FILE):
        function = row["function"][0]
        schema = as_json_schema(function["parameters"])
        if schema.get("required") and schema.get("properties"):
            found.append(Case(row["question"][0][0]["content"], function["name"], schema))
        if len(found) == count:
            break
    return found


def follows(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether the whole text, blanks around it apart, is JSON of this schema."""
    from jsonschema import Draft202012Validator

    try:
        value = json.loads(text)
    except ValueError:
        return False
    return not any(True for _ in Draft202012Validator(schema).iter_errors(value))


def holds(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether the first JSON object that stands anywhere in the text follows the schema."""
    from jsonschema import Draft202012Validator

    for at in (i for i, c in enumerate(text) if c == "{"):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            continue
        return not any(True for _ in Draft202012Validator(schema).iter_errors(value))
    return False


def share(flags: Iterable[bool]) -> tuple[int, int]:
    """(how many are true, how many there are)"""
    found = list(flags)
    return sum(found), len(found)
