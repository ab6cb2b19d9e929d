"""How likely an answer is right, and what follows: give it, abstain, or ask another model.

A `ConfidencePolicy` says what is wanted; bound to a model and the settings of its answers it knows the calibrator that
was fitted for exactly these, the threshold with its guarantee, and the model to fall back on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack

from likely.calibration.calibrator import Calibrator, binding
from likely.calibration.recalibrators.answer import within_form
from likely.calibration.store import accept, check_task, find, folder, named, why_none
from likely.calibration.threshold import DELTA, AbstentionRule, abstention_rule, what_it_takes
from likely.errors import CapabilityError, DataError, RemoteError, check_choice
from likely.lm.options import ASK_DEFAULTS, OPTIONS, TextOptions
from likely.lm.results import Answer, AnswerStream
from likely.metrics.checks import check_share
from likely.models.chat_template import Message
from likely.models.load import ModelInfo

IfUnavailable = Literal["error", "answer"]
KEPT = "kept"  # the calibrator that `likely calibrate fit` kept for this model, these settings and the task


class ThresholdOptions(TypedDict, total=False):
    """Where confidence comes from and how much of it an answer needs; see `ConfidencePolicy`."""

    calibrator: str | Path | Calibrator | None
    task: str
    at_least: float | None
    risk: float | None
    delta: float


class ConfidenceOptions(ThresholdOptions, total=False):
    """The same, who is asked instead, and what is done where that one cannot be reached."""

    fallback: str | AnsweringModel | None
    if_unavailable: IfUnavailable


class AskOptions(TextOptions, ConfidenceOptions, total=False):
    """What `ask` and `chat` take."""


class AnsweringModel(Protocol):
    """What a policy asks of the model whose answers it is for, and of the one that is asked instead."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def template_hash(self) -> str | None: ...
    def settings(self, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]: ...
    def beside(self, name: str) -> AnsweringModel: ...
    def ask(self, question: str, *, system: str | None = None, **options: Unpack[AskOptions]) -> Answer: ...
    def chat(self, messages: Sequence[Message], **options: Unpack[AskOptions]) -> Answer: ...
    def stream_chat(self, messages: Sequence[Message], **options: Unpack[AskOptions]) -> AnswerStream: ...


Again = Callable[[AnsweringModel, dict[str, Any]], Answer]  # asks a model the same, with these options


@dataclass(frozen=True)
class ConfidencePolicy:
    """What is done about the confidence of answers.

    calibrator  "kept": the one that was kept for these answers, if there is one;  a file or an object: that one,
                DataError if it was fitted for something else;  None: answers have no confidence
    task        which of the kept calibrators
    at_least    give only answers of this confidence or more
    risk        give only answers of which at most this share is wrong, by the labelled items (one of the two)
    delta       how often the guarantee of either may fail, over labelled sets that one might have drawn
    fallback    model (a name, a URL, an opened one) that is asked instead of giving no answer
    if_unavailable  where the server of the fallback cannot be reached: "error", or "answer": the first answer, whose
                    `why` then says so
    """

    calibrator: str | Path | Calibrator | None = KEPT
    task: str = "default"
    at_least: float | None = None
    risk: float | None = None
    delta: float = DELTA
    fallback: str | AnsweringModel | None = None
    if_unavailable: IfUnavailable = "error"

    def __post_init__(self) -> None:
        check_task(self.task)
        check_choice("if_unavailable", self.if_unavailable, ("error", "answer"))
        check_share(at_least=self.at_least, risk=self.risk, delta=self.delta)
        if self.at_least is not None and self.risk is not None:
            raise ValueError("give one of at_least and risk")
        if self.fallback is not None and not self.has_threshold:
            raise ValueError("fallback needs at_least or risk")

    @property
    def has_threshold(self) -> bool:
        return self.at_least is not None or self.risk is not None

    def override(self, options: Mapping[str, Any]) -> tuple[ConfidencePolicy, dict[str, Any]]:
        """This policy with what a call says otherwise, and the other options of the call.

        A call that names a threshold names the only one; calibrator=None asks for no confidence and no threshold.
        """
        given = {f.name: options[f.name] for f in fields(self) if f.name in options}
        rest = {name: value for name, value in options.items() if name not in given}
        if not given:
            return self, rest
        if given.get("at_least") is not None or given.get("risk") is not None:
            given = {"at_least": None, "risk": None, **given}
        elif given.get("calibrator", KEPT) is None:
            given = {"at_least": None, "risk": None, "fallback": None, **given}
        return replace(self, **given), rest

    def bind(
        self, lm: AnsweringModel, settings: Mapping[str, Any], system: str | None = None, *, needed: bool = False
    ) -> BoundPolicy:
        """The policy for this model's answers with these settings.

        needed  DataError where there is no calibrator for them, as with a threshold
        """
        if self.calibrator is None:
            calibrator = None
        elif self.calibrator == KEPT:  # where nothing was ever kept, there is nothing to hash
            kept = (folder() / self.task).is_dir()
            calibrator = find(binding_of(lm, settings, system), self.task) if kept else None
        elif isinstance(self.calibrator, Calibrator):
            calibrator = accept(self.calibrator, binding_of(lm, settings, system), "this calibrator")
        else:
            calibrator = named(self.calibrator, binding_of(lm, settings, system))
        if calibrator is None:
            if needed or self.has_threshold:
                takes = "" if self.risk is None else f"; {what_it_takes(self.risk, self.delta)}"
                raise DataError(
                    f"{why_none(binding_of(lm, settings, system), self.task)}: likely ask FILE -o, likely grade -o and "
                    f"likely calibrate fit make one{takes}"
                )
            return BoundPolicy(self, lm, settings, None, None)
        rule = None
        if self.has_threshold:
            rule = abstention_rule(calibrator, at_least=self.at_least, risk=self.risk, delta=self.delta)
            if self.fallback is not None:
                check_for_another(settings)
        return BoundPolicy(self, lm, settings, calibrator, rule)


@dataclass(frozen=True)
class BoundPolicy:
    """A policy for the answers of one model with certain settings.

    calibrator  None: answers have no confidence;  rule: None: every answer is given
    """

    policy: ConfidencePolicy
    lm: AnsweringModel
    settings: Mapping[str, Any]
    calibrator: Calibrator | None
    rule: AbstentionRule | None

    def answers(self, answer: Answer, *, fits: bool = True) -> bool:
        """Whether the answer is given as it is."""
        return self.rule is None or self.rule.answers(self._confidence(answer, fits))

    def _confidence(self, answer: Answer, fits: bool) -> float | None:
        if self.calibrator is None or not fits:
            return None
        logprobs, masses = answer.token_logprobs, answer.token_log_masses
        return self.calibrator.of_answer(within_form(logprobs, masses) if logprobs and masses else logprobs)

    def decide(self, answer: Answer, again: Again, *, fits: bool = True) -> Answer:
        """The answer with its confidence; below the threshold marked as abstained, or the answer of the fallback.

        again  asks another model the same, with the options that it is given
        fits   whether the answer was made with the settings and the system message of the calibrator
        """
        confidence = self._confidence(answer, fits)
        answer = replace(answer, confidence=confidence, answered_by=self.lm.info.name)
        if self.rule is None or self.rule.answers(confidence):
            return answer
        if answer.token_logprobs is None:
            raise CapabilityError(
                f"{self.lm.info.name} gave no log-probabilities, so there is no confidence for at_least= or risk=: "
                f"drop them, or load the model locally"
            )
        why = self.rule.why(confidence) if fits else "asked with a system message of its own: nothing is known"
        fallback = self.policy.fallback
        if fallback is None:
            return replace(answer, abstained=True, answered_by=None, why=why)
        # with a calibrator of its own, where one was kept for it: this one knows nothing of the other's answers
        plain = {"calibrator": KEPT, "task": self.policy.task, "at_least": None, "risk": None, "fallback": None}
        settings = {n: v for n, v in self.settings.items() if v is not None and (n != "drafter" or isinstance(v, str))}
        try:
            other = self.lm.beside(fallback) if isinstance(fallback, str) else fallback
            return replace(again(other, {**settings, **plain}), why=why, first=answer)
        except RemoteError as error:
            if self.policy.if_unavailable == "error":
                raise
            return replace(answer, why=f"{why}; the fallback cannot be asked: {error}")

    def describe(self) -> dict[str, Any]:
        """For headers of results files and JSON: what the confidences and abstentions depend on."""
        if self.calibrator is None:
            return {}
        about = {key: self.calibrator.about.get(key) for key in ("file", "n", "made")}
        found: dict[str, Any] = {"calibrator": {"method": self.calibrator.recalibrator.name, **about}}
        if self.rule is not None:
            other = self.policy.fallback
            name = other if other is None or isinstance(other, str) else other.info.name
            found |= {"abstention": self.rule.to_dict(), "fallback": name}
        return found


def system_of(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The system message of a conversation, None without one."""
    return next((m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "system"), None)


def binding_of(lm: AnsweringModel, settings: Mapping[str, Any], system: str | None) -> dict[str, Any]:
    """What the confidence of this model's answers with these settings depends on."""
    info = lm.info
    return binding({
        "model": info.name, "runtime": info.runtime, "sha256": info.sha256, "template": lm.template_hash,
        "settings": {**lm.settings(ASK_DEFAULTS, settings), "system": system},
    })  # fmt: skip


def check_for_another(settings: Mapping[str, Any]) -> None:
    """Refuse settings that speak of this model's tokens where another model may be asked."""
    for name, value in settings.items():
        if OPTIONS[name].of_tokens and value:
            raise CapabilityError(f"{name}= speaks of one model's tokens, a fallback has others: drop one of the two")
