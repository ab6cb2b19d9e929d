"""How a diffusion model decodes its canvas, beside the settings of any text; and which of those mean nothing to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from likely.decoding.diffusion.freedave import FreeDave
from likely.decoding.diffusion.generate import Accelerator, EarlyStop, EndPolicy
from likely.decoding.diffusion.predictor import CachePolicy
from likely.decoding.diffusion.prophet import PUBLISHED, Prophet
from likely.decoding.diffusion.proposal import Confidence
from likely.decoding.diffusion.schedule import ConfidenceThreshold
from likely.errors import CapabilityError
from likely.lm.options import OPTIONS

ONE_BLOCK = 64  # a canvas up to this length is one block where nobody says otherwise
BLOCK = 32  # of longer ones (LLaDA's own setting)


@dataclass(frozen=True)
class DiffusionSettings:
    """How the canvas of an answer is filled; see `likely.decoding.diffusion.diffusion_generate`.

    block_length     blocks are filled, and streamed, from left to right; None: one block up to 64 tokens, else 32 each.
                     `DiffusionModel` begins with the blocks of a block-causal model
    tokens_per_step  committed after each prediction; 1 is the best quality
    proposal, schedule, guidance, cache, end_policy   as there
    accelerator      FreeDave(4): the same texts from fewer calls;  stop: a Prophet, which ends a text early
    pinned           place in the answer, in tokens -> text that stands there from the beginning
    score_samples    masks drawn per answer for the lower bound that `score` returns
    """

    block_length: int | None = None
    tokens_per_step: int = 1
    proposal: Confidence = "probability"
    schedule: str | ConfidenceThreshold = "linear"
    guidance: float = 0.0
    cache: CachePolicy = "none"
    end_policy: EndPolicy = "allow"
    accelerator: Accelerator | None = None
    stop: EarlyStop | None = None
    pinned: Mapping[int, str] = field(default_factory=dict)
    score_samples: int = 128

    def __post_init__(self) -> None:
        for name in ("tokens_per_step", "score_samples"):
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        if self.block_length is not None and not (isinstance(self.block_length, int) and self.block_length >= 1):
            raise ValueError(f"block_length must be a whole number >= 1, got {self.block_length!r}")

    def canvas(self, wanted: int, room: int) -> tuple[int, int]:
        """(length, block_length) of the canvas for so many tokens: whole blocks, as many as have room.

        It may be longer than wanted, so that its last block is whole.
        """
        block = self.block_length
        if block is None:
            if (length := min(wanted, room)) <= ONE_BLOCK:
                return length, length
            block = BLOCK
        block = min(block, room)
        return min(-(-wanted // block), room // block) * block, block

    def steps(self, length: int, block: int) -> int:
        """Predictions of a canvas."""
        return length // block * -(-block // self.tokens_per_step)


def accelerator_of(drafts: str | None) -> FreeDave | None:
    """FreeDave with so many drafts: a number in digits, or "auto"; None: static decoding."""
    if drafts is None:
        return None
    if drafts != "auto" and not (drafts.isdecimal() and int(drafts) >= 1):
        raise ValueError(f'the drafts of FreeDave are a whole number >= 1 or "auto", got {drafts!r}')
    return FreeDave("auto" if drafts == "auto" else int(drafts))


def stop_rule_of(phases: str | None, region: str | None = None) -> Prophet | None:
    """Prophet from "published" or "0.5:9,1:4" (end of the phase as a share of the steps, gap in nats); None: none.

    region  "START:END" in tokens of the answer; None: all that is masked
    """
    if phases is None:
        if region is not None:
            raise ValueError("a region is Prophet's: give its thresholds, too")
        return None
    try:
        where = tuple(int(part) for part in region.split(":")) if region is not None else None
        found = [tuple(float(part) for part in pair.split(":")) for pair in phases.split(",") if phases != "published"]
        if (where is not None and len(where) != 2) or any(len(pair) != 2 for pair in found):
            raise ValueError
    except ValueError:
        raise ValueError(
            f'thresholds are "published" or END:GAP pairs such as 0.5:9,1:4, a region START:END; got {phases!r} and '
            f"{region!r}"
        ) from None
    thresholds = PUBLISHED if phases == "published" else tuple((end, gap) for end, gap in found)
    return Prophet(thresholds, region="masked" if where is None else (where[0], where[1]))


def threshold_of(probability: float) -> ConfidenceThreshold:
    """The schedule that commits all tokens of at least this probability."""
    return ConfidenceThreshold(probability)


class DecodingFields(TypedDict, total=False):
    """Fields of `DiffusionSettings`, of which those that are given change."""

    block_length: int | None
    tokens_per_step: int
    proposal: Confidence
    schedule: str | ConfidenceThreshold
    guidance: float
    cache: CachePolicy
    end_policy: EndPolicy
    accelerator: Accelerator | None
    stop: EarlyStop | None
    pinned: Mapping[int, str]
    score_samples: int


_LEFT_TO_RIGHT = "its tokens are not written from left to right"
_WHY: Mapping[str, str] = {
    **dict.fromkeys(
        ("schema", "regex", "grammar", "constraint"),
        "tokens are committed in any order, so that such a form cannot be held: use choices=, or pinned text "
        "(with_decoding(pinned={place: text}))",
    ),
    "drafter": "it drafts by itself: with_decoding(accelerator=FreeDave(4)) gives the same text from fewer calls",
    "verification": "nothing of a drafter is verified: with_decoding(accelerator=FreeDave(4))",
    **dict.fromkeys(
        ("top_logprobs", "entropy", "processed_logprobs"),
        "a token has no log-probability given those before it: score gives a lower bound of the text's",
    ),
    "beams": f"{_LEFT_TO_RIGHT}: sample with n= and a temperature",
    "backspace_id": f"{_LEFT_TO_RIGHT}: nothing is deleted",
    "min_tokens": "its canvas has a length of its own: with_decoding(end_policy='forbid') gives no end",
    "contrast": "with_decoding(guidance=) is what it has instead",
    "sampler": "texts are not weighed token by token: use choices=, or sample with n=",
    "heal": _LEFT_TO_RIGHT,
    "logits_processors": _LEFT_TO_RIGHT,
    "logit_bias": "choose temperature, or pinned text (with_decoding(pinned={place: text}))",
}
_NOT_SAMPLED = (
    "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
NO_DRAFTER = (None, "none", "auto")


def refuse_options(options: Mapping[str, Any]) -> None:
    """CapabilityError, with its name, for the first option that a diffusion model cannot follow."""
    for name, value in options.items():
        if name == "drafter":
            refused = not isinstance(value, str | None) or value not in NO_DRAFTER
        elif name in _WHY or name in _NOT_SAMPLED:
            refused = value is not None and value != OPTIONS[name].default and value not in ((), [], {})
        else:
            continue
        if refused:
            why = _WHY.get(name, "it samples with temperature alone")
            raise CapabilityError(f"{name}={_short(value)} is nothing for a diffusion model: {why}")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | list | tuple | dict) else type(value).__name__
    return text if len(text) <= 40 else f"{text[:30]}..."
