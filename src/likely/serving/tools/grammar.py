"""What a model may write where tools are offered: text, calls with arguments that their schemas accept, or both.

A call is written as Hermes and Qwen write it, which many models have seen:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from likely.errors import DataError
from likely.guided.engines.llguidance import inline_schema
from likely.guided.json_schema.form import schema_form
from likely.guided.settings import Form, FormSettings

BEGIN, END = "<tool_call>", "</tool_call>"
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolChoice:
    """mode: "auto" the model decides, "required" it calls;  name: it calls this one;  parallel: several calls"""

    mode: Literal["auto", "required"] = "auto"
    name: str | None = None
    parallel: bool = True


def head_of(name: str) -> str:
    """What stands between <tool_call> and the arguments."""
    return '\n{"name": ' + json.dumps(name, ensure_ascii=False) + ', "arguments": '


TAIL = "}\n" + END


def tool_form(functions: Sequence[Mapping[str, Any]], choice: ToolChoice) -> Form:
    """The form of a reply; functions like {"name": ..., "parameters": JSON Schema of an object}."""
    offered = [f for f in functions if choice.name in (None, f["name"])]
    if not offered:
        raise DataError(f'tool_choice names "{choice.name}", which is none of the tools')
    calls, rules = [], []
    for i, function in enumerate(offered):
        parameters = function.get("parameters") or NO_PARAMETERS
        settings = FormSettings(on_unsupported="error" if function.get("strict") else "ignore")
        kind = parameters.get("type", "object")
        if kind != "object":
            raise DataError(
                f'tools: the parameters of "{function["name"]}" are an object, got type {json.dumps(kind)[:60]}'
            )
        if not {"$ref", "allOf", "anyOf", "oneOf"} & parameters.keys():
            parameters = {**parameters, "type": kind}
        try:
            form = schema_form(parameters, settings)
        except Exception as error:
            raise DataError(f'tools: the parameters of "{function["name"]}": {error}') from None
        calls.append(f"{_quoted(head_of(function['name']))} arguments_{i} {_quoted(TAIL)}")
        rules.append(f"arguments_{i}: {inline_schema(form.source, form.settings)}")
    more = f" ({_quoted(chr(10) + BEGIN)} call)*" if choice.parallel else ""
    if choice.mode == "required" or choice.name is not None:
        start = [f"start: {_quoted(BEGIN)} call{more}"]
    else:
        start = [
            f"start: TEXT? | before call{more}",
            f"before[lazy]: /(.|\\n)*{BEGIN}/",
            f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{BEGIN}(.|\\n)*/",
        ]
    return Form("grammar", "\n".join([*start, f"call: {' | '.join(calls)}", *rules]))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
