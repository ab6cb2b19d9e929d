"""What the verbs of a model take: the settings of `decoding.options`, and those of guided text, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from likely.decoding.options import OPTIONS as DECODING
from likely.decoding.options import DecodingOptions, Option, SamplingOptions, table
from likely.guided.settings import FormOptions, FormSettingsOptions

if TYPE_CHECKING:
    import httpx

    from likely.code.analysis.members import Analyses, MemberProvider
    from likely.code.monitors.monitor import AcrossTrigger, Monitor
    from likely.guided.contrast import Contrast

ASK_DEFAULTS: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 256}
CHAT_DEFAULTS: Mapping[str, Any] = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 512}
EXTRACT_DEFAULTS: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 512}

FORMS = table(
    Option("schema", None, "JSON Schema, pydantic model, dataclass or type: the text is JSON that obeys it"),
    Option("regex", None, "the whole text matches it"),
    Option("grammar", None, "a Lark grammar whose rule start the text follows"),
    Option("choices", None, "the text is one of these"),
)
FORM_SETTINGS = table(
    Option("backend", "llguidance", "llguidance or reference"),
    Option("whitespace", "single", "in JSON: compact, single or any"),
    Option("on_unsupported", "error", "keywords that cannot be enforced: error, validate or ignore"),
    Option("retries", 3, "other samples, where a text breaks its schema"),
    Option("close_on_budget", True, "leave out tokens after which the text could not be completed in max_tokens"),
    Option("extra_properties", False, "whether objects may have properties that the schema does not list"),
    Option("max_string", None, "bound of strings where the schema has none"),
    Option("max_items", None, "bound of arrays where the schema has none"),
    Option("max_number_digits", None, "bound of numbers where the schema has none"),
)
SAMPLER = table(
    Option("sampler", "local", "local masks token by token; importance, smc, rejection: p(text | form)"),
    Option("particles", 64, "texts of importance and smc"),
    Option("max_tries", 1024, "rejection: most texts per prompt"),
)
OPTIONS: Mapping[str, Option] = {
    **DECODING, **FORMS, **FORM_SETTINGS, **SAMPLER,
    **table(
        Option("contrast", None, "a guided.contrast.Contrast with a negative prompt or a weaker model", of_tokens=True),
        Option("heal", False, "write the last tokens of a raw prompt anew, so that they may join what follows"),
    ),
}  # fmt: skip


def plain_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with numbers of numpy as numbers of Python."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}


def stop_strings(stop: Any) -> tuple[str, ...]:
    """The value of `stop=`: None, a string or several."""
    strings = (stop,) if isinstance(stop, str) else stop or ()
    if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) for s in strings):
        raise TypeError(f"stop must be a string or a list of strings, got {stop!r}")
    return tuple(strings)


class DecodingFormOptions(DecodingOptions, FormSettingsOptions, total=False):
    """How a text is decoded and how its form is held, and a contrast."""

    contrast: Contrast | None


class ExtractOptions(DecodingFormOptions, total=False):
    """What `extract` takes beside the schema; instruction: what to look for, in place of `extract.INSTRUCTION`."""

    instruction: str | None


class TextOptions(DecodingFormOptions, FormOptions, total=False):
    """What any text takes; at most one of schema, regex, grammar and choices says what it must look like."""


class GenerateOptions(TextOptions, total=False):
    """What `generate` takes; sampler, particles, max_tries: fields of `guided.conditional_sampling.SamplerSettings`."""

    heal: bool
    sampler: Literal["local", "importance", "smc", "rejection"]
    particles: int
    max_tries: int


class ScoringOptions(TypedDict, total=False):
    """What `score` and `score_pairs` take.

    top_logprobs  alternatives per token;  entropy: that of each token's distribution
    window        answers longer than the context are an error, unless scored in overlapping pieces of this many tokens
                  (`stride` new ones each)
    """

    top_logprobs: int
    entropy: bool
    window: int | None
    stride: int | None


class CompleteCodeOptions(SamplingOptions, total=False):
    """What `complete_code` takes; see `code.complete.complete_code`."""

    monitors: Sequence[str | Monitor]
    provider: MemberProvider | Analyses | None
    max_tokens: int
    stop: Literal["line", "method", "none"]
    choose: Literal["greedy", "exact"]
    policy: Literal["hard", "soft"]
    penalty: float
    across_trigger: AcrossTrigger
    unknown: Literal["free", "strict"]
    prompt_tokens: int | None
    limit_s: float
    drafter: Any
    draft_budget: int | Literal["auto", "off"]


class ConnectionOptions(TypedDict, total=False):
    """How a server is reached.

    api_key    None: LIKELY_API_KEY, or OPENAI_API_KEY for OpenAI's own address; sent nowhere else, never printed
    timeout_s  for connecting, for a whole reply, and between two events of a stream
    retries    after 429, 5xx and connection errors; waits double from backoff_s, or follow Retry-After up to 30 s
    transport  of httpx, for tests and proxies
    """

    api_key: str | None
    timeout_s: float
    retries: int
    backoff_s: float
    transport: httpx.BaseTransport | None


class ServerOptions(ConnectionOptions, total=False):
    """Settings of a server; model: its name there."""

    model: str | None
