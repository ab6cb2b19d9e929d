"""The router: the small model answers, its confidence decides, and only then the large model is asked.

router = Router(small, large, confidence=calibrator, policy=RiskControlled(0.05))
response = router.ask("Which city?", schema=City)
response.answer.value, response.route, response.p_correct, response.cost
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

from likely.calibration.calibrator import Calibrator
from likely.calibration.threshold import AbstentionRule
from likely.decoding.options import check_names
from likely.errors import DataError, RemoteError, check_choice
from likely.guided.form import Form, FormSettings, make_form
from likely.lm.base import LanguageModel
from likely.lm.confidence import AskOptions, IfUnavailable
from likely.lm.model import Model
from likely.lm.options import FORM_SETTINGS, FORMS, TextOptions
from likely.lm.results import Answer
from likely.models.chat_template import Message
from likely.serving.routing.evidence import AnswerEvidence, evidence_of
from likely.serving.routing.policy import RoutingPolicy, parse_policy
from likely.serving.tools.agent import MAX_REPAIRS, read_reply, reply_with_tools
from likely.serving.tools.grammar import ToolChoice, tool_form
from likely.serving.tools.registry import Observation
from likely.serving.tools.report import Prices
from likely.serving.tools.toolbox import Toolbox

Route = Literal["small", "large", "small, large unavailable"]
SMALL_PRICES, LARGE_PRICES = Prices(call=1.0), Prices(call=20.0)
ROUTER = "router"  # where a calibrator's `about` holds what the router was


@dataclass(frozen=True)
class RoutedResponse:
    """An answer, and how it came about.

    route      whose answer it is; "small, large unavailable": the large model was to answer and could not be asked
    p_correct  of the small model's answer; None where it says nothing, its form left nothing to choose
    why        in one line why the large model was asked, "" where it was not
    calls      of tools that the answer makes (name, arguments as JSON), checked and not yet executed
    refused    what checks refused in the small model's attempts, in order
    cost       of all attempts, by the router's prices
    """

    answer: Answer
    route: Route
    p_correct: float | None
    evidence: AnswerEvidence
    cost: float
    latency_s: float
    why: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    refused: tuple[Observation, ...] = ()

    @property
    def features(self) -> dict[str, Any]:
        return self.evidence.to_dict()

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.answer.text, "route": self.route, "p_correct": self.p_correct, "why": self.why,
            "features": self.features, "cost": self.cost, "latency_s": self.latency_s,
            "calls": [list(call) for call in self.calls], "refused": [each.to_dict() for each in self.refused],
        }  # fmt: skip


@dataclass(frozen=True)
class RoutingAttempt:
    """What one model made of a task: its last answer, calls that passed every check, what was refused, all answers."""

    answer: Answer
    evidence: AnswerEvidence | None = None
    calls: tuple[tuple[str, str], ...] = ()
    refused: tuple[Observation, ...] = ()
    answers: tuple[Answer, ...] = ()


class Router:
    """A small model of this machine first, a larger one (here or behind a server) where the policy says so.

    confidence      fitted on labelled answers of the small model, see `fit_router` and `fit_confidence`
    if_unavailable  what happens where the large model is to answer and cannot be reached: "error" raises RemoteError,
                    "answer" gives the small model's answer, with a route that says so
    small_prices, large_prices  for `cost`
    """

    def __init__(
        self,
        small: Model,
        large: LanguageModel,
        *,
        confidence: Calibrator,
        policy: RoutingPolicy,
        small_prices: Prices = SMALL_PRICES,
        large_prices: Prices = LARGE_PRICES,
        if_unavailable: IfUnavailable = "error",
    ):
        check_choice("if_unavailable", if_unavailable, ("error", "answer"))
        confidence.check_answers()
        self.small, self.large, self.confidence, self.policy = small, large, confidence, policy
        self.small_prices, self.large_prices, self.if_unavailable = small_prices, large_prices, if_unavailable
        self.rule: AbstentionRule = policy.rule(confidence)

    def ask(self, question: str, *, system: str | None = None, **options: Unpack[TextOptions]) -> RoutedResponse:
        """Answer a question; options as those of `Model.ask`, a form among them."""
        return self._route(
            lambda: attempt_ask(self.small, question, system, options),
            lambda: _other(self.large.ask(question, system=system, **_plain(options))),
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Toolbox | None = None,
        choice: ToolChoice | None = None,
        max_repairs: int = MAX_REPAIRS,
        **options: Unpack[TextOptions],
    ) -> RoutedResponse:
        """The next message of a conversation.

        tools  may be called: calls are checked, repaired at most `max_repairs` times by the model itself, and handed
               back in `calls`.  None is executed before it is known whose answer this is; the caller does:
               `tools.execute(name, arguments)`.  Calls that are still refused fall back
        """
        if tools is None:
            return self._route(
                lambda: attempt_chat(self.small, messages, options),
                lambda: _other(self.large.chat(messages, **_plain(options))),
            )
        box = tools
        return self._route(
            lambda: attempt_calls(self.small, messages, box, choice, max_repairs, options),
            lambda: attempt_calls(self.large, messages, box, choice, max_repairs, options),
        )

    def save(self, path: Path) -> None:
        """Keep confidence, policy and prices in a file for `load_router`; the models stay where they are."""
        kept = {
            "policy": self.policy.text(), "small": self.small.info.sha256, "if_unavailable": self.if_unavailable,
            "small_prices": vars(self.small_prices), "large_prices": vars(self.large_prices),
        }  # fmt: skip
        replace(self.confidence, about={**self.confidence.about, ROUTER: kept}).save(path)

    def gives(self, evidence: AnswerEvidence) -> bool:
        """Whether the small model's answer is given; where its form leaves no choice, nobody could answer otherwise."""
        confidence = evidence.confidence(self.confidence)
        return evidence.valid and (confidence is None or self.rule.answers(confidence))

    def _route(
        self, ask_small: Callable[[], RoutingAttempt], ask_large: Callable[[], RoutingAttempt]
    ) -> RoutedResponse:
        started = time.perf_counter()
        return self.decide(ask_small(), ask_large, started=started)

    def decide(
        self, first: RoutingAttempt, ask_large: Callable[[], RoutingAttempt], *, started: float | None = None
    ) -> RoutedResponse:
        """Give the small model's attempt, or ask the large one; started: when the task began (`time.perf_counter`)."""
        started = time.perf_counter() if started is None else started
        evidence = first.evidence
        assert evidence is not None
        confidence = evidence.confidence(self.confidence)
        cost = self._cost(self.small_prices, first.answers)

        def response(given: RoutingAttempt, route: Route, why: str, more: float = 0.0) -> RoutedResponse:
            seconds = time.perf_counter() - started
            return RoutedResponse(
                given.answer, route, confidence, evidence, cost + more, seconds, why, given.calls, first.refused
            )

        if self.gives(evidence):
            return response(first, "small", "")
        why = self.rule.why(confidence) if evidence.valid else "the checks refused it"
        try:
            second = ask_large()
        except RemoteError as error:
            if self.if_unavailable == "error":
                raise
            return response(first, "small, large unavailable", f"{why}; {error}")
        return response(second, "large", why, self._cost(self.large_prices, second.answers))

    def _cost(self, prices: Prices, answers: Sequence[Answer]) -> float:
        return sum(
            prices.cost(prompt_tokens=a.prompt_tokens or 0, tokens=len(a.token_ids or a.tokens or ()),
                        seconds=a.seconds)
            for a in answers
        )  # fmt: skip


def load_router(path: str | Path, small: Model, large: LanguageModel) -> Router:
    """The router that `Router.save` kept; DataError for another small model, or a file that is no router."""
    confidence = Calibrator.load(path)
    kept = confidence.about.get(ROUTER)
    if not isinstance(kept, dict):
        raise DataError(f"{path} is a calibrator, not a router: make one with fit_router")
    if kept.get("small") != small.info.sha256:
        raise DataError(f"{path} was fitted for other weights than those of {small.info.name}: fit one for these")
    try:
        return Router(
            small, large, confidence=confidence, policy=parse_policy(kept["policy"]),
            small_prices=Prices(**kept["small_prices"]), large_prices=Prices(**kept["large_prices"]),
            if_unavailable=kept["if_unavailable"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def attempt_ask(lm: Model, question: str, system: str | None, options: TextOptions) -> RoutingAttempt:
    """The small model's answer to a question, with its evidence."""
    answer = lm.ask(question, system=system, **_plain(options))
    return _attempt(lm, answer, _form_of(options))


def attempt_chat(lm: Model, messages: Sequence[Message], options: TextOptions) -> RoutingAttempt:
    """The same for the next message of a conversation."""
    return _attempt(lm, lm.chat(messages, **_plain(options)), _form_of(options))


def attempt_calls(
    lm: LanguageModel, messages: Sequence[Message], box: Toolbox, choice: ToolChoice | None, max_repairs: int,
    options: TextOptions,
) -> RoutingAttempt:  # fmt: skip
    """A reply with calls that were checked, none of them executed, after at most `max_repairs` repairs."""
    said: list[dict[str, Any]] = [dict(message) for message in messages]
    wanted, answers, refused = choice or ToolChoice(), list[Answer](), list[Observation]()
    while True:
        answer = reply_with_tools(lm, said, box.functions, wanted, options)
        answers.append(answer)
        _, calls = read_reply(answer.text)
        wrong = [found for name, arguments in calls if (found := box.check(name, arguments)) is not None]
        if not wrong or len(answers) > max_repairs:
            break
        refused += wrong
        told = "; ".join(f"{each.stage} {each.path}: {each.message}" for each in wrong)
        said += [
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": f"This was refused: {told}. Call the function again."},
        ]
        wanted = ToolChoice("required", wanted.name, wanted.parallel)
    evidence = None
    if isinstance(lm, Model):
        form = tool_form(box.functions, wanted)
        evidence = evidence_of(lm, answer, form, valid=not wrong, repairs=len(answers) - 1)
    return RoutingAttempt(answer, evidence, () if wrong else tuple(calls), (*refused, *wrong), tuple(answers))


def _other(answer: Answer) -> RoutingAttempt:
    return RoutingAttempt(answer, answers=(answer,))


def _attempt(lm: Model, answer: Answer, form: Form | None) -> RoutingAttempt:
    evidence = evidence_of(lm, answer, form, valid=answer.complete is not False)
    return RoutingAttempt(answer, evidence, answers=(answer,))


def _form_of(options: TextOptions) -> Form | None:
    """The form that the options name, as `Model.ask` makes it."""
    given = {name: options[name] for name in FORMS if options.get(name) is not None}  # type: ignore[literal-required]
    if not given:
        return None
    settings = {name: options[name] for name in FORM_SETTINGS if name in options}  # type: ignore[literal-required]
    return make_form(**given, settings=FormSettings(**settings))


def _plain(options: TextOptions) -> AskOptions:
    """Options of an answer that nobody else decides about."""
    check_names(options, TextOptions.__annotations__)
    return {**options, "calibrator": None}
