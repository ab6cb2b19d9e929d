"""Typed functions as tools: the schema of their arguments, and what is checked before and after they run.

@tool
def get_weather(city: str, days: int = 1) -> str:
    "The weather of the next days."
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from likely.errors import DataError
from likely.guided.json_schema.document import Document
from likely.guided.json_schema.errors import InvalidText
from likely.guided.json_schema.validator import Validator

Effect = Literal["pure", "read", "write"]
CallStage = Literal["parse", "schema", "references", "preconditions", "execute", "result"]
ArgumentCheck = Callable[[Mapping[str, Any]], str | None]
KEY = "idempotency_key"  # an argument of this name is filled with the key of the call, and no part of the schema


@dataclass(frozen=True)
class Observation:
    """What was wrong with a call, as its model reads it.

    stage  the first one that refused;  path: a JSON pointer into the arguments, "" for the whole
    """

    stage: CallStage
    path: str
    message: str

    def to_dict(self) -> dict[str, str]:
        return {"stage": self.stage, "path": self.path, "message": self.message}


class CallRefused(DataError):
    """A call that did not pass a stage; `observation` says which, where and why."""

    def __init__(self, name: str, stage: CallStage, message: str, path: str = ""):
        message = " ".join(message.split())[:1000]
        super().__init__(f"{name}: {path.lstrip('/').replace('/', '.')}{': ' * bool(path)}{message}")
        self.observation = Observation(stage, path, message)


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    effect         "pure": the same arguments give the same result, and nothing changes;  "read": nothing changes;
                   "write": something does
    references     (arguments) -> which of them names something that does not exist, or None; they see what the types
                   have accepted
    preconditions  (arguments) -> why the call may not be made now, or None
    timeout_s      after which its caller goes on with an error; the function itself is not stopped
    cost           of a call, in the unit of `routing.report.Prices`
    schema         of the arguments, where they are plain JSON; None: from the signature
    """

    function: Callable[..., Any]
    name: str
    description: str
    effect: Effect = "read"
    references: tuple[ArgumentCheck, ...] = ()
    preconditions: tuple[ArgumentCheck, ...] = ()
    timeout_s: float = 30.0
    cost: float = 0.0
    schema: Mapping[str, Any] | None = None

    @cached_property
    def takes_key(self) -> bool:
        return self.schema is None and KEY in inspect.signature(self.function).parameters

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return get_type_hints(self.function, include_extras=True)

    @cached_property
    def arguments(self) -> type[BaseModel]:
        """A model of the arguments.  DataError for a function that cannot be called from JSON."""
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise DataError(f"tool {self.name}: {parameter} cannot be given by name: spell the arguments out")
            if name == KEY:
                continue
            if name not in self._hints:
                raise DataError(f"tool {self.name}: the argument {name} has no type: annotate it, as in {name}: str")
            fields[name] = (self._hints[name], ... if parameter.default is parameter.empty else parameter.default)
        return create_model(f"{self.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)

    @cached_property
    def definition(self) -> dict[str, Any]:
        """As the field `tools` of a chat request lists it."""
        schema = dict(self.arguments.model_json_schema() if self.schema is None else self.schema)
        schema.pop("title", None)
        function = {"name": self.name, "description": self.description, "parameters": schema, "strict": True}
        return {"type": "function", "function": function}

    @cached_property
    def _validator(self) -> Validator:
        return Validator(Document.of(dict(self.schema or {})))

    def check(self, arguments: str) -> dict[str, Any]:
        """The arguments of a call as values, if every stage before the execution accepts them; else CallRefused.

        Nothing is converted silently, but a whole number where a float is wanted.
        """
        try:
            plain = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise CallRefused(self.name, "parse", f"the arguments are no JSON: {error}") from None
        if not isinstance(plain, dict):
            raise CallRefused(self.name, "parse", f"the arguments must be an object, got {type(plain).__name__}")
        given = self._typed(arguments) if self.schema is None else self._valid(plain)
        checks: tuple[tuple[CallStage, tuple[ArgumentCheck, ...]], ...]
        checks = (("references", self.references), ("preconditions", self.preconditions))
        for stage, each in checks:
            for check in each:
                try:
                    wrong = check(given)
                except Exception as error:  # what could not be checked was not accepted
                    wrong = f"it could not be checked: {error or type(error).__name__}"
                if wrong is not None:
                    raise CallRefused(self.name, stage, wrong)
        return given

    def _typed(self, arguments: str) -> dict[str, Any]:
        try:
            checked = self.arguments.model_validate_json(arguments, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise CallRefused(self.name, "schema", first["msg"], "".join(f"/{part}" for part in first["loc"])) from None
        return {name: getattr(checked, name) for name in type(checked).model_fields}

    def _valid(self, plain: dict[str, Any]) -> dict[str, Any]:
        try:
            found = self._validator.errors(plain)
        except InvalidText as error:
            found = list(error.errors)
        if found:
            place, _, message = found[0].partition(": ")
            raise CallRefused(self.name, "schema", message, place if place.startswith("/") else "")
        return plain

    def check_result(self, result: Any) -> None:
        """CallRefused for a result that is not of the type which the function states, or that JSON cannot hold."""
        stated = None if self.schema is not None else self._hints.get("return")
        try:
            if stated is not None:
                TypeAdapter(stated).validate_python(result)
            TypeAdapter(Any).dump_json(result)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"/{part}" for part in first["loc"])
            raise CallRefused(
                self.name, "result", f"the result is not what the tool promises: {first['msg']}", place
            ) from None
        except Exception as error:
            raise CallRefused(self.name, "result", f"the result cannot be written as JSON: {error}") from None

    def call(self, arguments: str, *, key: str = "") -> Any:
        """The result for arguments as JSON, in this thread; CallRefused for what a check refuses."""
        given = self.check(arguments)
        result = self.function(**given, **({KEY: key} if self.takes_key else {}))
        self.check_result(result)
        return result


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    effect: Effect = "read",
    references: Sequence[ArgumentCheck] = (),
    preconditions: Sequence[ArgumentCheck] = (),
    timeout_s: float = 30.0,
    cost: float = 0.0,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    effect: Effect = "read",
    references: Sequence[ArgumentCheck] = (),
    preconditions: Sequence[ArgumentCheck] = (),
    timeout_s: float = 30.0,
    cost: float = 0.0,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a typed function a `Tool`; its docstring tells the model what it does."""

    def make(function: Callable[..., Any]) -> Tool:
        about = inspect.getdoc(function) or ""
        made = Tool(
            function, name or function.__name__, about, effect, tuple(references), tuple(preconditions), timeout_s, cost
        )
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", made.name):
            raise DataError(f'a tool\'s name is up to 64 letters, digits, "_" and "-", got "{made.name[:80]}"')
        made.definition  # noqa: B018 (a function that cannot be a tool is refused here)
        return made

    return make if function is None else make(function)
