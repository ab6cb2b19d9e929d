"""How sure the answers of a request are: the calibrator that was fitted for its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from likely.calibration.calibrator import Calibrator
from likely.errors import DataError
from likely.lm.confidence import calibrator_for, system_of
from likely.lm.model import Model
from likely.serving.api.forms import form_options
from likely.serving.api.schemas import Chat
from likely.serving.limits import ApiError

_LAW = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "logit_bias", "stop",
    "max_tokens",
)  # fmt: skip


def settings_of(asked: Chat) -> dict[str, Any]:
    """The request as options of `Model.chat`: those on which the law of an answer depends."""
    return {**{name: getattr(asked, name) for name in _LAW}, **form_options(asked)}


class Sureness:
    """Calibrators of one served model.

    calibrator  "kept": those that `likely calibrate fit` kept for the model; a file: that one
    """

    def __init__(self, model: Model, calibrator: str | Path, task: str):
        self._model, self._calibrator, self._task = model, calibrator, task

    def calibrator(self, asked: Chat) -> Calibrator | None:
        """The one for this request; None if it asks for no confidence, ApiError 400 if none was fitted for it."""
        if not asked.confidence:
            return None
        try:
            found = calibrator_for(
                self._model, settings_of(asked), system_of(asked.conversation), calibrator=self._calibrator,
                task=self._task,
            )  # fmt: skip
        except DataError as error:
            raise ApiError(400, f"confidence: {error}", param="confidence") from None
        if found is None:
            raise ApiError(
                400, f'confidence: no calibrator for these settings is kept (task "{self._task}"): fit one with likely '
                f"calibrate fit on graded answers of this model", param="confidence",
            )  # fmt: skip
        return found
