"""What a training run says of its steps: a line of JSON each, and trackers such as TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from likely.errors import CapabilityError, DataError, missing_extra
from likely.io.whole_file import write_whole_file


class Tracker(Protocol):
    """What accelerate's trackers offer."""

    def log(self, values: dict, step: int | None) -> Any: ...
    def finish(self) -> Any: ...


@dataclass
class MetricsLog:
    """One JSON object a step in a file that grows, and the same for every tracker.

    A run that goes on after step k first drops the lines of later steps.
    """

    path: Path | None = None
    trackers: Sequence[Tracker] = ()

    def begin(self, done: int) -> None:
        """Keep the lines of the first `done` steps only."""
        if self.path is None:
            return
        kept: list[str] = []
        if done and self.path.exists():
            for line in self.path.read_text("utf-8").splitlines():
                try:
                    if json.loads(line)["step"] < done:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    break  # cut by a kill
        try:
            write_whole_file(self.path, "".join(f"{line}\n" for line in kept).encode())
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror or error}") from None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """What is not a finite number is written as null."""
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()


def open_trackers(names: Sequence[str], folder: Path, *, run: str = "likely") -> list[Tracker]:
    """accelerate's trackers by name ("tensorboard", "wandb" ...), and those that `register_tracker_class` added.

    Their files, if any, lie in `folder`.
    """
    if not names:
        return []
    try:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
        from accelerate.utils import LoggerType
    except ImportError:
        raise missing_extra("accelerate", "train") from None
    PartialState()
    have = [str(name) for name in get_available_trackers()]
    have += [name for name in LOGGER_TYPE_TO_CLASS if name not in LoggerType.list()]
    opened: list[Tracker] = []
    for name in names:
        if name not in have:
            known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
            raise CapabilityError(
                f'no tracker "{name}" is installed (installed: {", ".join(have) or "none"}; accelerate knows: {known})'
            )
        kind = LOGGER_TYPE_TO_CLASS[name]
        tracker = kind(run, str(folder)) if kind.requires_logging_directory else kind(run)
        tracker.start()
        opened.append(tracker)
    return opened
