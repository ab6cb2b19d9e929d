"""A fitted recalibrator with what it was fitted on and for: made from labelled lines, kept in a JSON file.

Cross-fitted: the map is fitted to all labelled items, and judged by maps that were each fitted without a tenth of them,
on that tenth.  So every label serves the map, the report and the thresholds, and no item is judged by a map that it was
fitted to.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np

from likely.calibration.labelled import Labelled, LabelledKind
from likely.calibration.recalibrators.answer import features
from likely.calibration.recalibrators.protocol import Fitted
from likely.calibration.recalibrators.table import RECALIBRATORS, entry_of, from_dict, make
from likely.decoding.options import answer_settings
from likely.errors import CapabilityError, DataError, check_choice
from likely.guided.settings import FORM_OPTIONS
from likely.io.whole_file import read_text, write_whole_file
from likely.metrics.checks import SMALLEST, Floats, Ints, check_confidence, check_correct, log_probs, softmax
from likely.metrics.proper import nll
from likely.metrics.summary import report

FORMAT = 1
PARTS = ("weights", "template", "settings")  # of a binding; "model" beside them is only a name
FEWEST = 20  # labelled items; below, every map is noise
FOLDS = 10


@dataclass(frozen=True)
class Calibrator:
    """Maps what a model says to a probability of being right.

    kind       of input, see `Labelled`
    binding    what it was fitted for (see `binding`); None: plain lines, used only when named
    confidence, correct  of the labelled items, each calibrated by a map fitted without it; what thresholds rest on
    before, after        `report` of the same without and with these maps
    about      file, its number of items, how the method was chosen, date, version
    """

    recalibrator: Fitted
    kind: LabelledKind
    confidence: Floats
    correct: Ints
    binding: dict[str, Any] | None = None
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def predict(self, labelled: Labelled) -> Floats:
        """Calibrated probabilities (N, K) or confidences (N,) of other items of the same kind."""
        if labelled.kind != self.kind and {labelled.kind, self.kind} != {"probs", "logits"}:
            raise DataError(f"this calibrator was fitted on lines of {self.kind}, these are lines of {labelled.kind}")
        return _predict(self.recalibrator, labelled)

    def of_answer(self, token_logprobs: Sequence[float] | None) -> float | None:
        """The probability that a generated answer is right; None if the model gave no log-probabilities."""
        self.check_answers()
        if not token_logprobs:
            return None
        one = Labelled("answer", np.array([features(list(token_logprobs))]), np.zeros(1, np.int64))
        return float(_predict(self.recalibrator, one)[0])

    def check_answers(self) -> None:
        """CapabilityError where this is no map for answers; one of confidences is fed p(answer | question)."""
        if self.kind not in ("answer", "confidence"):
            raise CapabilityError(
                f"this calibrator maps {self.kind} of classes, not answers: fit one on a file of likely grade"
            )

    def save(self, path: Path) -> None:
        record = {
            "likely_calibrator": FORMAT, "kind": self.kind, "recalibrator": self.recalibrator.to_dict(),
            "binding": self.binding, "about": self.about, "before": self.before, "after": self.after,
            "held_out": {"confidence": self.confidence.tolist(), "correct": self.correct.tolist()},
        }  # fmt: skip
        write_whole_file(path, (json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Calibrator:
        """DataError, in one line, for what is no calibrator or a damaged one."""
        try:
            record = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not a calibrator: {error}") from None
        if not isinstance(record, dict) or record.get("likely_calibrator") != FORMAT:
            found = record.get("likely_calibrator") if isinstance(record, dict) else None
            raise DataError(
                f"{path} is not a calibrator of format {FORMAT} (found {found!r}): make one with likely calibrate fit"
            )
        try:
            judged = record["held_out"]
            confidence = check_confidence(judged["confidence"])
            kind, bound = record["kind"], record["binding"]
            if kind not in get_args(LabelledKind):
                raise DataError(f'{path} is damaged: kind "{kind}" (allowed: {", ".join(get_args(LabelledKind))})')
            if bound is not None and set(bound) != {"model", *PARTS}:
                raise DataError(f"{path} is damaged: the binding must name model, weights, template and settings")
            return cls(
                from_dict(record["recalibrator"]), kind, confidence,
                check_correct(judged["correct"], len(confidence)), None if bound is None else dict(bound),
                *(dict(record[name]) for name in ("before", "after", "about")),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}") from None


def fit_calibrator(
    labelled: Labelled, *, method: str = "auto", folds: int = FOLDS, seed: int = 0, file: str = "", reports: bool = True
) -> Calibrator:  # fmt: skip
    """Fit a map to labelled items.

    method  a name of `recalibrators.table.RECALIBRATORS`, or "auto": of those that the table marks for such items the
            one with the lowest cross-validated NLL
    folds   in how many parts the items are judged, each by a map fitted to the others; chosen at random with `seed`
    reports False: `before` and `after`, whose intervals take seconds, stay empty
    """
    check_choice("method", method, ("auto", *RECALIBRATORS))
    n = len(labelled)
    if n < FEWEST:
        raise DataError(f"{n} labelled items are too few: at least {FEWEST} are needed")
    if not 2 <= folds <= n:
        raise ValueError(f"folds must lie in 2..{n} (the labelled items), got {folds}")
    fold = folds_of(labelled.labels, folds, seed)
    chosen: dict[str, Any] = {"method": method}
    if method != "auto":
        predictions = _cross_fitted(labelled, method, fold)
    else:
        tried: dict[str, Floats] = {}
        losses: dict[str, float | None] = {}
        failure: Exception | None = None
        for name in (name for name, entry in RECALIBRATORS.items() if labelled.kind in entry.auto):
            try:
                tried[name] = _cross_fitted(labelled, name, fold)
            except (ValueError, CapabilityError) as error:  # not every map can be fitted to few items
                failure = error
            losses[name] = nll(tried[name], labelled.labels) if name in tried else None
        if failure is not None and not tried:
            raise failure
        method = min(tried, key=lambda name: losses[name] or 0.0)
        predictions = tried[method]
        chosen = {"method": method, "cross_validated_nll": losses}
    confidence, correct = labelled.outcomes(predictions)
    return Calibrator(
        _fit(labelled, method), labelled.kind, confidence, correct,
        None if labelled.origin is None else binding(labelled.origin),
        report(labelled.predictions(), labelled.labels) if reports else {},
        report(predictions, labelled.labels) if reports else {},
        {"file": file, "n": n, "folds": folds, "seed": seed, **chosen, "made": datetime.now(UTC).date().isoformat()},
    )  # fmt: skip


def folds_of(labels: Ints, folds: int, seed: int) -> Ints:
    """(N,) the fold of each item, at random with the labels evenly among them.

    Unevenly, a fold with many errors would be judged by a map of the others, which has seen few, and the other way
    round: the confidences would then run against the labels.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def _cross_fitted(labelled: Labelled, method: str, fold: Ints) -> Floats:
    """What maps fitted to the other folds predict for the items of each fold."""
    found: Floats | None = None
    for k in range(fold.max() + 1):
        with warnings.catch_warnings():  # the map of all items says the same
            warnings.simplefilter("ignore")
            part = _predict(_fit(labelled.part(fold != k), method), labelled.part(fold == k))
        found = np.empty((len(labelled), *part.shape[1:])) if found is None else found
        found[fold == k] = part
    assert found is not None
    return found


def binding(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's header an answer's confidence depends on: weights, template, and settings with an effect."""
    settings = answer_settings(origin.get("settings") or {})
    if any(name in settings for name in FORM_OPTIONS):
        settings["probability"] = "within the form"
    known = origin.get("sha256") not in (None, "unknown")
    return {
        "model": origin.get("model"),
        "weights": origin["sha256"] if known else f"{origin.get('runtime')} {origin.get('model')}",
        "template": origin.get("template"),
        "settings": _canonical(json.loads(json.dumps(settings, default=str, sort_keys=True))),
    }


def _canonical(value: Any) -> Any:
    """The same with whole numbers as int: temperature 0 is temperature 0.0."""
    if isinstance(value, dict):
        return {name: _canonical(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Which parts of two bindings differ."""
    return [part for part in PARTS if one.get(part) != other.get(part)]


def _fit(labelled: Labelled, method: str) -> Fitted:
    made, allowed = make(method), entry_of(method).inputs
    if not allowed:
        if labelled.kind != "answer":
            raise DataError(f'method "{method}" is for files of likely grade, these are lines of {labelled.kind}')
        return made.fit(labelled.x, labelled.labels)
    given = labelled.kind if labelled.kind != "answer" else "confidence"
    wanted = given if given in allowed else {"probs": "logits", "logits": "probs"}.get(given)
    if wanted not in allowed:
        fits = ", ".join(name for name, entry in RECALIBRATORS.items() if {given, wanted} & set(entry.inputs))
        raise DataError(f'method "{method}" does not fit lines of {labelled.kind}: choose one of {fits}')
    if len(allowed) > 1 or made.input != wanted:
        made.set_params(input=wanted)
    return made.fit(_feed(made, labelled), labelled.labels)


def _predict(fitted: Fitted, labelled: Labelled) -> Floats:
    return fitted.predict_proba(_feed(fitted, labelled))


def _feed(fitted: Fitted, labelled: Labelled) -> Floats:
    """The items as this map wants them; p(answer | question) of a long answer may be as small as it likes."""
    if not fitted.inputs:
        return labelled.x
    if fitted.input == "logits" and labelled.kind == "probs":
        return log_probs(labelled.x)
    if fitted.input == "probs" and labelled.kind == "logits":
        return softmax(labelled.x)
    return np.maximum(labelled.predictions(), SMALLEST) if labelled.kind == "answer" else labelled.x
