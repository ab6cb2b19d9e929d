"""A router from labelled tasks: one half fits the confidence and the threshold, the other half judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from likely.calibration.calibrator import folds_of
from likely.errors import DataError
from likely.lm.base import LanguageModel
from likely.lm.confidence import IfUnavailable
from likely.lm.model import Model
from likely.lm.options import TextOptions
from likely.lm.results import Answer
from likely.metrics.intervals import wilson
from likely.metrics.ranking import aurc, auroc
from likely.serving.routing.evidence import fit_confidence
from likely.serving.routing.policy import RoutingPolicy
from likely.serving.routing.router import (
    LARGE_PRICES,
    SMALL_PRICES,
    RoutedResponse,
    Router,
    RoutingAttempt,
    attempt_ask,
    attempt_calls,
)
from likely.serving.tools.agent import MAX_REPAIRS
from likely.serving.tools.grammar import ToolChoice
from likely.serving.tools.report import Prices, TaskRecord, task_report
from likely.serving.tools.toolbox import Toolbox

FEWEST = 40  # tasks, of which half are calibrated on


@dataclass(frozen=True)
class RoutingTask:
    """A question whose right answer is known to the checker.

    options  a form among them
    tools    that the models may call, checked and not executed; the checker reads the calls with `read_reply`
    choice   whether they must, see `ToolChoice`
    """

    id: str
    question: str
    reference: Any = None
    system: str | None = None
    options: TextOptions = field(default_factory=TextOptions)
    tools: Toolbox | None = None
    choice: ToolChoice | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, {"role": "user", "content": self.question}]


Checker = Callable[[RoutingTask, Answer], bool]


@dataclass(frozen=True)
class FittedRouter:
    """A router, and the tasks that it may be judged on.

    calibrated   ids of the tasks that fitted it: figures on these would flatter it and are refused
    evaluation   the tasks that were set aside
    """

    router: Router
    calibrated: frozenset[str]
    evaluation: Sequence[RoutingTask]
    checker: Checker

    def report(self, tasks: Sequence[RoutingTask] | None = None) -> dict[str, Any]:
        """Ask the router these tasks, by default those set aside, and report; DataError for one that it was fitted on.

        Beside `task_report`: AUROC and AURC of the small model's confidence as far as its answers were given or the
        labels say, the error rate among its given answers with Wilson's interval, and what the policy promised.
        """
        asked = self.evaluation if tasks is None else tasks
        if known := sorted(task.id for task in asked if task.id in self.calibrated):
            raise DataError(f"{len(known)} of these tasks fitted the router ({known[0]}): report on others")
        found = [(task, _routed(self.router, task)) for task in asked]
        return routing_report(self.router, [(response, self.checker(t, response.answer)) for t, response in found])


def routing_report(router: Router, found: Sequence[tuple[RoutedResponse, bool]]) -> dict[str, Any]:
    """Figures of answers that a router gave, each with whether it is right."""
    records = [
        TaskRecord(
            solved=right, cost=r.cost, seconds=r.latency_s, valid_first=r.evidence.valid and not r.evidence.repairs,
            valid=r.evidence.valid, repairs=r.evidence.repairs, fell_back=r.route != "small",
        )
        for r, right in found
    ]  # fmt: skip
    given = [(r, right) for r, right in found if r.route == "small"]
    wrong = sum(not right for _, right in given)
    low, high = wilson(wrong, len(given))
    report = task_report(records)
    report["policy"] = {"text": router.policy.text(), **router.rule.to_dict()}
    report["small_answers"] = {"n": len(given), "wrong": wrong, "error": wrong / len(given) if given else None,
                               "low": low, "high": high}  # fmt: skip
    known = [(r.p_correct, right) for r, right in given if r.p_correct is not None]
    labels = [right for _, right in known]
    report["auroc_among_given"] = auroc(*zip(*known, strict=True)) if len(set(labels)) == 2 else None
    report["aurc_among_given"] = aurc(*zip(*known, strict=True)) if known else None
    return report


def fit_router(
    tasks: Sequence[RoutingTask],
    small: Model,
    large: LanguageModel,
    checker: Checker,
    *,
    policy: RoutingPolicy,
    method: str = "auto",
    seed: int = 0,
    small_prices: Prices = SMALL_PRICES,
    large_prices: Prices = LARGE_PRICES,
    if_unavailable: IfUnavailable = "error",
) -> FittedRouter:
    """Ask the small model half of the tasks, fit its confidence and the policy's threshold, set the other half aside.

    The large model is not asked: what a policy needs to know of it, the policy says.  DataError for too few tasks, or
    where all answers are right or all wrong.
    """
    if len({task.id for task in tasks}) < len(tasks):
        raise DataError("two tasks have one id")
    if len(tasks) < FEWEST:
        raise DataError(f"{len(tasks)} tasks are too few: at least {FEWEST} are needed, half of them to judge by")
    half = folds_of(np.zeros(len(tasks), np.int64), 2, seed)
    first = [task for task, part in zip(tasks, half, strict=True) if part == 0]
    attempts = [_attempt(small, task) for task in first]
    evidence = [attempt.evidence for attempt in attempts if attempt.evidence is not None]
    correct = [checker(task, attempt.answer) for task, attempt in zip(first, attempts, strict=True)]
    if len(set(correct)) < 2:
        raise DataError(
            f"all {len(first)} answers of {small.info.name} are {'right' if correct[0] else 'wrong'}: there is nothing "
            f"to route by"
        )
    try:
        confidence = fit_confidence(evidence, correct, method=method)
    except ValueError as error:
        raise DataError(str(error)) from None
    router = Router(
        small, large, confidence=confidence, policy=policy, small_prices=small_prices, large_prices=large_prices,
        if_unavailable=if_unavailable,
    )  # fmt: skip
    rest = [task for task, part in zip(tasks, half, strict=True) if part == 1]
    return FittedRouter(router, frozenset(task.id for task in first), rest, checker)


def _attempt(lm: Model, task: RoutingTask) -> RoutingAttempt:
    if task.tools is None:
        return attempt_ask(lm, task.question, task.system, task.options)
    return attempt_calls(lm, task.messages, task.tools, task.choice, MAX_REPAIRS, task.options)


def _routed(router: Router, task: RoutingTask) -> RoutedResponse:
    if task.tools is None:
        return router.ask(task.question, system=task.system, **task.options)
    return router.chat(task.messages, tools=task.tools, choice=task.choice, **task.options)
