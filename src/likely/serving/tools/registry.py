"""Typed functions as tools: the schema of their arguments, checks before they run, and results as messages.

@tool
def get_weather(city: str, days: int = 1) -> str:
    "The weather of the next days."

box = Toolbox([get_weather])
reply = client.chat.completions.create(model="smollm2", messages=messages, tools=box.definitions)
messages += [reply.choices[0].message, *box.run(reply.choices[0].message.tool_calls)]
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from likely.errors import DataError, nearest

Effect = Literal["read", "write"]
ArgumentCheck = Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Tool:
    """A function with annotated arguments that a model may call.

    effect      "read": calling it changes nothing; "write": it does, so that a `Toolbox` may be told not to call it
    validators  (arguments) -> what is wrong with them, or None; they see what the types have accepted
    timeout_s   after which its caller goes on with an error; the function itself is not stopped
    """

    function: Callable[..., Any]
    name: str
    description: str
    effect: Effect = "read"
    validators: tuple[ArgumentCheck, ...] = ()
    timeout_s: float = 30.0

    @cached_property
    def arguments(self) -> type[BaseModel]:
        """A model of the arguments.  DataError for a function that cannot be called from JSON."""
        hints = get_type_hints(self.function, include_extras=True)
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise DataError(f"tool {self.name}: {parameter} cannot be given by name: spell the arguments out")
            if name not in hints:
                raise DataError(f"tool {self.name}: the argument {name} has no type: annotate it, as in {name}: str")
            fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        return create_model(f"{self.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)

    @cached_property
    def definition(self) -> dict[str, Any]:
        """As the field `tools` of a chat request lists it."""
        schema = self.arguments.model_json_schema()
        schema.pop("title", None)
        function = {"name": self.name, "description": self.description, "parameters": schema, "strict": True}
        return {"type": "function", "function": function}

    def call(self, arguments: str) -> Any:
        """The result for arguments as JSON; DataError in one line for those that it does not take."""
        try:
            checked = self.arguments.model_validate_json(arguments)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{self.name}: {f'{where}: ' if where else ''}{first['msg']}") from None
        given = {name: getattr(checked, name) for name in type(checked).model_fields}
        for validator in self.validators:
            if (wrong := validator(given)) is not None:
                raise DataError(f"{self.name}: {wrong}")
        return self.function(**given)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    effect: Effect = "read",
    validators: Sequence[ArgumentCheck] = (),
    timeout_s: float = 30.0,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    effect: Effect = "read",
    validators: Sequence[ArgumentCheck] = (),
    timeout_s: float = 30.0,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a typed function a `Tool`; its docstring tells the model what it does."""

    def make(function: Callable[..., Any]) -> Tool:
        about = inspect.getdoc(function) or ""
        made = Tool(function, name or function.__name__, about, effect, tuple(validators), timeout_s)
        made.definition  # noqa: B018 (a function that cannot be a tool is refused here)
        return made

    return make if function is None else make(function)


@dataclass
class Toolbox:
    """Tools by name.

    writes  whether tools that change something are called; False answers such a call with an error
    """

    tools: Sequence[Tool]
    writes: bool = True
    _by_name: dict[str, Tool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_name = {each.name: each for each in self.tools}
        if len(self._by_name) < len(self.tools):
            raise DataError(f"two tools have one name: {', '.join(each.name for each in self.tools)}")

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """For the field `tools` of a chat request."""
        return [each.definition for each in self.tools]

    def run(self, calls: Iterable[Any] | None) -> list[dict[str, Any]]:
        """A message with role "tool" per call, as the official client or JSON has calls.

        What a tool or a check refuses becomes {"error": ...} in the message: the model reads it and may do better.
        """
        return [self._answer(call) for call in calls or ()]

    def _answer(self, call: Any) -> dict[str, Any]:
        plain = call if isinstance(call, Mapping) else call.model_dump()
        function = plain["function"]
        content = self._result(function["name"], function["arguments"])
        return {"role": "tool", "tool_call_id": plain["id"], "content": content}

    def _result(self, name: str, arguments: str) -> str:
        found = self._by_name.get(name)
        if found is None:
            known = ", ".join(self._by_name)
            return _error(f'there is no tool "{name}"{nearest(name, self._by_name)} (there are: {known})')
        if found.effect == "write" and not self.writes:
            return _error(f"{name} changes something, which is not allowed here")
        pool = ThreadPoolExecutor(1, f"tool-{name}")
        try:
            result = pool.submit(found.call, arguments).result(timeout=found.timeout_s)
        except TimeoutError:
            return _error(f"{name} took more than {found.timeout_s:g} s")
        except Exception as error:
            return _error(str(error) or type(error).__name__)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(result, str):
            return result
        return TypeAdapter(Any).dump_json(result).decode()


def _error(message: str) -> str:
    return json.dumps({"error": " ".join(message.split())[:1000]}, ensure_ascii=False)
