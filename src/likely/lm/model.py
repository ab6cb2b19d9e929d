"""The object a user holds: score, generate, stream, ask, chat on a local model.

`likely.load` makes one; `RemoteModel` offers the same verbs over an OpenAI-compatible server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from likely.decoding.constraint import Constraint, LogitsProcessor
from likely.decoding.drafting.budget import Controller
from likely.decoding.drafting.protocol import DraftSource
from likely.decoding.drafting.table import DrafterContext, make_drafter
from likely.decoding.loop import Loop
from likely.decoding.request import Event, Finished, Request
from likely.decoding.sampling import Sampling
from likely.decoding.scheduling import SameLength
from likely.errors import CapabilityError, DataError, ModelError, nearest
from likely.guided.conditional_sampling import Ensemble, SamplerSettings, prepare, reject, weighted
from likely.guided.contrast import Contrast
from likely.guided.form import FORM_OPTIONS, Form, FormSettings, make_form
from likely.guided.guide import Guide
from likely.guided.token_healing import heal
from likely.guided.vocabulary import Vocabulary
from likely.lm.confidence import ASK_DEFAULTS, CHAT_DEFAULTS, KEPT, calibrator_for, system_of, with_confidence
from likely.lm.extract import DEFAULTS, Extracted, extract, extraction_prompt
from likely.lm.records import record_of
from likely.lm.redraw import draw_until_valid
from likely.lm.results import Answer, Generation
from likely.lm.stream import Stream
from likely.models.chat_template import ChatTemplate, Message, Rendered, render_chat
from likely.models.load import Loaded, ModelInfo, load_local
from likely.runtimes.cost_curve import CostCurve
from likely.runtimes.protocol import Capabilities, Runtime
from likely.scoring.likelihood import score_pairs
from likely.scoring.rolling import Perplexity, perplexity
from likely.scoring.scored import Scored
from likely.tokenizers.protocol import Tokenizer, begin

if TYPE_CHECKING:
    from likely.calibration.calibrator import Calibrator
    from likely.code.buffer import CodeBuffer
    from likely.code.complete import CodeCompletion

PLAIN_QUESTION = "Question: {question}\nAnswer:"  # for models without a chat template
_SAMPLING = tuple(f.name for f in fields(Sampling))


class Model:
    """A model on this machine.

    Verbs: score, perplexity, generate, stream, ask, chat.  `tokenizer`, `capabilities`, `info` and `runtime` are open
    to look at.  Not for several threads at once.  `close()` frees it; it is also a context manager.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, info: ModelInfo):
        self.runtime, self.tokenizer, self.info = runtime, tokenizer, info
        self.default_drafter = self._usual_drafter()
        self.share_memory = True  # whether drafters made by name may learn from one request for another
        self._drafters: dict[str, DraftSource | None] = {}
        self._beside: dict[str, Loaded] = {}

    @classmethod
    def from_loaded(cls, loaded: Loaded) -> Model:
        return cls(loaded.runtime, loaded.tokenizer, loaded.info)

    @property
    def capabilities(self) -> Capabilities:
        return self.runtime.capabilities

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The model's chat template, None if it has none."""
        source = self.tokenizer.chat_template
        if source is None:
            return None
        names = {number: text for text, number in self.tokenizer.special_tokens.items()}
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        return ChatTemplate(
            source,
            bos_token=names.get(bos, "") if bos is not None else "",
            eos_token=names.get(eos, "") if eos is not None else "",
        )

    def close(self) -> None:
        """Free weights and caches; harmless when repeated."""
        self.runtime.shutdown()
        for loaded in self._beside.values():
            loaded.runtime.shutdown()
        self._drafters, self._beside = {}, {}

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- scoring --------------------------------------------------------------------------------------------------

    def score(
        self,
        prompt: str,
        answers: Sequence[str],
        *,
        top_logprobs: int = 0,
        entropy: bool = False,
        window: int | None = None,
        stride: int | None = None,
    ) -> list[Scored]:
        """log p(answer | prompt) in nats for each answer; the prompt is computed once.

        prompt   raw text; control tokens written in it are control tokens.  "" means: a text begins here
        window   answers longer than the context are an error, unless scored in overlapping pieces of this many
                 tokens (`stride` new ones each)
        """
        if isinstance(answers, str):
            raise TypeError(f"answers must be a list of strings, got the string {answers!r}")
        return self.score_pairs(
            [(prompt, a) for a in answers], top_logprobs=top_logprobs, entropy=entropy, window=window, stride=stride
        )

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        top_logprobs: int = 0,
        entropy: bool = False,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Scored]:
        """Score many (prompt, answer) pairs together: shared prefixes are computed once, calls are filled."""
        return score_pairs(
            self.runtime,
            self.tokenizer,
            pairs,
            top=top_logprobs,
            entropy=entropy,
            window=window,
            stride=stride,
            progress=progress,
        )

    def perplexity(
        self,
        text: str,
        *,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Perplexity:
        """Perplexity, nats per token and bits per byte of a text, in sliding windows."""
        return perplexity(self.runtime, self.tokenizer, text, window=window, stride=stride, progress=progress)

    # --- generation -----------------------------------------------------------------------------------------------

    @overload
    def generate(self, prompt: str, **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[Generation]: ...

    def generate(self, prompt: str | Sequence[str], **options: Any) -> Any:
        """Continue a prompt, or each of a list of prompts (batched; the same results as one at a time).

        max_tokens=128, min_tokens=0, stop=(), stop_tokens=(), n=1 (samples; then a list per prompt), seed=0,
        temperature=1.0 (0: greedy), top_k, top_p, min_p, typical_p, repetition_penalty, presence_penalty,
        frequency_penalty, logit_bias, beams=0, length_penalty=1.0, drafter (a name, see `drafter`, or an
        object; None: none; default: `default_drafter`), draft_budget="auto", verification="keyed", top_logprobs=0,
        processed_logprobs=False.

        The form of the text, at most one: schema (JSON Schema, pydantic model, dataclass, type), regex, grammar (Lark),
        choices; how it is held: the fields of `guided.form.FormSettings` (whitespace="compact", close_on_budget=True,
        ...).  Or constraint= (an object).  The result then has `value`, `complete`, `log_weight`, `guided_logprob`.

        sampler (with a form): "local", the default, masks token by token; "importance", "smc", "rejection" draw from
        the model conditioned on the form (temperature 1, nothing truncated), see `guided.sampling`: particles=64,
        max_tries=1024.  The result then has `log_evidence` and `ess`; `ensemble` gives the weighted texts.

        contrast (a `guided.contrast.Contrast`): the law of the text less that of a negative prompt or a weaker model;
        logits_processors: other soft changes of the logits.  The result then has `steering`, one entry per token.

        heal=False: write the prompt's last tokens anew, so that they may join what follows (`guided.healing`); `text`
        and its log-probabilities begin after the prompt, `healing_log_weight` tells of the rest.

        The text depends on (model, prompt, settings, seed) alone; with verification="rejection" also on the drafter.
        Ctrl-C raises KeyboardInterrupt; use `stream` to keep the partial text.
        """
        single = isinstance(prompt, str)
        prompts: list[str] = [prompt] if isinstance(prompt, str) else list(prompt)
        many = options.get("n", 1) > 1
        settings = _take_sampler(options)
        if settings.sampler == "local":
            results = self.run([self._request(self.encode_prompt(p), options, raw=True) for p in prompts])
        else:
            ensembles = self._ensembles(prompts, settings, options)
            results = [[make() for make in e.draw(options.get("n", 1))] for e in ensembles]
        shaped = [group if many else group[0] for group in results]
        return shaped[0] if single else shaped

    def ensemble(self, prompt: str, **options: Any) -> Ensemble[Generation]:
        """The weighted texts from which `generate` draws with sampler="importance" (here the default) or "smc".

        n  rejection: texts to accept; else without effect
        """
        settings = _take_sampler(options, "importance")
        if settings.sampler == "local":
            raise ValueError('sampler="local" has no weights: use "importance", "smc" or "rejection"')
        [found] = self._ensembles([prompt], settings, options)
        return found.holding([make() for make in found.texts])

    def stream(self, prompt: str | Sequence[Message], **options: Any) -> Stream:
        """Text pieces as they come, for a prompt or for chat messages; `.result` holds the whole at the end.

        Takes the options of `generate` (n=1, no beams).
        """
        if isinstance(prompt, str):
            return Stream(self, self._request(self.encode_prompt(prompt), options, raw=True), None)
        rendered = self.render(prompt)
        return Stream(self, self._request(rendered.tokens, options, self._other_end(prompt)), rendered)

    def ask(
        self, question: str, *, system: str | None = None, calibrator: str | Path | Calibrator | None = KEPT,
        task: str = "default", **options: Any,
    ) -> Answer:  # fmt: skip
        """Answer a question, greedily unless a temperature is given.

        calibrator, task  where `confidence` comes from, see `confidence.calibrator_for`; it is None without one

        Models without a chat template are asked in the form "Question: ... Answer:", ended by a blank line.
        """
        found = calibrator_for(self, options, system, calibrator=calibrator, task=task)
        return with_confidence(self.stream_ask(question, system=system, **options).finish(), found)

    def stream_ask(self, question: str, *, system: str | None = None, **options: Any) -> Stream:
        """The streaming form of `ask`."""
        request, rendered = self.question(question, system=system, **options)
        return Stream(self, request, rendered)

    def question(self, question: str, *, system: str | None = None, **options: Any) -> tuple[Request, Rendered]:
        """What `ask` sends to the model, for callers that schedule requests themselves."""
        if not question.strip():
            raise ValueError("the question is empty")
        options = {**ASK_DEFAULTS, **options}
        if self.template is None:
            options.setdefault("stop", ("\n\n", "\nQuestion:"))
        rendered = self._rendered_question(question, system)
        return self._request(rendered.tokens, options, lambda q: self._rendered_question(q, system).tokens), rendered

    def _rendered_question(self, question: str, system: str | None) -> Rendered:
        if self.template is None:
            text = PLAIN_QUESTION.format(question=question if system is None else f"{system}\n{question}")
            return Rendered(text, self.encode_prompt(text), system_folded=system is not None)
        messages = [{"role": "system", "content": system}] if system is not None else []
        return self.render([*messages, {"role": "user", "content": question}])

    def chat(
        self, messages: Sequence[Message], *, calibrator: str | Path | Calibrator | None = KEPT, task: str = "default",
        **options: Any,
    ) -> Answer:  # fmt: skip
        """The next assistant message; same options as `generate`, by default temperature 0.2, top_p 0.9.

        calibrator, task  as for `ask`; one that was fitted on single questions says less about later turns
        """
        found = calibrator_for(
            self, {**CHAT_DEFAULTS, **options}, system_of(messages), calibrator=calibrator, task=task
        )  # fmt: skip
        return with_confidence(self.stream_chat(messages, **options).finish(), found)

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> Stream:
        """The streaming form of `chat`."""
        options = {**CHAT_DEFAULTS, **options}
        rendered = self.render(messages)
        return Stream(self, self._request(rendered.tokens, options, self._other_end(messages)), rendered)

    @overload
    def extract(self, documents: str, **options: Any) -> Extracted: ...
    @overload
    def extract(self, documents: Sequence[str], **options: Any) -> list[Extracted]: ...

    def extract(self, documents: str | Sequence[str], **options: Any) -> Any:
        """The values that a schema asks for, from a document or from each of a list (batched).

        schema       as for `generate`;  instruction: what to look for, in place of `extracting.INSTRUCTION`
        the others   as for `generate`; by default greedy, max_tokens=512

        A document that gives no value (too long, cut, against the schema) has an `error` instead and stops no other.
        """
        return extract(self, documents, **options)

    def extraction(
        self, document: str, *, schema: Any, instruction: str | None = None, **options: Any
    ) -> tuple[Request, Rendered]:
        """What `extract` sends to the model, for callers that schedule requests themselves."""
        if not document.strip():
            raise DataError("the document is empty")
        prompt = extraction_prompt(document, schema, instruction)
        if self.template is None:
            rendered = Rendered(prompt, self.encode_prompt(prompt))
        else:
            rendered = self.render([{"role": "user", "content": prompt}])
        return self._request(rendered.tokens, {**DEFAULTS, **options, "schema": schema}), rendered

    def complete_code(self, buffer: CodeBuffer, **options: Any) -> CodeCompletion:
        """Code at the cursor of a `CodeBuffer`, held by monitors; options as in `guided.complete.complete_code`."""
        from likely.code.complete import complete_code

        return complete_code(self, buffer, **options)

    # --- prompts --------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A conversation as the model reads it."""
        if self.template is None:
            raise ModelError(
                f"{self.info.name} has no chat template (it is a base model): use generate or ask, or a chat model"
            )
        return render_chat(self.tokenizer, self.template, messages)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a raw prompt, the beginning-of-sequence token in front where the model wants one."""
        tokens = begin(self.tokenizer, self.tokenizer.encode(prompt, parse_special=True))
        if not tokens:
            first = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
            tokens = [] if first is None else [first]
        return tokens

    def _other_end(self, messages: Sequence[Message]) -> Callable[[str], Sequence[int]]:
        """The conversation with another text as its last message, as tokens."""
        return lambda text: self.render([*messages[:-1], {**messages[-1], "content": text}]).tokens

    def _logits_processors(
        self, options: dict[str, Any], as_prompt: Callable[[str], Sequence[int]]
    ) -> tuple[LogitsProcessor, ...]:
        """What the options say about soft changes of the logits; they are taken out."""
        given = tuple(options.pop("logits_processors", ()) or ())
        contrast = options.pop("contrast", None)
        if contrast is None:
            return given
        if not isinstance(contrast, Contrast):
            raise TypeError(f"contrast must be a likely.guided.contrast.Contrast, got {contrast!r}")

        def encode(negative: Any) -> Sequence[int]:
            return as_prompt(negative) if isinstance(negative, str) else self.render(negative).tokens

        return (*given, contrast.prepared(self.tokenizer, self.runtime.vocab_size, encode))

    def _request(
        self,
        tokens: Sequence[int],
        options: dict[str, Any],
        as_prompt: Callable[[str], Sequence[int]] | None = None,
        *,
        raw: bool = False,
    ) -> Request:
        """as_prompt  how a text in the place of the prompt becomes tokens, for a contrast with it

        raw  whether the prompt is text as it stands, so that its end may be healed
        """
        options = dict(options)
        if options.pop("sampler", "local") != "local":
            raise CapabilityError("sampler= is for generate and ensemble: its texts are drawn among each other")
        form, constraint = self._take_constraint(options)
        healed = None
        if options.pop("heal", False):
            if not raw or options.get("contrast") is not None:
                raise CapabilityError("heal=True is for generate and stream with a raw prompt, without contrast=")
            tokens, healed = heal(self.guide.vocabulary, tokens, frozenset(self.tokenizer.special_tokens.values()))
            constraint = self.guide.healed(healed, constraint) if healed else constraint
        stop = options.pop("stop", ()) or ()
        named = {
            "samples": options.pop("n", 1),
            "drafter": self.drafter(options.pop("drafter", None if options.get("beams") else self.default_drafter)),
            "stop": (stop,) if isinstance(stop, str) else tuple(stop),
            "stop_tokens": frozenset(options.pop("stop_tokens", ()) or ()),
            "processed": options.pop("processed_logprobs", False),
            "constraint": constraint,
            "healed": healed,
            "logits_processors": self._logits_processors(options, as_prompt or self.encode_prompt),
        }
        sampling = {name: options.pop(name) for name in _SAMPLING if name in options}
        allowed = (*_SAMPLING, *_REQUEST, *_CONSTRAINT, *_SAMPLER, *_ELSE)
        for name in options:
            if name not in _REQUEST:
                raise TypeError(f'unknown option "{name}"{nearest(name, allowed)}')
        request = Request(tuple(tokens), Sampling(**sampling), **named, **options)
        return request if form is None else replace(request, form=form)

    def _take_constraint(self, options: dict[str, Any]) -> tuple[Form | None, Constraint | None]:
        """What the options say about the form of the text; they are taken out."""
        given = {name: value for name in FORM_OPTIONS if (value := options.pop(name, None)) is not None}
        settings = {name: options.pop(name) for name in _SETTINGS if name in options}
        constraint = options.pop("constraint", None)
        if constraint is not None:
            if given or settings:
                raise ValueError(f"constraint= is a form by itself: drop {', '.join([*given, *settings])}")
            return None, constraint
        if not given:
            if settings:
                raise ValueError(f"{', '.join(settings)} without a form: give one of {', '.join(FORM_OPTIONS)}")
            return None, None
        form = make_form(**given, settings=FormSettings(**settings))
        return form, self.guide.constraint(form)

    @cached_property
    def guide(self) -> Guide:
        """Compiles forms into constraints on this model's tokens."""
        return Guide(Vocabulary.of(self.tokenizer, self.runtime.vocab_size))

    # --- running --------------------------------------------------------------------------------------------------

    def loop(self) -> Loop:
        """A fresh loop on this model, for callers that schedule requests themselves."""
        policy = SameLength() if getattr(self.runtime, "align", None) == "group" else None
        return Loop(
            self.runtime, self.tokenizer.token_bytes, self.tokenizer.end_ids, controller=self.speculation, policy=policy
        )

    def drafter(self, drafter: str | DraftSource | None, *, remembered: bool = True) -> DraftSource | None:
        """A drafter by name ("lookup", "suffix", "model:NAME", ...) or object; None and "none" are no drafter.

        remembered  one made by name stays with the model, with all that it learns; False makes a fresh one
        """
        if drafter is None or not isinstance(drafter, str):
            return drafter
        if remembered and drafter in self._drafters:
            return self._drafters[drafter]
        made = make_drafter(drafter, DrafterContext(self.runtime, self.tokenizer, self._load_beside, self.share_memory))
        if remembered:
            self._drafters[drafter] = made
        return made

    def _usual_drafter(self) -> str:
        """What is used where nobody names a drafter.

        "auto" where the engine's numbers do not depend on how work is cut into calls, so that the text stays a function
        of prompt, settings and seed: the native runtime, and torch in fp32 (to about 1e-5 nats).  Elsewhere near-ties
        could fall by timing.
        """
        fp32 = self.info.runtime == "torch" and self.info.dtype == "float32"
        exact = fp32 or self.capabilities.invariant_logits
        return "auto" if exact and self.runtime.capabilities.trees else "none"

    def _load_beside(self, name: str) -> tuple[Runtime, Tokenizer]:
        """Another model on this machine, for drafting; loaded once, and closed together with this one."""
        if name not in self._beside:
            self._beside[name] = load_local(name)
        return self._beside[name].runtime, self._beside[name].tokenizer

    @cached_property
    def speculation(self) -> Controller:
        """What this model's calls cost and its drafters achieved so far, for draft_budget="auto"."""
        return Controller(CostCurve.load(self.runtime.revision))

    def run(self, requests: Sequence[Request]) -> list[list[Generation]]:
        """The public records of every sample of each request.  Texts that break their schema are drawn again."""
        return draw_until_valid(requests, self._finish, self.generation)

    def _finish(self, requests: Sequence[Request]) -> list[list[tuple[Event, float]]]:
        """The last event of every sample of each request, and the seconds until then."""
        started = time.perf_counter()
        loop = self.loop()
        try:
            ids = [loop.add(request) for request in requests]
            done: dict[int, dict[int, tuple[Event, float]]] = {i: {} for i in ids}
            while not loop.idle:
                for event in loop.step():
                    if event.error:
                        raise event.error
                    if event.finish:
                        done[event.request][event.sample] = event, time.perf_counter() - started
        finally:
            loop.close()
        return [[samples[k] for k in sorted(samples)] for samples in done.values()]

    def _ensembles(
        self, prompts: Sequence[str], settings: SamplerSettings, options: dict[str, Any]
    ) -> list[Ensemble[Callable[[], Generation]]]:
        """Per prompt: weighted texts, each a function that makes its public record."""
        options = dict(options)
        wanted = options.pop("n", 1)
        if settings.sampler == "smc":
            options.setdefault("drafter", None)
        requests = [prepare(self._request(self.encode_prompt(p), options), settings) for p in prompts]
        if settings.sampler == "rejection":
            ends = self.tokenizer.end_ids
            found = reject(requests, self._finish, _whole, end_ids=ends, wanted=wanted, settings=settings)
        else:
            found = [weighted(r, group, _finished) for r, group in zip(requests, self._finish(requests), strict=True)]
        return [
            e.holding([partial(self._particle, request, e, event, seconds) for event, seconds in e.texts])
            for request, e in zip(requests, found, strict=True)
        ]

    def _particle(self, request: Request, ensemble: Ensemble, event: Event, seconds: float) -> Generation:
        made = replace(self.generation(request, event, seconds), log_evidence=ensemble.log_evidence, ess=ensemble.ess)
        if ensemble.tries is None:
            return made
        return replace(made, token_log_masses=None, log_weight=None, guided_logprob=None)  # nothing was masked

    def generation(self, request: Request, event: Event, seconds: float) -> Generation:
        """The public record of a finished sample."""
        assert event.finish is not None
        return Generation(**record_of(self.tokenizer, request, event.finish, event.sample, seconds))


def _take_sampler(options: dict[str, Any], default: str = "local") -> SamplerSettings:
    """What the options say about the sampler; they are taken out."""
    given = {name: options.pop(name) for name in _SAMPLER if name in options}
    settings = SamplerSettings(**{"sampler": default, **given})
    if settings.sampler == "local" and len(given) > ("sampler" in given):
        raise ValueError('particles and max_tries are for sampler="importance", "smc" or "rejection"')
    return settings


def _finished(text: tuple[Event, float]) -> Finished:
    assert text[0].finish is not None
    return text[0].finish


def _whole(text: tuple[Event, float]) -> bool:
    return bool(_finished(text).complete)


_NAMED = (
    "prompt", "sampling", "samples", "drafter", "stop", "stop_tokens", "processed", "constraint", "logits_processors", "form",
    "particles", "healed",
)  # fmt: skip
_REQUEST = tuple(f.name for f in fields(Request) if f.name not in _NAMED)
_SETTINGS = tuple(f.name for f in fields(FormSettings))
_SAMPLER = tuple(f.name for f in fields(SamplerSettings))
_CONSTRAINT = (*FORM_OPTIONS, "constraint", *_SETTINGS)
_ELSE = ("n", "drafter", "stop", "stop_tokens", "processed_logprobs", "logits_processors", "contrast", "heal")
