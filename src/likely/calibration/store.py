"""Calibrators that are kept for later: which one fits a model, its template, its settings and a task."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likely.calibration.calibrator import PARTS, Calibrator, differences
from likely.errors import DataError, shortened
from likely.io.hashes import fingerprint

DEFAULT_TASK = "default"


def folder() -> Path:
    """$LIKELY_CALIBRATORS, else $XDG_DATA_HOME/likely/calibrators, else ~/.local/share/likely/calibrators."""
    if own := os.environ.get("LIKELY_CALIBRATORS"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_DATA_HOME"):
        return Path(xdg).expanduser() / "likely" / "calibrators"
    return Path("~/.local/share/likely/calibrators").expanduser()


def check_task(task: str) -> None:
    """ValueError for what cannot name a task (and a folder)."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", task):
        raise ValueError(f"a task's name is up to 64 letters, digits, '.', '_' and '-', got {task!r}")


def place(bound: Mapping[str, Any], task: str = DEFAULT_TASK) -> Path:
    """Where the calibrator for these weights, template and settings is kept."""
    check_task(task)
    return folder() / task / f"{fingerprint({name: bound[name] for name in PARTS}, 24)}.json"


def keep(calibrator: Calibrator, task: str = DEFAULT_TASK) -> Path:
    """Keep it for `find`; it replaces an older one for the same model, template, settings and task."""
    assert calibrator.binding is not None
    path = place(calibrator.binding, task)
    calibrator.save(path)
    return path


def find(bound: Mapping[str, Any], task: str = DEFAULT_TASK) -> Calibrator | None:
    """The one that was kept for this, None if there is none."""
    path = place(bound, task)
    return Calibrator.load(path) if path.exists() else None


def why_none(bound: Mapping[str, Any], task: str = DEFAULT_TASK) -> str:
    """Why `find` found nothing: what the kept ones of this model were fitted for instead."""
    why = f'no calibrator was fitted for answers of this model with these settings (task "{task}")'
    same: list[tuple[str, dict[str, Any]]] = []
    for path in sorted(folder().glob("*/*.json")):
        with contextlib.suppress(DataError):  # a damaged one is no reason
            other = Calibrator.load(path).binding or {}
            same += [(path.parent.name, other)] if other.get("weights") == bound["weights"] else []
    if not same:
        return why
    name, nearest = min(same, key=lambda one: (one[0] != task, len(_unlike(one[1], bound))))
    unlike = _unlike(nearest, bound)
    there = f'one of the task "{name}"' if name != task else "one"
    return f"{why}, but {there}" + (f" with {'; '.join(unlike)}" if unlike else "")


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two bindings of one model differ in, each with both values."""
    found = ["another chat template"] if one.get("template") != other.get("template") else []
    mine, theirs = one.get("settings") or {}, other.get("settings") or {}
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    return found + [f"{name} {_short(mine.get(name))} (now {_short(theirs.get(name))})" for name in names]


def named(path: str | Path, bound: Mapping[str, Any]) -> Calibrator:
    """The one in this file; DataError if it was fitted for another model, template or settings."""
    return accept(Calibrator.load(path), bound, str(path))


def accept(calibrator: Calibrator, bound: Mapping[str, Any], name: str) -> Calibrator:
    """The calibrator, if it is unbound or bound to this; DataError otherwise."""
    if calibrator.binding is not None and (found := differences(calibrator.binding, bound)):
        weights = [f"weights {_short(calibrator.binding['weights'])} (now {_short(bound['weights'])})"]
        details = "; ".join((weights if "weights" in found else []) + _unlike(calibrator.binding, bound))
        raise DataError(
            f"{name} was fitted for another {' and '.join(found)} (of {calibrator.binding['model']}: {details}): "
            f"fit one on answers of this model with these settings"
        )
    return calibrator


def _short(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
