"""How sure a model's answers are: which calibrator belongs to them, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.lm.batch import fingerprint
from likely.lm.results import Answer

if TYPE_CHECKING:
    from likely.calibration.calibrator import Calibrator

KEPT = "kept"  # use the calibrator that `likely calibrate fit` kept for this model, these settings and the task
ASK_DEFAULTS = {"temperature": 0.0, "max_tokens": 256}
CHAT_DEFAULTS = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 512}


def system_of(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The system message of a conversation, None without one."""
    return next((m["content"] for m in messages if m["role"] == "system"), None)


def template_hash(model: Any) -> str | None:
    """Of what turns a question into the model's text; None where a server does that."""
    from likely.lm.model import PLAIN_QUESTION, Model

    if not isinstance(model, Model):
        return None
    return fingerprint(PLAIN_QUESTION if model.template is None else model.template.source)


def binding_of(model: Any, settings: Mapping[str, Any], system: str | None) -> dict[str, Any]:
    """What the confidence of this model's answers with these settings depends on."""
    from likely.calibration.calibrator import binding

    info = model.info
    return binding({
        "model": info.name, "runtime": info.runtime, "sha256": info.sha256, "template": template_hash(model),
        "settings": {**ASK_DEFAULTS, **settings, "system": system},
    })  # fmt: skip


def calibrator_for(
    model: Any, settings: Mapping[str, Any], system: str | None, *, calibrator: str | Path | Calibrator | None = KEPT,
    task: str = "default",
) -> Calibrator | None:  # fmt: skip
    """The calibrator for a model's answers with these settings.

    calibrator  "kept": the one that was kept for them, if there is one;  a file or an object: that one, DataError if it
                was fitted for something else;  None: none
    """
    from likely.calibration.store import accept, check_task, find, folder, named

    check_task(task)
    if calibrator is None:
        return None
    if isinstance(calibrator, str) and calibrator == KEPT:
        if not (folder() / task).is_dir():  # nothing was ever kept: nothing to hash
            return None
        return find(binding_of(model, settings, system), task)
    bound = binding_of(model, settings, system)
    if isinstance(calibrator, str | Path):
        return named(calibrator, bound)
    return accept(calibrator, bound, "this calibrator")


def with_confidence(answer: Any, calibrator: Calibrator | None) -> Any:
    """The answer (or a bare generation, which becomes one) with its calibrated confidence."""
    if calibrator is None:
        return answer
    values = {f.name: getattr(answer, f.name) for f in fields(answer)}
    return Answer(**{**values, "confidence": calibrator.of_answer(answer.token_logprobs)})
