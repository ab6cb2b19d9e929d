"""The options of `ask` and `chat` about confidence: abstain below a threshold, or ask another model, and say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.calibration.calibrator import Calibrator
    from likely.calibration.threshold import AbstentionRule

CalibratorOption = Annotated[
    Path | None,
    typer.Option("--calibrator", help="A file of `likely calibrate fit`; without: the one kept for this model."),
]
TaskOption = Annotated[str, typer.Option("--task", help="Which kept calibrator: its name in `calibrate fit --task`.")]
AtLeastOption = Annotated[
    float | None, typer.Option("--at-least", help="Answer only with this calibrated confidence or more.")
]
RiskOption = Annotated[
    float | None, typer.Option("--risk", help="Answer only where at most this share of such answers is wrong.")
]
DeltaOption = Annotated[
    float, typer.Option("--delta", help="How often the guarantee may fail, over labelled sets that one might draw.")
]
FallbackOption = Annotated[
    str | None, typer.Option("--fallback", help="Model or URL to ask instead of giving no answer.")
]


@dataclass(eq=False)
class Sure:
    """What is done about confidence in one run.

    calibrator  None: answers have no confidence
    gate        None: every answer is given
    """

    model: Any
    calibrator: Calibrator | None
    gate: AbstentionRule | None = None
    fallback: str | None = None
    task: str = "default"
    _other: Any = field(default=None, init=False)

    def decide(self, answer: Any, again: Callable[[Any], Any], *, fits: bool = True) -> Decided:
        """again  asks another model the same;  fits: whether it was asked with the settings of the calibrator"""
        from likely.lm.confidence import with_confidence

        answer = with_confidence(answer, self.calibrator)
        if self.calibrator is not None and not fits:
            answer = replace(answer, confidence=None)
        if self.gate is None or self.gate.answers(answer.confidence):
            return Decided(answer, self.model.info.name)
        why = self.gate.why(answer.confidence) if fits else "asked with a system message of its own: nothing is known"
        if self.fallback is None:
            return Decided(answer, None, why=why)
        other = self.other()
        return Decided(again(other), other.info.name, why=why, first=answer)

    def other(self) -> Any:
        """The model that is asked instead, opened at the first need."""
        if self._other is None:
            assert self.fallback is not None
            self._other = opt.open_model(self.fallback)
        return self._other

    def close(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None

    def describe(self) -> dict[str, Any]:
        """For headers of results files and JSON: what the confidences and abstentions depend on."""
        if self.calibrator is None:
            return {}
        about = {key: self.calibrator.about.get(key) for key in ("file", "n", "made")}
        found: dict[str, Any] = {"calibrator": {"method": self.calibrator.recalibrator.name, **about}}
        if self.gate is not None:
            found |= {"gate": self.gate.to_dict(), "fallback": self.fallback}
        return found


@dataclass(frozen=True)
class Decided:
    """by: the name of the model whose answer this is; None: no answer is given, for the reason `why`.

    first  with a fallback: the answer that was not sure enough
    """

    answer: Any
    by: str | None
    why: str = ""
    first: Any = None

    def fields(self) -> dict[str, Any]:
        """Of the answer, for JSON; what is added says who answered."""
        found = {**self.answer.to_dict(), "answered_by": self.by}
        if self.why:
            found["why"] = self.why
        if self.first is not None:
            found["first"] = {"text": self.first.text, "confidence": self.first.confidence}
        return found

    def notes(self) -> list[str]:
        """What is said beside the text, one line each."""
        lines = []
        if self.first is not None:
            lines.append(f"{self.why}: answered by {self.by}")
        if self.by is None:
            lines.append(f"no answer: {self.why}")
        elif self.answer.confidence is not None:
            lines.append(f"confidence {self.answer.confidence:.2f}")
        return lines


def prepare(
    lm: Any, settings: dict[str, Any], system: str | None, *, calibrator: Path | None = None, task: str = "default",
    at_least: float | None = None, risk: float | None = None, delta: float = 0.1, fallback: str | None = None,
) -> Sure:  # fmt: skip
    """Find the calibrator and set up the gate; tells what it guarantees on standard error."""
    from likely.errors import DataError
    from likely.lm.confidence import KEPT, calibrator_for

    if at_least is not None and risk is not None:
        raise typer.BadParameter("give one of --at-least and --risk", param_hint="--risk")
    gated = at_least is not None or risk is not None
    if fallback is not None and not gated:
        raise typer.BadParameter("--fallback needs --at-least or --risk", param_hint="--fallback")
    found = calibrator_for(lm, settings, system, calibrator=KEPT if calibrator is None else calibrator, task=task)
    if found is None and gated:
        raise DataError(
            f"no calibrator was fitted for {lm.info.name} with these settings (task {task}): "
            f"likely ask FILE -o, likely grade -o and likely calibrate fit make one"
        )
    if found is None or not gated:
        return Sure(lm, found, task=task)
    from likely.calibration.threshold import abstention_rule

    made = abstention_rule(found, at_least=at_least, risk=risk, delta=delta)
    typer.echo(made.guarantee, err=True)
    return Sure(lm, found, made, fallback, task)
