"""The options of `ask` and `chat` about confidence: abstain below a threshold, or ask another model, and say so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from likely.lm.confidence import BoundPolicy
    from likely.lm.model import Model
    from likely.lm.remote.model import RemoteModel
    from likely.lm.results import Answer


@dataclass(frozen=True)
class ConfidenceFlags:
    """What is done about the confidence of answers."""

    calibrator: Annotated[
        Path | None,
        typer.Option("--calibrator", help="A file of `likely calibrate fit`; without: the one kept for this model."),
    ] = None
    task: Annotated[str, typer.Option("--task", help="Which kept calibrator: its name in `calibrate fit --task`.")] = (
        "default"
    )
    at_least: Annotated[
        float | None, typer.Option("--at-least", help="Answer only with this calibrated confidence or more.")
    ] = None
    risk: Annotated[
        float | None, typer.Option("--risk", help="Answer only where at most this share of such answers is wrong.")
    ] = None
    delta: Annotated[
        float,
        typer.Option("--delta", help="How often the guarantee may fail, over labelled sets that one might draw."),
    ] = 0.1
    fallback: Annotated[
        str | None, typer.Option("--fallback", help="Model or URL to ask instead of giving no answer.")
    ] = None

    def given(self) -> dict[str, Any]:
        """Options of `Model.with_confidence`; what contradicts itself is refused before a model is loaded."""
        from likely.lm.confidence import KEPT, ConfidencePolicy

        given = {**vars(self), "calibrator": KEPT if self.calibrator is None else self.calibrator}
        try:
            ConfidencePolicy(**given)
        except ValueError as error:
            text = re.sub(
                r"\b(at_least|risk|delta|fallback)\b", lambda name: f"--{name[0].replace('_', '-')}", str(error)
            )
            raise typer.BadParameter(text) from None
        return given


def bind(lm: Model | RemoteModel, settings: Mapping[str, Any], system: str | None) -> BoundPolicy:
    """What is done about the confidence of answers with these settings; tells what is guaranteed on standard error."""
    bound = lm.confidence.bind(lm, settings, system)
    if bound.rule is not None:
        typer.echo(bound.rule.guarantee, err=True)
    return bound


def tell(answer: Answer) -> None:
    """What is said beside the text, on standard error."""
    if answer.first is not None:
        typer.echo(f"{answer.why}: answered by {answer.answered_by}", err=True)
    if answer.abstained:
        typer.echo(f"no answer: {answer.why}", err=True)
    elif answer.confidence is not None:
        typer.echo(f"confidence {answer.confidence:.2f}", err=True)
