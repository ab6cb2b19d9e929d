"""How well a model calls functions: BFCL's cases, written freely, held to the schema, or repaired.

Styles: "prompted" asks for JSON in a plain question, "native" offers tools in the chat template.
Modes: "unconstrained" writes as it likes; "constrained" is held to the schema; "repaired" writes as it likes, and what
the checks refuse is asked for again, at most twice, then held to the schema.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from likely.audit.function_calling import CATEGORIES, FunctionCase, PredictedCall, as_functions, check_case
from likely.errors import ConstraintError, KvFull, ModelError, check_choice
from likely.lm.base import LanguageModel
from likely.lm.confidence import AskOptions
from likely.lm.options import TextOptions
from likely.lm.results import Answer
from likely.serving.tools.agent import MAX_REPAIRS, read_reply, reply_with_tools
from likely.serving.tools.grammar import ToolChoice
from likely.serving.tools.prompted import call_prompt, call_schema, read_calls, read_free_calls, repair_prompt
from likely.serving.tools.registry import Tool
from likely.serving.tools.report import EnergyMeter, Prices, TaskRecord, task_report
from likely.serving.tools.toolbox import CallResult, Toolbox

CallingMode = Literal["unconstrained", "constrained", "repaired"]
Style = Literal["prompted", "native"]
MODES: tuple[CallingMode, ...] = ("unconstrained", "constrained", "repaired")
_NO_ANSWER = (ConstraintError, KvFull, ModelError)  # errors that are of one case


@dataclass(frozen=True)
class EvaluationSettings:
    """How functions are called.

    choice      native: "auto" the model decides whether to call, "required" it must
    max_string  bound of texts where a schema has none: small models loop there
    prices      of the model, for the cost per solved case;  watts: of a busy core, where energy is estimated
    """

    mode: CallingMode = "constrained"
    style: Style = "prompted"
    choice: Literal["auto", "required"] = "auto"
    max_tokens: int = 192
    max_repairs: int = MAX_REPAIRS
    max_string: int = 200
    prices: Prices = field(default_factory=lambda: Prices(call=1.0))
    watts: float = 10.0

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("style", self.style, ("prompted", "native"))
        check_choice("choice", self.choice, ("auto", "required"))

    def check_categories(self, categories: Sequence[str]) -> None:
        """ValueError for one whose right answer these settings make impossible."""
        for category in categories:
            check_choice("category", category, CATEGORIES)
            if "relevance" in category and self.style == "prompted" and self.mode != "unconstrained":
                raise ValueError(
                    f"{category}: a prompted answer that is held to the schema always calls: give style native"
                )

    def to_dict(self) -> dict[str, Any]:
        """What the calls depend on."""
        return {name: value for name, value in vars(self).items() if name not in ("prices", "watts")}


@dataclass(frozen=True)
class CaseResult:
    """What became of one case; `record` holds its part in the report, `answer` the last reply (not kept in files)."""

    id: str
    category: str
    text: str
    calls: list[tuple[str, str]]
    problem: str | None
    why: str
    record: TaskRecord
    answer: Answer | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        held = {name: value for name, value in vars(self).items() if name not in ("record", "answer")}
        return {**held, "calls": [list(call) for call in self.calls], **vars(self.record)}

    @classmethod
    def of_dict(cls, held: Mapping[str, Any]) -> CaseResult:
        record = TaskRecord(**{name: held[name] for name in TaskRecord.__dataclass_fields__})
        calls = [(name, arguments) for name, arguments in held["calls"]]
        return cls(held["id"], held["category"], held["text"], calls, held["problem"], held["why"], record)


def document_tools(functions: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """Functions of which only the schema is known, as tools that do nothing: a call is checked, not carried out."""
    return [
        Tool(_nothing, f["name"], f.get("description", ""), "pure", schema=f["parameters"]) for f in functions
    ]  # fmt: skip


def _nothing(**arguments: object) -> None:
    return None


def evaluate_cases(
    lm: LanguageModel, cases: Sequence[FunctionCase], settings: EvaluationSettings | None = None
) -> Iterator[CaseResult]:
    """Each case as soon as it is done."""
    settings = settings or EvaluationSettings()
    settings.check_categories(sorted({case.category for case in cases}))
    for case in cases:
        yield evaluate_case(lm, case, settings)


def evaluate_case(lm: LanguageModel, case: FunctionCase, settings: EvaluationSettings) -> CaseResult:
    """Ask, check, repair where that is wanted, and compare with the answer key."""
    functions, names = as_functions(case.functions)
    box = Toolbox(document_tools(functions))
    attempt = _prompted(lm, case, functions, settings) if settings.style == "prompted" else _native(
        lm, case, functions, settings
    )  # fmt: skip
    structured = case.kind != "none"
    problems: list[str] = []
    made: list[tuple[Answer, list[CallResult]]] = []
    text, calls, valid_first, why_none = "", list[tuple[str, str]](), False, ""
    started = time.perf_counter()
    with EnergyMeter(watts=settings.watts) as meter:
        for number in range(1 + (settings.max_repairs if settings.mode == "repaired" else 0)):
            try:
                answer, calls = attempt(number, text, problems)
            except _NO_ANSWER as error:
                why_none, calls, problems = str(error), [], [str(error)]
                break
            text = answer.text
            results = [box.execute(name, arguments) for name, arguments in calls]
            made.append((answer, results))
            problems = [f"{r.observation.path or r.name}: {r.observation.message}" for r in results if r.observation]
            if not calls and structured:
                problems = ["it holds no call that can be read"]
            valid_first = valid_first or (number == 0 and not problems)
            if not problems:
                break
    verdict = check_case(case, [_read(names, name, arguments) for name, arguments in calls])
    last = made[-1][1] if made else []
    record = TaskRecord(
        solved=verdict.passed,
        cost=sum(
            settings.prices.cost(prompt_tokens=a.prompt_tokens or 0, tokens=len(a.token_ids or a.tokens or ()))
            for a, _ in made
        ),
        seconds=time.perf_counter() - started,
        structured=structured,
        valid_first=valid_first,
        valid=not problems,
        calls_made=len(calls),
        calls_executed=sum(result.outcome == "done" for result in last),
        selected=_selected(case, names, calls),
        repairs=max(0, len(made) - 1),
        joules=meter.joules,
    )
    return CaseResult(
        case.id, case.category, text, calls, verdict.problem, why_none or verdict.why, record,
        made[-1][0] if made else None,
    )  # fmt: skip


AskOnce = Callable[[int, str, Sequence[str]], tuple[Answer, list[tuple[str, str]]]]


def _prompted(
    lm: LanguageModel, case: FunctionCase, functions: Sequence[Mapping[str, Any]], settings: EvaluationSettings
) -> AskOnce:
    several = case.kind == "several"
    question = "\n".join(message["content"] for message in case.messages)
    prompt = call_prompt(question, functions, several=several)
    form: TextOptions = {
        "schema": call_schema(functions, several=several), "on_unsupported": "ignore",
        "max_string": settings.max_string,
    }  # fmt: skip

    def attempt(number: int, before: str, problems: Sequence[str]) -> tuple[Answer, list[tuple[str, str]]]:
        options: AskOptions = {"max_tokens": settings.max_tokens, "calibrator": None}
        if settings.mode == "constrained" or number:
            options = {**options, **form}
        answer = lm.ask(repair_prompt(prompt, before, problems) if number else prompt, **options)
        return answer, read_calls(answer.text) or []

    return attempt


def _native(
    lm: LanguageModel, case: FunctionCase, functions: Sequence[Mapping[str, Any]], settings: EvaluationSettings
) -> AskOnce:
    said: list[dict[str, Any]] = [dict(message) for message in case.messages]
    options: TextOptions = {"max_tokens": settings.max_tokens, "temperature": 0.0}

    def attempt(number: int, before: str, problems: Sequence[str]) -> tuple[Answer, list[tuple[str, str]]]:
        choice = ToolChoice(settings.choice, parallel=True) if settings.mode == "constrained" else None
        if number:
            choice = ToolChoice("required")
            listed = "; ".join(problems)
            said.extend([
                {"role": "assistant", "content": before or "(nothing)"},
                {"role": "user", "content": f"This was refused: {listed}. Call the function again."},
            ])  # fmt: skip
        answer = reply_with_tools(lm, said, functions, choice, options)
        return answer, read_free_calls(answer.text) if choice is None else read_reply(answer.text)[1]

    return attempt


def _read(names: Mapping[str, str], name: str, arguments: str) -> PredictedCall:
    """A call in the words of the documents; arguments that are no JSON object are none."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        given = {}
    return PredictedCall(names.get(name, name), given if isinstance(given, dict) else {})


def _selected(case: FunctionCase, names: Mapping[str, str], calls: Sequence[tuple[str, str]]) -> bool | None:
    """Whether the right functions were called, whatever their arguments; None where no key says which."""
    if case.kind in ("none", "any"):
        return None
    return sorted(names.get(name, name) for name, _ in calls) == sorted(name for key in case.expected for name in key)


def evaluation_report(results: Sequence[CaseResult]) -> dict[str, Any]:
    """The report of all cases and of each category; "success" is BFCL's AST accuracy."""
    by_category: dict[str, list[TaskRecord]] = {}
    for result in results:
        by_category.setdefault(result.category, []).append(result.record)
    measured = EnergyMeter().source
    return {
        "all": task_report([result.record for result in results], measured_by=measured),
        "categories": {name: task_report(records, measured_by=measured) for name, records in by_category.items()},
    }
