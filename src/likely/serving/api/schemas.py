"""What may be asked: every field typed and bounded; what is not known or has no effect is told of in the reply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from likely.calibration.threshold import DELTA
from likely.decoding.drafting.table import drafter_names
from likely.decoding.options import OPTIONS
from likely.errors import DataError, nearest
from likely.serving.limits import (
    MAX_ANSWERS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_N,
    MAX_PROMPTS,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TOOLS,
    ApiError,
)
from likely.serving.tools.grammar import NO_PARAMETERS, ToolChoice
from likely.serving.tools.transcript import with_tools

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]

# Fields of OpenAI's API that this server does not have, with the values that ask for nothing (None always does).
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "audio": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "prompt_embeds": (),
    "logits_processors": ([],),
}
DRAFTERS_FOR_CLIENTS = (*drafter_names(lambda entry: entry.for_clients), "none")
IGNORED = ("user", "safety_identifier", "prompt_cache_key", "metadata", "store")  # labels; they change nothing
UNKNOWN = 16  # unknown fields that are named in a reply


def _option(name: str, **narrower: Any) -> Any:
    """A field with default, bounds and description of this option; `narrower`: what this server says otherwise."""
    option = OPTIONS[name]
    bounds = {"gt" if option.positive else "ge": option.low, "le": option.high}
    return Field(**{"default": option.default, "description": option.help, **bounds, **narrower})


DraftBudget = Annotated[int, Field(ge=OPTIONS["draft_budget"].low, le=OPTIONS["draft_budget"].high)]


class RequestBody(BaseModel):
    """A request body; a field that is null counts as not given.

    timeout   seconds that the request may take, at most the server's own deadline
    priority  of requests that wait the smaller number begins first
    cache_salt  only prompts with the same one share what is kept of earlier ones
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    model: Annotated[str, Field(max_length=4096)] | None = None
    timeout: float | None = Field(None, gt=0)
    priority: int = Field(0, ge=-1000, le=1000)
    cache_salt: str = Field("", max_length=256)
    _warnings: list[str] = PrivateAttr(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What of the request had no effect, one line each."""
        return self._warnings


def _drafter_for_clients(name: str) -> str:
    if name not in DRAFTERS_FOR_CLIENTS:
        raise ValueError(f'one of {", ".join(DRAFTERS_FOR_CLIENTS)}, got "{name[:40]}"')
    return name


DrafterName = Annotated[
    str, AfterValidator(_drafter_for_clients), Field(json_schema_extra={"enum": list(DRAFTERS_FOR_CLIENTS)})
]


class PredictedPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["text"]
    text: str


class Prediction(BaseModel):
    """OpenAI's "predicted outputs": a text that much of the answer will repeat.  It speeds the answer up."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["content"]
    content: str | list[PredictedPart]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool = False
    continuous_usage_stats: bool = False  # in every event, as vLLM has it
    include_obfuscation: bool = False  # padding against eavesdroppers; none is sent


class FunctionOfTool(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = Field("", max_length=8192)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def plain(self) -> dict[str, Any]:
        """As a model reads it."""
        return {"name": self.name, "description": self.description, "parameters": self.parameters or NO_PARAMETERS}


class OfferedTool(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["function"]
    function: FunctionOfTool


class NamedFunction(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    name: str = Field(max_length=64)


class NamedTool(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["function"]
    function: NamedFunction


class GenerationRequest(RequestBody):
    """How to continue; the names are OpenAI's, with the extensions top_k, min_p, stop_repetition, drafter,
    draft_budget, and vLLM's min_tokens and ignore_eos.

    At most one of the fields from response_format to guided_grammar says what the text must look like
    (`serving.forms`).
    """

    n: int = _option("n", le=MAX_N)
    max_tokens: int | None = Field(None, ge=0, le=2**20)
    min_tokens: int = _option("min_tokens", le=2**20)
    ignore_eos: bool = False  # write max_tokens, whatever the model thinks
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
    token_details: bool = False  # with logprobs: of each token also the entropy there, and whether it had been guessed
    drafter: DrafterName | None = None  # None: the server's own
    draft_budget: DraftBudget | Literal["auto", "off"] | None = None  # None: the server's own
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

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    max_tokens: int = Field(16, ge=0, le=2**20)

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1 without echo, got 0")
        if self.token_details and self.logprobs is None:
            raise ValueError("token_details needs logprobs, a number of alternatives")
        return self

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Texts, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=2**20)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**20)
    stop_repetition: bool = True
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    prediction: Prediction | None = None
    tools: list[OfferedTool] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    continue_final_message: bool | None = None  # None: where the last message is the assistant's
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
        if self.token_details and not self.logprobs:
            raise ValueError("token_details needs logprobs=true")
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
            self.max_tokens = self.max_completion_tokens
        names = [each.function.name for each in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("two tools have one name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f'tool_choice names "{self.tool_choice.function.name}", which is none of the tools')
        if self.tool_choice == "required" and not names:
            raise ValueError('tool_choice "required" needs tools')
        if self.continue_final_message and self.messages[-1].get("role") != "assistant":
            raise ValueError("continue_final_message needs a last message of the assistant")
        if self.continue_final_message and self.tools:
            raise ValueError("continue_final_message and tools do not go together: drop one of the two")
        return self

    @property
    def calls_tools(self) -> ToolChoice | None:
        """How tools may be called; None: not at all."""
        if not self.tools or self.tool_choice == "none":
            return None
        if isinstance(self.tool_choice, NamedTool):
            return ToolChoice("required", self.tool_choice.function.name, self.parallel_tool_calls)
        return ToolChoice(self.tool_choice, None, self.parallel_tool_calls)

    @property
    def begun(self) -> str | None:
        """The text that the assistant has already begun, which the reply goes on from."""
        last = self.conversation[-1]
        if self.continue_final_message is False or last.get("role") != "assistant" or self.tools:
            return None
        if self.messages[-1].get("tool_calls") or not isinstance(last.get("content"), str):
            return None
        return last["content"]

    @property
    def predicted_text(self) -> str:
        content = "" if self.prediction is None else self.prediction.content
        return content if isinstance(content, str) else "".join(part.text for part in content)

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages with plain text contents, as chat templates take them; tools and their calls are text, too."""
        return _as_text(self.messages, self.tools if self.calls_tools else [])


class TokenizeRequest(RequestBody):
    """POST /tokenize: the tokens of a text as a prompt, or of a conversation as the model reads it."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    tools: list[OfferedTool] = Field([], max_length=MAX_TOOLS)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of the two")
        return self

    @property
    def conversation(self) -> list[dict[str, Any]]:
        return _as_text(self.messages or (), self.tools)


class DetokenizeRequest(RequestBody):
    """POST /detokenize: the text of tokens, control tokens in their written form."""

    tokens: list[TokenId]


class ScoreRequest(RequestBody):
    """POST /v1/score: log p(answer | prompt) of each answer."""

    prompt: str
    answers: list[str] = Field(min_length=1, max_length=MAX_ANSWERS)
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    entropy: bool = False


def _as_text(messages: Sequence[dict[str, Any]], tools: Sequence[OfferedTool]) -> list[dict[str, Any]]:
    """Messages with plain text contents, tools and their calls among it."""
    plain = [_plain_message(i, message) for i, message in enumerate(messages)]
    if not tools and not any("tool_calls" in each or each.get("role") == "tool" for each in plain):
        return plain
    try:
        return with_tools(plain, [each.function.plain() for each in tools])
    except DataError as error:
        raise ApiError(400, str(error), param="messages") from None


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
    """A checked request, which tells what was ignored (`warnings`), or ApiError 400 in one line."""
    given: dict[str, Any] = {}
    warnings: list[str] = []
    for name, value in body.items():
        if name in schema.model_fields:
            if value is not None:
                given[name] = value
        elif name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                raise ApiError(400, f'"{name}" is not supported by this server: leave it out', param=name)
        elif name in IGNORED:
            if value:
                warnings.append(f'"{name}" has no effect here')
        elif len(warnings) < UNKNOWN:
            warnings.append(f'unknown field "{name[:100]}" was ignored{nearest(name[:100], schema.model_fields)}')
    try:
        asked = schema.model_validate(given)
        asked._warnings = warnings
        return asked
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ApiError:
    """The error of the first wrong field; of a field that may be several things, what is wrong deepest inside."""
    errors = error.errors(include_url=False, include_context=False)
    of_field = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    first = max(of_field, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    place = [p for p in first["loc"] if isinstance(p, int) or re.fullmatch(r"[a-z_]+", str(p))]
    place = [p for p in place if p not in ("str", "list", "constrained")]
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    message = re.sub(r" or instance of \w+", "", message[:1].lower() + message[1:])
    if first["type"] == "missing":
        return ApiError(400, f'field "{name}" is missing', param=name)
    if not name:
        return ApiError(400, message)
    value = repr(first["input"]) if not isinstance(first["input"], (dict, list)) else type(first["input"]).__name__
    value = value if len(value) <= 40 else value[:37] + "..."
    return ApiError(400, f"{name}: {message}, got {value}", param=str(place[0]))
