"""The settings of a generated text in one table: default, bounds, whether answers depend on it, a line of help.

`Sampling` and `Request` take their bounds from here, calibrators know from here on which settings an answer depends;
the server's fields, the help of `-s` and error advice read it.  `lm.options` adds the settings of guided text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from likely.errors import nearest

if TYPE_CHECKING:
    from likely.decoding.constraint import Constraint, LogitsProcessor


@dataclass(frozen=True)
class Option:
    """One setting of a generated text.

    default         where nobody says otherwise;  per_verb: `ask` and `chat` have another one
    low, high       bounds, both allowed;  positive: 0 is not
    changes_answer  whether the distribution of a text depends on it; otherwise it says which sample, how fast, or what
                    is reported
    of_tokens       it speaks of one model's tokens, so it means nothing to another model
    remote          OpenAI's API has it, so that any server takes it
    """

    name: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    positive: bool = False
    per_verb: bool = False
    changes_answer: bool = True
    of_tokens: bool = False
    remote: bool = False


def table(*options: Option) -> Mapping[str, Option]:
    return MappingProxyType({option.name: option for option in options})


OPTIONS = table(
    # which distribution the tokens come from (`Sampling`)
    Option("temperature", 1.0, "0 is greedy", 0, 100, per_verb=True, remote=True),
    Option("top_k", 0, "keep the k most likely tokens; 0: all", 0, 2**31),
    Option("top_p", 1.0, "keep the smallest set of tokens of this probability", 0, 1, positive=True, remote=True),
    Option("min_p", 0.0, "keep tokens of this probability times that of the most likely one, or more", 0, 1),
    Option("typical_p", 1.0, "keep tokens of typical surprise, up to this probability", 0, 1, positive=True),
    Option("repetition_penalty", 1.0, "divides the logits of tokens seen before", 0, 100, positive=True),
    Option("presence_penalty", 0.0, "subtracted once for a token of the output", -100, 100, remote=True),
    Option("frequency_penalty", 0.0, "subtracted for each occurrence in the output", -100, 100, remote=True),
    Option("logit_bias", MappingProxyType({}), "token id -> what is added to its logit", of_tokens=True),
    Option("seed", 0, "of the sampling noise: same seed, same text", -(2**63), 2**64 - 1, changes_answer=False,
           remote=True),
    # where the text ends, and how many there are (`Request`)
    Option("max_tokens", 128, "most tokens to generate", 1, 2**24, per_verb=True, remote=True),
    Option("backspace_id", None, "id of a token that deletes the one before it (a model trained for it)",
           of_tokens=True),
    Option("min_tokens", 0, "end tokens are impossible before that many"),
    Option("stop", (), "strings that end the text", remote=True),
    Option("stop_tokens", (), "token ids that end the text, beside the model's own", of_tokens=True),
    Option("stop_repetition", False, "end a text without a form that goes in circles; ask and chat: true",
           per_verb=True, changes_answer=False),
    Option("n", 1, "samples from one prefill", 1, 4096, changes_answer=False, remote=True),
    Option("first_sample", 0, "number of the first sample, which keys its noise", changes_answer=False),
    Option("beams", 0, "width of beam search; 0: none", 0, 256),
    Option("length_penalty", 1.0, "beams are ranked by sequence_logprob / length ** length_penalty"),
    # what the text is held to, beside the forms of `guided`
    Option("constraint", None, "a constraint object: what the text must look like", of_tokens=True),
    Option("logits_processors", (), "soft changes of the logits, in order", of_tokens=True),
    # how fast, and what is reported
    Option("drafter", None, "guess ahead: a name or a drafter; the text stays the same", changes_answer=False),
    Option("draft_budget", "auto", "most guessed tokens per call; auto: as many as pay; off: 0", 0, 1024,
           changes_answer=False),
    Option("verification", "keyed", "how guesses are verified: keyed, rejection or spectr", changes_answer=False),
    Option("top_logprobs", 0, "alternatives to report per token", 0, 1000, changes_answer=False, remote=True),
    Option("entropy", False, "report the entropy of the model's distribution at each token", changes_answer=False),
    Option("processed_logprobs", False, "also log-probabilities of the distribution sampled from",
           changes_answer=False),
)  # fmt: skip


class SamplingOptions(TypedDict, total=False):
    """Which distribution the tokens come from; see `Sampling`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int


class DecodingOptions(SamplingOptions, total=False):
    """Everything of `OPTIONS`; see `Request`."""

    max_tokens: int
    backspace_id: int | None
    min_tokens: int
    stop: str | Sequence[str] | None
    stop_tokens: Collection[int] | None
    stop_repetition: bool
    n: int
    first_sample: int
    beams: int
    length_penalty: float
    constraint: Constraint | None
    logits_processors: Sequence[LogitsProcessor] | None
    drafter: Any  # a name or a DraftSource, whose module needs this one
    draft_budget: int | Literal["auto", "off"]
    verification: Literal["keyed", "rejection", "spectr"]
    top_logprobs: int
    entropy: bool
    processed_logprobs: bool


def check_names(names: Iterable[str], known: Collection[str]) -> None:
    """TypeError with the nearest name for an option that is not known."""
    for name in names:
        if name not in known:
            raise TypeError(f'unknown option "{name}"{nearest(name, known)}')


def check_number(name: str, value: Any) -> None:
    """ValueError for what is no finite number within the bounds of this option."""
    option = OPTIONS[name]
    assert option.low is not None and option.high is not None
    if not (isinstance(value, (int, float)) and option.low <= value <= option.high):
        raise ValueError(f"{name} must lie in [{option.low:g}, {option.high:g}], got {value}")
    if option.positive and value == 0:
        raise ValueError(f"{name} must be > 0, got 0")


def check_whole(name: str, value: Any, *, high: float | None = None, shown: str | None = None) -> None:
    """The same for whole numbers.  high: a narrower bound;  shown: what the option is called where it is checked"""
    option = OPTIONS[name]
    low, high = option.low, option.high if high is None else high
    assert low is not None and high is not None
    if not (isinstance(value, int) and low <= value <= high):
        raise ValueError(f"{shown or name} must be a whole number in [{low}, {high}], got {value}")


def answer_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings on which the distribution of an answer depends, without values that change nothing.

    temperature and max_tokens stay at any value: verbs differ in their defaults (and the log-probability of an answer
    that was cut is that of its beginning).
    """
    return {name: value for name, value in settings.items() if not _has_no_effect(name, value)}


def _has_no_effect(name: str, value: Any) -> bool:
    if value is None or (isinstance(value, (str, tuple, list, dict)) and not value):
        return True
    option = OPTIONS.get(name)
    if option is None:
        return False
    return not option.changes_answer or (not option.per_verb and bool(value == option.default))
