"""What may be asked: every field typed and bounded, unknown ones refused with the nearest name."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from likely.calibration.threshold import DELTA
from likely.decoding.drafting.table import drafter_names
from likely.decoding.options import OPTIONS
from likely.errors import nearest
from likely.serving.limits import (
    MAX_ANSWERS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_N,
    MAX_PROMPTS,
    MAX_STOP_CHARS,
    MAX_STOPS,
    ApiError,
)

StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]

# Fields of OpenAI's API that this server does not have, with the values that ask for nothing (None always does).
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
    "prediction": (),
    "audio": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
DRAFTERS_FOR_CLIENTS = (*drafter_names(lambda entry: entry.for_clients), "none")
IGNORED = ("user", "safety_identifier", "prompt_cache_key")  # labels for the operator; they change nothing


def _option(name: str, **narrower: Any) -> Any:
    """A field with default, bounds and description of this option; `narrower`: what this server says otherwise."""
    option = OPTIONS[name]
    bounds = {"gt" if option.positive else "ge": option.low, "le": option.high}
    return Field(**{"default": option.default, "description": option.help, **bounds, **narrower})


DraftBudget = Annotated[int, Field(ge=OPTIONS["draft_budget"].low, le=OPTIONS["draft_budget"].high)]


class RequestBody(BaseModel):
    """A request body; a field that is null counts as not given."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    model: Annotated[str, Field(max_length=4096)] | None = None


def _drafter_for_clients(name: str) -> str:
    if name not in DRAFTERS_FOR_CLIENTS:
        raise ValueError(f'one of {", ".join(DRAFTERS_FOR_CLIENTS)}, got "{name[:40]}"')
    return name


DrafterName = Annotated[
    str, AfterValidator(_drafter_for_clients), Field(json_schema_extra={"enum": list(DRAFTERS_FOR_CLIENTS)})
]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers; none is sent


class GenerationRequest(RequestBody):
    """How to continue; the names are OpenAI's, with the extensions top_k, min_p, stop_repetition, drafter,
    draft_budget.

    At most one of the fields from response_format to guided_grammar says what the text must look like
    (`serving.forms`).
    """

    n: int = _option("n", le=MAX_N)
    max_tokens: int | None = Field(None, ge=0, le=2**20)
    stop: StopText | list[StopText] = []
    stop_repetition: bool = False
    seed: int | None = _option("seed", default=None, le=2**63 - 1)  # None: a fresh one
    temperature: float = _option("temperature")
    top_p: float = _option("top_p")
    top_k: int = _option("top_k")
    min_p: float = _option("min_p")
    presence_penalty: float = _option("presence_penalty", ge=-2, le=2)
    frequency_penalty: float = _option("frequency_penalty", ge=-2, le=2)
    logit_bias: dict[int, float] = Field({}, max_length=MAX_BIASES)
    drafter: DrafterName | None = None  # None: the server's own
    draft_budget: DraftBudget | Literal["auto"] = "auto"
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    regex: str | None = None
    choices: list[str] | None = None
    grammar: str | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str]) -> list[str]:
        found = [value] if isinstance(value, str) else value
        if len(found) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} strings, got {len(found)}")
        return found

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _token_ids(cls, value: Any) -> Any:
        """JSON keys are strings; here they are token ids."""
        if not isinstance(value, dict):
            return value
        if len(value) > MAX_BIASES:
            raise ValueError(f"at most {MAX_BIASES} tokens, got {len(value)}")
        for key, bias in value.items():
            if not re.fullmatch(r"\d{1,9}", str(key), re.ASCII):
                raise ValueError(f"keys are token ids, got {str(key)[:40]!r}")
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
                raise ValueError(f"values lie in [-100, 100], got {str(bias)[:40]}")
        return {int(key): float(bias) for key, bias in value.items()}

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    max_tokens: int = Field(16, ge=0, le=2**20)

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1 without echo, got 0")
        return self

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=2**20)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**20)
    stop_repetition: bool = True
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    # beyond OpenAI's, where a calibrator was fitted: how likely each answer is right, and what follows from it
    confidence: bool = False
    at_least: float | None = Field(None, gt=0, lt=1)
    risk: float | None = Field(None, gt=0, lt=1)
    delta: float = Field(DELTA, gt=0, lt=1)
    fallback: Annotated[str, Field(max_length=4096)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
            self.max_tokens = self.max_completion_tokens
        return self

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages with plain text contents, as chat templates take them."""
        return [_plain_message(i, message) for i, message in enumerate(self.messages)]


class ScoreRequest(RequestBody):
    """POST /v1/score: log p(answer | prompt) of each answer."""

    prompt: str
    answers: list[str] = Field(min_length=1, max_length=MAX_ANSWERS)
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    entropy: bool = False


def _plain_message(i: int, message: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in message.items() if value is not None and value != []}
    if found.get("role") == "developer":  # OpenAI's newer name of it
        found["role"] = "system"
    content = found.get("content")
    if isinstance(content, list):
        for part in content:
            if not (isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"):
                raise ApiError(
                    400, f'messages[{i}].content may only hold parts {{"type": "text", "text": ...}}', param="messages"
                )
            if not isinstance(part["text"], str):
                raise ApiError(400, f"messages[{i}].content: text must be a string", param="messages")
        found["content"] = "".join(part["text"] for part in content)
    elif content is None and message.get("content") == []:
        found["content"] = ""
    return found


def served_name(name: str) -> str:
    """The model's public name: a file or folder without the path to it."""
    path = PurePath(name)
    return path.name.removesuffix(".gguf") if path.is_absolute() or path.suffix == ".gguf" else name


A = TypeVar("A", bound=RequestBody)


def parse(schema: type[A], body: dict[str, Any]) -> A:
    """A checked request, or ApiError 400 in one line."""
    given: dict[str, Any] = {}
    for name, value in body.items():
        if name in schema.model_fields:
            if value is not None:
                given[name] = value
        elif name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                raise ApiError(400, f'"{name}" is not supported by this server: leave it out', param=name)
        elif name not in IGNORED:
            hint = nearest(name[:100], schema.model_fields)
            known = ", ".join(sorted(schema.model_fields))
            raise ApiError(400, f'unknown field "{name[:100]}"{hint} (known: {known})', param=name[:100])
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    place = [p for p in first["loc"] if isinstance(p, int) or re.fullmatch(r"[a-z_]+", str(p))]
    place = [p for p in place if p not in ("str", "list", "constrained")]
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] == "missing":
        return ApiError(400, f'field "{name}" is missing', param=name)
    if not name:
        return ApiError(400, message)
    value = repr(first["input"]) if not isinstance(first["input"], (dict, list)) else type(first["input"]).__name__
    value = value if len(value) <= 40 else value[:37] + "..."
    return ApiError(400, f"{name}: {message}, got {value}", param=str(place[0]))
