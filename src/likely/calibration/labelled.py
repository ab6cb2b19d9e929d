"""Labelled lines as arrays: what a model said, and what was right.

Lines, all of one kind:
  {"probs": [...], "label": k}    {"logits": [...], "label": k}    {"confidence": c, "correct": 0 or 1}
and the files that `likely choices -o`, `likely score -o` (lines with a "label") and `likely grade -o` write; of
`likely risk -o` the risk is the confidence, and the outcome what was right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from likely.calibration.recalibrators.answer import features, within_form
from likely.errors import DataError, names_in
from likely.io.jsonl import Line, read_checked
from likely.metrics.checks import Floats, Ints, check_probs, softmax, top_label

LabelledKind = Literal["probs", "logits", "confidence", "answer"]
HINT = (
    'lines like {"probs": [...], "label": 0}, {"logits": [...], "label": 0} or {"confidence": 0.9, "correct": 1}, '
    "or a file of likely grade, choices, score or risk"
)
MODEL_HEADERS = ("ask", "choices", "score")


@dataclass(frozen=True)
class Labelled:
    """N labelled items.

    kind    what x is: "probs", "logits" (N, K), "confidence" (N,), or "answer" (N, F): `recalibrators.answer.FEATURES`
    labels  classes, or for the last two whether the answer was right
    origin  the header of the run that made the file: model, template, settings; None for plain lines
    stated  (N,) of graded answers the confidence that each line holds; None where not every line does
    """

    kind: LabelledKind
    x: Floats
    labels: Ints
    origin: dict[str, Any] | None = None
    stated: Floats | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: Any) -> Labelled:
        return Labelled(self.kind, self.x[rows], self.labels[rows], self.origin)

    def predictions(self) -> Floats:
        """Before any calibration: probabilities (N, K), or confidences (N,); of an answer, p(answer | question)."""
        if self.kind == "answer":
            return np.exp(self.x[:, 0])
        return softmax(self.x) if self.kind == "logits" else check_probs(self.x) if self.kind == "probs" else self.x

    def as_given(self) -> Floats:
        """What the file itself says: the confidence that its answers were given with, else `predictions`."""
        return self.predictions() if self.stated is None else self.stated

    def outcomes(self, predictions: Floats) -> tuple[Floats, Ints]:
        """(confidence of what was chosen, whether it was right) under these predictions, each (N,)."""
        return (predictions, self.labels) if predictions.ndim == 1 else top_label(predictions, self.labels)


def read_labelled(path: str | Path, *, limit: int | None = None) -> Labelled:
    """Read a file ("-": standard input); DataError names file, line and field."""
    where = "stdin" if str(path) == "-" else str(path)
    origin: dict[str, Any] | None = None
    rows: list[tuple[LabelledKind, list[float], int]] = []
    stated: list[float] = []

    def check(line: Line) -> None:
        nonlocal origin
        record, at = line.record, f"{where}:{line.number}"
        if line.number == 1 and "kind" in record and "likely" in record:
            origin = None if record["kind"] == "risk" else _origin(record, at)  # nothing looks up a risk's calibrator
            return
        if limit is not None and len(rows) >= limit:  # a header is no labelled line
            return
        _check_whose(record, origin, at)
        row = _row(record, at)
        if rows and row[0] != rows[0][0]:
            raise DataError(f"{at}: a line of {row[0]} among lines of {rows[0][0]}: one kind per file")
        if rows and row[0] != "answer" and len(row[1]) != len(rows[0][1]):
            raise DataError(f"{at}: {len(row[1])} classes, the lines before have {len(rows[0][1])}")
        rows.append(row)
        if row[0] == "answer" and record.get("confidence") is not None:
            stated.append(_confidence(record["confidence"], at))

    read_checked(path, check, limit=None if limit is None else limit + 1)
    if not rows:
        raise DataError(f"{where} holds no labelled lines: expected {HINT}")
    kind = rows[0][0]
    x = np.array([values for _, values, _ in rows], np.float64)
    if kind == "confidence":
        x = x[:, 0]
    labels = np.array([label for _, _, label in rows], np.int64)
    return Labelled(kind, x, labels, origin, np.array(stated) if len(stated) == len(rows) else None)


def _origin(header: Mapping[str, Any], at: str) -> dict[str, Any]:
    found = header.get("answers") if header["kind"] == "grade" else header
    if not isinstance(found, Mapping) or found.get("kind") not in MODEL_HEADERS:
        raise DataError(f'{at}: a file of kind "{header["kind"]}" holds no labels: expected {HINT}')
    if header["kind"] == "ask":
        raise DataError(f"{at}: these answers are not graded: run likely grade on them first")
    return dict(found)


def _check_whose(record: Mapping[str, Any], origin: Mapping[str, Any] | None, at: str) -> None:
    """Refuse the answer of another model (ask --fallback), or one that was asked with a system message of its own."""
    if origin is None:
        return
    by = record.get("answered_by")
    if by is not None and by != origin.get("model"):
        raise DataError(
            f"{at}: answered by {by}, the file is of {origin.get('model')}: take answers without --fallback"
        )
    system, common = record.get("system"), (origin.get("settings") or {}).get("system")
    if system is not None and system != common:
        raise DataError(
            f"{at}: asked with a system message of its own, which a calibrator for all lines cannot know: give one for "
            f"all with likely ask --system"
        )


def _row(record: Mapping[str, Any], at: str) -> tuple[LabelledKind, list[float], int]:
    if record.get("sequence_logprob") is not None and "correct" in record:
        return "answer", _features(record, at), _class(record, "correct", 2, at)
    if record.get("risk") is not None:
        return "confidence", _numbers([record["risk"]], "risk", at), _class(record, "label", 2, at)
    for name in ("logits", "values", "probs"):
        if record.get(name) is not None:
            values = _numbers(record[name], name, at)
            if len(values) < 2:
                raise DataError(f"{at}: {name} has {len(values)} class(es): at least 2 are needed")
            if name == "probs":
                _checked(partial(check_probs, [values]), at)
            return "probs" if name == "probs" else "logits", values, _class(record, "label", len(values), at)
    if isinstance(record.get("answers"), list) and record.get("label") is not None:
        sums = [a.get("sequence_logprob") if isinstance(a, Mapping) else None for a in record["answers"]]
        values = _numbers(sums, "answers", at)
        return "logits", values, _class(record, "label", len(values), at)
    value = record.get("confidence", record.get("raw_confidence"))
    if value is None:
        value = record.get("raw_confidence")
    if value is None:
        raise DataError(f"{at}: found {names_in(record)}; expected {HINT}")
    return "confidence", [_confidence(value, at)], _class(record, "correct", 2, at)


def _confidence(value: Any, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{at}: confidence must be a number in 0..1, got {value!r}")
    return float(value)


def _features(record: Mapping[str, Any], at: str) -> list[float]:
    tokens = record.get("token_logprobs")
    if not isinstance(tokens, list) or not tokens:
        raise DataError(f'{at}: field "token_logprobs" must be a list of one number or more')
    values = _numbers(tokens, "token_logprobs", at)
    if (masses := record.get("token_log_masses")) is not None:
        values = within_form(values, _numbers(masses, "token_log_masses", at))
    _checked(partial(features, values), at)
    return features(values)


def _numbers(values: Any, name: str, at: str) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise DataError(f"{at}: field {name!r} must be a list of numbers")
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise DataError(f"{at}: {name}[{place}] must be a number, got {value!r}")
    try:
        return [float(v) for v in values]
    except OverflowError:
        raise DataError(f"{at}: {name} holds a number that is too large") from None


def _class(record: Mapping[str, Any], name: str, classes: int, at: str) -> int:
    value = record.get(name)
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, int) or not 0 <= value < classes:
        raise DataError(f'{at}: field "{name}" must be a whole number in 0..{classes - 1}, got {value!r}')
    return value


def _checked(function: Callable[[], object], at: str) -> None:
    try:
        function()
    except ValueError as error:
        raise DataError(f"{at}: {error}") from None
