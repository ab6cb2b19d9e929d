"""What a chat request says about confidence, and the answer that it gets: given, abstained from, or of the fallback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from likely.decoding.options import OPTIONS
from likely.decoding.request import Finished
from likely.errors import CapabilityError, DataError
from likely.lm.confidence import Again, AnsweringModel, BoundPolicy, ConfidencePolicy, check_for_another, system_of
from likely.lm.model import Model
from likely.lm.results import Answer
from likely.serving.api.forms import form_options
from likely.serving.api.schemas import ChatRequest, served_name
from likely.serving.engine import Overloaded
from likely.serving.form_worker import FormDescription
from likely.serving.limits import ApiError
from likely.serving.routing.evidence import AnswerEvidence, evidence_of
from likely.serving.routing.router import Router, RoutingAttempt

Away = Callable[[Callable[[], AnswerEvidence]], Awaitable[AnswerEvidence]]
AUTO = "auto"  # the model's name for chats that the server routes between its model and the fallback
DECISION_FIELDS = ("confidence", "abstained", "answered_by", "why", "first")
_POLICY = ("at_least", "risk", "delta", "fallback")


@dataclass(frozen=True)
class RouterBinding:
    """The router's rule for the answers of one request for the model "auto".

    settings  options for the large model;  described: the form of the answer
    note_cost told what a decision cost
    """

    router: Router
    settings: Mapping[str, Any]
    described: FormDescription | None
    note_cost: Callable[[float], None]

    def evidence(self, answer: Answer) -> AnswerEvidence:
        """What the answer's tokens say of it; not for the event loop, since its form is followed token by token."""
        form = None if self.described is None else self.described.form
        return evidence_of(self.router.small, answer, form, valid=answer.complete is not False)

    def decide(self, answer: Answer, evidence: AnswerEvidence, again: Again) -> Answer:
        """The small model's answer with its confidence, or that of the large one."""
        large = self.router.large

        def ask_large() -> RoutingAttempt:
            given = {name: value for name, value in self.settings.items() if value is not None}
            other = again(large, {**given, "calibrator": None})
            return RoutingAttempt(replace(other, answered_by=large.info.name), answers=(other,))

        made = self.router.decide(RoutingAttempt(answer, evidence, answers=(answer,)), ask_large)
        self.note_cost(made.cost)
        first = replace(answer, confidence=made.p_correct, answered_by=self.router.small.info.name)
        if made.route == "large":
            return replace(made.answer, why=made.why, first=first)
        return replace(first, why=made.why) if made.why else first


def settings_of(asked: ChatRequest) -> dict[str, Any]:
    """The request as options of `Model.chat`: those on which the distribution of an answer depends."""
    names = [name for name, option in OPTIONS.items() if option.changes_answer and name in type(asked).model_fields]
    return {**{name: getattr(asked, name) for name in names}, **form_options(asked)}


class ChatConfidence:
    """Confidence for the chats of one served model.

    policy    what holds where a request does not say otherwise
    fallback  the model that requests may name instead of an answer below their threshold; None: no one may
    at_once   chats that may wait for the fallback, which answers one after the other on a thread of its own
    router    decides about chats that ask for the model "auto", calls of tools among them
    note_cost told what each of its decisions cost
    """

    def __init__(
        self, model: Model, policy: ConfidencePolicy, fallback: AnsweringModel | None, at_once: int,
        router: Router | None = None, note_cost: Callable[[float], None] = lambda cost: None,
    ):  # fmt: skip
        self._model, self._policy, self._fallback, self._at_once = model, policy, fallback, at_once
        self._router, self._note_cost = router, note_cost
        self._thread = ThreadPoolExecutor(1, "likely-fallback")
        self._waiting = 0

    @property
    def routes(self) -> bool:
        """Whether chats go to the fallback without asking for it: the server then offers the model "auto"."""
        return self._router is not None or (self._policy.has_threshold and self._policy.fallback is not None)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def bind(self, asked: ChatRequest, described: FormDescription | None) -> BoundPolicy | RouterBinding | None:
        """What is done about this request's answers; None where nobody wants to know.  ApiError 400, by field.

        described  the form that the request names
        """
        if asked.model == AUTO and self._router is not None:
            return self._routed(asked, self._router, described)
        if asked.model == AUTO and asked.calls_tools is not None:
            raise ApiError(
                400, f'tools: behind "{AUTO}" nothing is known of calls here, only of plain answers: start the server '
                f'with likely serve --router FILE, or ask "{served_name(self._model.info.name)}"',
                param="tools",
            )  # fmt: skip
        given = {name: getattr(asked, name) for name in _POLICY if name in asked.model_fields_set}
        field = next((name for name in given if name != "delta"), "confidence")
        if given.get("fallback") is not None:
            given["fallback"] = self._allowed(given["fallback"], asked)
        try:
            policy, _ = self._policy.override(given)
            if not (asked.confidence or policy.has_threshold):
                return None
            _check_known(asked, field)
            system = system_of(asked.conversation)
            return policy.bind(self._model, settings_of(asked), system, needed=True)
        except (DataError, ValueError) as error:
            raise ApiError(400, f"{field}: {error}", param=field) from None

    def _routed(self, asked: ChatRequest, router: Router, described: FormDescription | None) -> RouterBinding:
        """ApiError for what a router knows nothing of."""
        if own := [name for name in _POLICY if name in asked.model_fields_set]:
            raise ApiError(
                400, f'{own[0]}: the model "{AUTO}" has a threshold of its own: drop {own[0]}, or name the model',
                param=own[0],
            )  # fmt: skip
        if asked.n > 1:
            raise ApiError(400, f'n: "{AUTO}" gives one answer at a time, drop n', param="n")
        _check_known(asked, "model", tools=True)
        settings = settings_of(asked)
        if asked.calls_tools is not None and described is not None:
            settings["grammar"] = described.form.source
        try:
            check_for_another(settings)
        except CapabilityError as error:
            raise ApiError(400, f"model: {error}", param="model") from None
        return RouterBinding(router, settings, described, self._note_cost)

    def _allowed(self, name: str, asked: ChatRequest) -> AnsweringModel:
        known = None if self._fallback is None else served_name(self._fallback.info.name)
        if self._fallback is None or name != known:
            allowed = f'"{known}"' if known is not None else "none: start it with likely serve --fallback"
            raise ApiError(
                400, f'fallback: this server may not ask "{name[:100]}" (allowed: {allowed})', param="fallback"
            )
        if asked.n > 1:
            raise ApiError(400, "fallback: one answer at a time falls back, drop n", param="fallback")
        return self._fallback

    async def decide(
        self, bound: BoundPolicy | RouterBinding, asked: ChatRequest, finished: Finished, seed: int, away: Away, *,
        prompt_tokens: int, seconds: float,
    ) -> Answer:  # fmt: skip
        """The answer with its confidence, as `BoundPolicy.decide` has it.  Cancelling the caller stops the fallback.

        away  runs what takes milliseconds on the thread that prepares prompts and forms
        prompt_tokens, seconds  of the first answer, which a router's prices may count
        """
        answer = Answer(
            finished.text,
            finished.tokens,
            finished.logprobs,
            None,
            None,
            finished.reason,
            None,
            seconds,
            prompt_tokens=prompt_tokens,
            token_log_masses=finished.log_masses or None,
            complete=finished.complete,
        )  # what a decision looks at
        stopped = threading.Event()

        def again(other: AnsweringModel, settings: dict[str, Any]) -> Answer:
            own = self._model.own_settings.items()  # not those of another model
            given = {name: value for name, value in settings.items() if (name, value) not in own}
            stream = other.stream_chat(asked.conversation, **{**given, "seed": seed})
            for _ in stream:
                if stopped.is_set():
                    return stream.close()
            return stream.result

        if isinstance(bound, RouterBinding):
            evidence = await away(partial(bound.evidence, answer))
            decide, given = partial(bound.decide, answer, evidence, again), bound.router.gives(evidence)
        else:
            decide = partial(bound.decide, answer, again)
            given = bound.policy.fallback is None or bound.answers(answer)
        if given:
            return decide()
        if self._waiting >= self._at_once:
            raise Overloaded(self._at_once)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, decide)
        finally:
            stopped.set()
            self._waiting -= 1


def _check_known(asked: ChatRequest, field: str, *, tools: bool = False) -> None:
    """ApiError for an answer of another kind than those that calibrators are fitted on; tools: of calls, too."""
    others = {
        "tools": not tools and asked.calls_tools is not None,
        "continue_final_message": asked.begun is not None,
        "ignore_eos": asked.ignore_eos,
    }
    for name, given in others.items():
        if given:
            raise ApiError(
                400, f"{field}: nothing is known of answers with {name}, only of plain ones: drop one of the two",
                param=field,
            )  # fmt: skip


def withholds(bound: BoundPolicy | RouterBinding | None) -> bool:
    """Whether nothing of a text may be sent before it is known whether it is given."""
    return isinstance(bound, RouterBinding) or (bound is not None and bound.rule is not None)


def route_headers(bound: BoundPolicy | RouterBinding | None, answers: Sequence[Answer | None]) -> dict[str, str]:
    """Whose answers the choices of a reply are, and how sure the small model was of its own; "-": it said nothing."""
    made = [(route, answer) for answer in answers if answer is not None and (route := route_of(bound, answer))]
    if not made:
        return {}
    sure = [(answer.first or answer).confidence for _, answer in made]
    return {
        "x-likely-route": ", ".join(route for route, _ in made),
        "x-likely-confidence": ", ".join("-" if p is None else f"{p:.4f}" for p in sure),
    }


def route_of(bound: BoundPolicy | RouterBinding | None, answer: Answer) -> str | None:
    """Whose answer it is, where there is a fallback: "small", "large" or "small-large-unavailable"."""
    if not withholds(bound) or (isinstance(bound, BoundPolicy) and bound.policy.fallback is None):
        return None
    if answer.first is not None:
        return "large"
    return "small-large-unavailable" if answer.why else "small"


def decision_fields(bound: BoundPolicy | RouterBinding | None, answer: Answer | None) -> dict[str, Any]:
    """What a choice says beyond OpenAI's fields."""
    if bound is None or answer is None:
        return {}
    if not withholds(bound):
        return {"confidence": answer.confidence}
    fields = answer.to_dict()
    found: dict[str, Any] = {name: fields[name] for name in DECISION_FIELDS if name in fields}
    if found["answered_by"] is not None:
        found["answered_by"] = served_name(found["answered_by"])
    return found
