"""The object a user holds: score, generate, stream, ask, chat on a local model.

`likely.load` makes one; `RemoteModel` offers the same verbs over an OpenAI-compatible server.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, overload

from likely.decoding.budget import Controller
from likely.decoding.draft import DraftSource
from likely.decoding.drafters import Needs, make_drafter
from likely.decoding.loop import Loop
from likely.decoding.pool import SameLength
from likely.decoding.request import Event, Finished, Request
from likely.decoding.sampling import Sampling
from likely.decoding.steer import Constraint
from likely.errors import CapabilityError, ModelError, nearest
from likely.guided.fields import read_fields
from likely.guided.form import FORM_OPTIONS, Form, FormSettings, make_form
from likely.guided.guide import Guide
from likely.guided.vocabulary import Vocabulary
from likely.models.chat_template import ChatTemplate, Message, Rendered, render_chat
from likely.models.cost_curve import CostCurve
from likely.models.load import Loaded, ModelInfo, load_local
from likely.models.runtime import Capabilities, Runtime
from likely.models.tokenizer import Tokenizer, begin
from likely.results import Answer, Generation, Scored, TopLogprob, sums
from likely.scoring import Perplexity, perplexity, score_pairs

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

        The text depends on (model, prompt, settings, seed) alone; with verification="rejection" also on the drafter.
        Ctrl-C raises KeyboardInterrupt; use `stream` to keep the partial text.
        """
        single = isinstance(prompt, str)
        prompts: list[str] = [prompt] if isinstance(prompt, str) else list(prompt)
        many = options.get("n", 1) > 1
        requests = [self._request(self.encode_prompt(p), options) for p in prompts]
        results = self._run(requests)
        shaped = [group if many else group[0] for group in results]
        return shaped[0] if single else shaped

    def stream(self, prompt: str | Sequence[Message], **options: Any) -> Stream:
        """Text pieces as they come, for a prompt or for chat messages; `.result` holds the whole at the end.

        Takes the options of `generate` (n=1, no beams).
        """
        if isinstance(prompt, str):
            return Stream(self, self._request(self.encode_prompt(prompt), options), None)
        rendered = self.render(prompt)
        return Stream(self, self._request(rendered.tokens, options), rendered)

    def ask(self, question: str, *, system: str | None = None, **options: Any) -> Answer:
        """Answer a question, greedily unless a temperature is given.  `confidence` stays None until one was fitted.

        Models without a chat template are asked in the form "Question: ... Answer:", ended by a blank line.
        """
        return self.stream_ask(question, system=system, **options).finish()

    def stream_ask(self, question: str, *, system: str | None = None, **options: Any) -> Stream:
        """The streaming form of `ask`."""
        request, rendered = self.question(question, system=system, **options)
        return Stream(self, request, rendered)

    def question(self, question: str, *, system: str | None = None, **options: Any) -> tuple[Request, Rendered]:
        """What `ask` sends to the model, for callers that schedule requests themselves."""
        if not question.strip():
            raise ValueError("the question is empty")
        options = {"temperature": 0.0, "max_tokens": 256, **options}
        if self.template is None:
            text = PLAIN_QUESTION.format(question=question if system is None else f"{system}\n{question}")
            options.setdefault("stop", ("\n\n", "\nQuestion:"))
            rendered = Rendered(text, self.encode_prompt(text), system_folded=system is not None)
        else:
            messages = [{"role": "system", "content": system}] if system is not None else []
            rendered = self.render([*messages, {"role": "user", "content": question}])
        return self._request(rendered.tokens, options), rendered

    def chat(self, messages: Sequence[Message], **options: Any) -> Answer:
        """The next assistant message; same options as `generate`, by default temperature 0.2, top_p 0.9."""
        return self.stream_chat(messages, **options).finish()

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> Stream:
        """The streaming form of `chat`."""
        options = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 512, **options}
        rendered = self.render(messages)
        return Stream(self, self._request(rendered.tokens, options), rendered)

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

    def _request(self, tokens: Sequence[int], options: dict[str, Any]) -> Request:
        options = dict(options)
        form, constraint = self._take_constraint(options)
        stop = options.pop("stop", ()) or ()
        named = {
            "samples": options.pop("n", 1),
            "drafter": self.drafter(options.pop("drafter", None if options.get("beams") else self.default_drafter)),
            "stop": (stop,) if isinstance(stop, str) else tuple(stop),
            "stop_tokens": frozenset(options.pop("stop_tokens", ()) or ()),
            "processed": options.pop("processed_logprobs", False),
            "constraint": constraint,
            "transforms": tuple(options.pop("transforms", ()) or ()),
        }
        sampling = {name: options.pop(name) for name in _SAMPLING if name in options}
        allowed = (*_SAMPLING, *_REQUEST, *_CONSTRAINT, *_ELSE)
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
        made = make_drafter(drafter, Needs(self.runtime, self.tokenizer, self._load_beside, self.share_memory))
        if remembered:
            self._drafters[drafter] = made
        return made

    def _usual_drafter(self) -> str:
        """What is used where nobody names a drafter.

        "auto" where the engine's numbers do not depend on how work is cut into calls (to about 1e-5 nats), so that the
        text stays a function of prompt, settings and seed: torch in fp32.  Elsewhere near-ties could fall by timing.
        """
        exact = self.info.runtime == "torch" and self.info.dtype == "float32"
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

    def _run(self, requests: Sequence[Request]) -> list[list[Generation]]:
        started = time.perf_counter()
        loop = self.loop()
        try:
            ids = [loop.add(request) for request in requests]
            done: dict[int, dict[int, Generation]] = {i: {} for i in ids}
            seconds = {}
            while not loop.idle:
                for event in loop.step():
                    if event.error:
                        raise event.error
                    if event.finish:
                        seconds[event.request] = time.perf_counter() - started
                        request = requests[ids.index(event.request)]
                        done[event.request][event.sample] = self.generation(request, event, seconds[event.request])
        finally:
            loop.close()
        return [[samples[k] for k in sorted(samples)] for samples in done.values()]

    def generation(self, request: Request, event: Event, seconds: float) -> Generation:
        """The public record of a finished sample."""
        finish = event.finish
        assert finish is not None
        return Generation(**self._fields(request, finish, event.sample, seconds))

    def _fields(self, request: Request, finish: Finished, sample: int, seconds: float) -> dict[str, Any]:
        total, mean = sums(finish.logprobs)
        name = self.tokenizer.token_text
        tops = [[TopLogprob(i, name(i), lp) for i, lp in row] for row in finish.tops] if request.top_logprobs else None
        return {
            "text": finish.text,
            "token_ids": finish.tokens,
            "token_logprobs": finish.logprobs,
            "sequence_logprob": total,
            "mean_logprob": mean,
            "finish_reason": finish.reason,
            "target_calls": finish.target_calls,
            "seconds": seconds,
            "tokens": [name(t) for t in finish.tokens],
            "prompt_tokens": len(request.prompt),
            "proposed": finish.proposed,
            "accepted": finish.accepted,
            "tokens_per_call": len(finish.tokens) / len(finish.rounds) if finish.rounds else None,
            "sample": sample,
            "seed": request.sampling.seed,
            "top_logprobs": tops,
            "processed_logprobs": finish.processed if request.processed else None,
            **self._guided_fields(request, finish, total),
        }

    def _guided_fields(self, request: Request, finish: Finished, total: float) -> dict[str, Any]:
        if request.constraint is None:
            return {}
        weight = float(sum(finish.log_masses))
        form, value, shares = request.form, None, None
        if form is not None and finish.complete:
            value = form.read(finish.text)
            shares = read_fields(
                finish.text, form, request.constraint, finish.tokens, self.tokenizer.token_bytes,
                finish.logprobs, finish.log_masses,
            )  # fmt: skip
        return {
            "token_log_masses": finish.log_masses,
            "log_weight": weight,
            "guided_logprob": total - weight,
            "complete": finish.complete,
            "approximate": finish.approximate,
            "value": value,
            "fields": shares[0] if shares else None,
            "structure": shares[1] if shares else None,
        }


_REQUEST = tuple(
    f.name
    for f in fields(Request)
    if f.name
    not in ("prompt", "sampling", "samples", "drafter", "stop", "stop_tokens", "processed", "constraint", "transforms", "form")
)
_SETTINGS = tuple(f.name for f in fields(FormSettings))
_CONSTRAINT = (*FORM_OPTIONS, "constraint", *_SETTINGS)
_ELSE = ("n", "drafter", "stop", "stop_tokens", "processed_logprobs", "transforms")


@dataclass(eq=False)
class Stream:
    """Text pieces of one generation, as an iterator; then `.result`.

    Stopped early (`close()`, or an exception such as Ctrl-C in the consumer), `.result` is the partial text with
    finish_reason "cancelled".
    """

    model: Model
    request: Request
    rendered: Rendered | None
    result: Answer | Generation | None = None
    _started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.request.samples > 1 or self.request.beams:
            raise CapabilityError("a stream is one text: use generate for n > 1 or beams")
        self._loop = self.model.loop()
        self._id = self._loop.add(self.request)
        self._pieces = self._run()

    @property
    def prompt(self) -> str:
        """The text that the model sees."""
        return self.rendered.text if self.rendered else ""

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def finish(self) -> Any:
        """Run to the end and give the result."""
        for _ in self._pieces:
            pass
        return self.result

    def close(self) -> Any:
        """Stop here; gives the partial result."""
        if self.result is None:
            self._loop.cancel(self._id)
            with contextlib.suppress(Exception):
                for event in self._loop.step():
                    self._take(event)
        self._loop.close()
        return self.result

    def _run(self) -> Iterator[str]:
        try:
            while not self._loop.idle:
                for event in self._loop.step():
                    if event.error:
                        raise event.error
                    self._take(event)
                    if event.text:
                        yield event.text
        finally:
            self.close()

    def _take(self, event: Event) -> None:
        if event.finish is None:
            return
        seconds = time.perf_counter() - self._started
        values = self.model._fields(self.request, event.finish, event.sample, seconds)
        if self.rendered is None:
            self.result = Generation(**values)
        else:
            self.result = Answer(**values, prompt=self.rendered.text, system_folded=self.rendered.system_folded)
