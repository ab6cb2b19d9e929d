"""From what a caller says to a request of the loop: prompt, form, token healing, stops, processors, drafter."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any, Literal, Protocol

from likely.decoding.constraint import Constraint, LogitsProcessor
from likely.decoding.drafting.budget import Controller
from likely.decoding.drafting.protocol import DraftSource
from likely.decoding.drafting.table import DrafterContext, make_drafter
from likely.decoding.options import check_names
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError
from likely.guided.conditional_sampling import SamplerSettings
from likely.guided.contrast import Contrast
from likely.guided.form import Form, FormSettings, make_form
from likely.guided.guide import Guide
from likely.guided.length_limit.constraint import why_cut
from likely.guided.token_healing import heal
from likely.lm.options import FORM_SETTINGS, FORMS, OPTIONS, SAMPLER, plain_numbers, stop_strings
from likely.models.load import Loaded, ModelInfo, load_local
from likely.runtimes.cost_curve import CostCurve
from likely.runtimes.protocol import Runtime
from likely.tokenizers.protocol import Tokenizer

_SAMPLING = tuple(f.name for f in fields(Sampling))
_AS_THEY_ARE = (
    "max_tokens", "min_tokens", "stop_repetition", "first_sample", "beams", "length_penalty",
    "verification", "top_logprobs", "entropy", "backspace_id",
)  # fmt: skip


class PromptedModel(Protocol):
    """The model that a request is for."""

    runtime: Runtime
    tokenizer: Tokenizer
    drafters: Drafters

    @property
    def guide(self) -> Guide: ...
    def encode_prompt(self, prompt: str) -> list[int]: ...
    def render(self, messages: Any) -> Any: ...


def make_request(
    lm: PromptedModel,
    tokens: Sequence[int],
    options: Mapping[str, Any],
    as_prompt: Callable[[str], Sequence[int]] | None = None,
    *,
    raw: bool = False,
) -> Request:
    """The request that continues a prompt of these tokens; options: see `lm.options.GenerateOptions`.

    as_prompt  how a text in the place of the prompt becomes tokens, for a contrast with it
    raw        whether the prompt is text as it stands, so that its end may be healed
    """
    check_names(options, OPTIONS)
    options = plain_numbers(options)
    if options.get("seed", 0) is None:  # any
        options["seed"] = secrets.randbits(63)
    if any(name in options for name in SAMPLER) and take_sampler(options).sampler != "local":
        raise CapabilityError("sampler= is for generate and ensemble: its texts are drawn among each other")
    form, constraint = _form(lm, options)
    healed = None
    if options.get("heal", False):
        if not raw or options.get("contrast") is not None:
            raise CapabilityError("heal=True is for generate and stream with a raw prompt, without contrast=")
        special = frozenset(lm.tokenizer.special_tokens.values())
        tokens, healed = heal(lm.guide.vocabulary, tokens, special)
        constraint = lm.guide.healed(healed, constraint) if healed else constraint
    drafter = options.get("drafter", None if options.get("beams") else lm.drafters.default)
    return Request(
        tuple(tokens),
        Sampling(**{name: options[name] for name in _SAMPLING if name in options}),
        samples=options.get("n", 1),
        stop=stop_strings(options.get("stop")),
        stop_tokens=frozenset(options.get("stop_tokens") or ()),
        drafter=lm.drafters.get(drafter),
        draft_budget=lm.drafters.budget_of(options.get("draft_budget")),
        constraint=constraint,
        logits_processors=_logits_processors(lm, options, as_prompt or lm.encode_prompt),
        form=form,
        healed=healed,
        processed=options.get("processed_logprobs", False),
        **{name: options[name] for name in _AS_THEY_ARE if name in options},
    )


def check_options(options: Mapping[str, Any], more: Collection[str] = ()) -> None:
    """TypeError or ValueError for settings that no model takes, before one is opened.  more: names that a verb adds"""
    check_names(options, [*OPTIONS, *more])
    options = plain_numbers(options)
    Request(
        (0,),
        Sampling(**{name: options[name] for name in _SAMPLING if options.get(name) is not None}),
        stop=stop_strings(options.get("stop")),
        **{name: options[name] for name in _AS_THEY_ARE if name in options and name != "beams"},
    )


def check_single(request: Request) -> None:
    """CapabilityError for more than one text."""
    if request.samples > 1 or request.beams:
        raise CapabilityError("a stream or an answer is one text: use generate for n > 1 or beams")


def take_sampler(options: Mapping[str, Any], default: str = "local") -> SamplerSettings:
    """What the options say about the sampler."""
    given = {name: options[name] for name in SAMPLER if name in options}
    settings = SamplerSettings(**{"sampler": default, **given})
    if settings.sampler == "local" and len(given) > ("sampler" in given):
        raise ValueError('particles and max_tries are for sampler="importance", "smc" or "rejection"')
    return settings


def _form(lm: PromptedModel, options: Mapping[str, Any]) -> tuple[Form | None, Constraint | None]:
    """What the options say about the form of the text."""
    given = {name: options[name] for name in FORMS if options.get(name) is not None}
    settings = {name: options[name] for name in FORM_SETTINGS if name in options}
    constraint = options.get("constraint")
    if constraint is not None:
        if given or settings:
            raise ValueError(f"constraint= is a form by itself: drop {', '.join([*given, *settings])}")
        return None, constraint
    if not given:
        if settings:
            raise ValueError(f"{', '.join(settings)} without a form: give one of {', '.join(FORMS)}")
        return None, None
    form = make_form(**given, settings=FormSettings(**settings))
    held = lm.guide.constraint(form)
    if why := why_cut(form, held):
        warnings.warn(why, stacklevel=4)
    return form, held


def _logits_processors(
    lm: PromptedModel, options: Mapping[str, Any], as_prompt: Callable[[str], Sequence[int]]
) -> tuple[LogitsProcessor, ...]:
    """What the options say about soft changes of the logits."""
    given = tuple(options.get("logits_processors") or ())
    contrast = options.get("contrast")
    if contrast is None:
        return given
    if not isinstance(contrast, Contrast):
        raise TypeError(f"contrast must be a likely.guided.contrast.Contrast, got {contrast!r}")

    def encode(negative: Any) -> Sequence[int]:
        return as_prompt(negative) if isinstance(negative, str) else lm.render(negative).tokens

    return (*given, contrast.prepared(lm.tokenizer, lm.runtime.vocab_size, encode))


class Drafters:
    """Who guesses ahead for a model, and what that has cost and gained so far.

    default       the drafter of requests that name none.  "auto" where logits do not depend on how work is cut into
                  calls, so that the text stays a function of prompt, settings and seed: the native runtime, and torch
                  in fp32 (to about 1e-5 nats); elsewhere "none", since near-ties could fall by timing
    budget        the draft_budget of requests that name none; "off": of all requests, whatever they name
    share_memory  whether drafters made by name may learn from one request for another
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, info: ModelInfo):
        self._runtime, self._tokenizer = runtime, tokenizer
        exact = (info.runtime == "torch" and info.dtype == "float32") or runtime.capabilities.invariant_logits
        self.default: str | DraftSource | None = "auto" if exact and runtime.capabilities.trees else "none"
        self.share_memory = True
        self.budget: int | Literal["auto", "off"] = "auto"
        self._made: dict[str, DraftSource | None] = {}
        self._models: dict[tuple[str, str | None], Loaded] = {}

    def get(self, drafter: str | DraftSource | None, *, remembered: bool = True) -> DraftSource | None:
        """A drafter by name ("lookup", "suffix", "model:NAME", ...) or object; None and "none" are no drafter.

        remembered  one made by name is kept, with all that it learns; False makes a fresh one
        """
        if drafter is None or not isinstance(drafter, str):
            return drafter
        if remembered and drafter in self._made:
            return self._made[drafter]
        made = make_drafter(drafter, DrafterContext(self._runtime, self._tokenizer, self._load, self.share_memory))
        if remembered:
            self._made[drafter] = made
        return made

    def budget_of(self, asked: int | Literal["auto", "off"] | None) -> int | Literal["auto", "off"]:
        """The draft_budget of a request that asked for this one; None: for none."""
        return self.budget if asked is None or self.budget == "off" else asked

    @cached_property
    def controller(self) -> Controller:
        """What the model's calls cost and its drafters achieved so far, for draft_budget="auto"."""
        return Controller(CostCurve.load(self._runtime.revision))

    def _load(self, name: str, runtime: str | None = None) -> tuple[Runtime, Tokenizer]:
        """Another model on this machine, for drafting; loaded once for each runtime that is asked for."""
        key = name, runtime
        if key not in self._models:
            self._models[key] = load_local(name, runtime=runtime)
        return self._models[key].runtime, self._models[key].tokenizer

    def close(self) -> None:
        """Free the models that were loaded for drafting."""
        for loaded in self._models.values():
            loaded.runtime.shutdown()
        self._made, self._models = {}, {}
