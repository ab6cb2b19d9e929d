"""The benchmark: every layer on every task, several seeds, in one table with the chance level of each column.

Backbone, optimiser, steps and seeds are the same for all.  A finished cell is kept in a file, so that a run that was
stopped, or ran out of its budget, goes on where it was.  After Patro and Agneeswaran 2024 (Mamba-360).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from likely.bench.sequence.examples import TaskMeta
from likely.bench.sequence.learning import (
    MixerSettings,
    SequenceTraining,
    build_model,
    layer_names,
    learn,
    measure_state,
)
from likely.bench.sequence.tasks import TASKS, SequenceTask
from likely.errors import DataError, check_choice, nearest
from likely.io.hashes import fingerprint
from likely.io.kept import KeptValues
from likely.sequence.table import MIXERS

STATE_AT = 1024  # tokens after which the state's bytes are given
_PROBE = TaskMeta("probe", "tokens", "tokens", 16, 1 / 16, vocabulary=16)


@dataclass(frozen=True)
class BenchColumn:
    """A task: its size, the length of its rows, and what a guess scores (the mean over the seeds' test sets)."""

    task: str
    about: str
    metric: str
    higher_is_better: bool
    length: int
    chance: float

    def text(self, value: float | None, sd: float | None = None) -> str:
        """As in "98.1 ± 0.3 %", "0.123 ± 0.010" or "2.51 bits"."""
        if value is None:
            return ""
        scale, digits, unit = {"accuracy": (100, 1, " %"), "bits per byte": (1, 2, " bits")}.get(
            self.metric, (1, 3, "")
        )  # fmt: skip
        spread = "" if sd is None else f" ± {scale * sd:.{digits}f}"
        return f"{scale * value:.{digits}f}{spread}{unit}"


@dataclass(frozen=True)
class BenchCell:
    """What one layer got on one task: the metric at the end for each seed that is done, and along the way.

    steps, curves  steps of the optimiser, and the metric after them, a row for each seed
    diverged       seeds whose training ran away; they have no value
    """

    values: list[float]
    steps: list[int]
    curves: list[list[float]]
    diverged: int = 0

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.values)) if self.values else None

    @property
    def sd(self) -> float | None:
        """The sample's standard deviation; None of less than two seeds."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class BenchRow:
    """A layer, or several in turn.

    parameters   of the blocks, without embedding and head
    state_bytes  of one sequence, measured after STATE_AT tokens; None where the model cannot go on from a state
    speed        what `measure_speed` found, if it was asked
    """

    layer: str
    paradigm: str
    parameters: int
    state_bytes: int | None
    cells: dict[str, BenchCell]
    speed: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerComparison:
    """The table.  `missing`: cells that were not computed, as "layer, task, seed"."""

    training: SequenceTraining
    seeds: list[int]
    columns: list[BenchColumn]
    rows: list[BenchRow]
    missing: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; each cell also has its mean and standard deviation."""
        found = asdict(self)
        for row, own in zip(found["rows"], self.rows, strict=True):
            for task, cell in own.cells.items():
                row["cells"][task] |= {"mean": cell.mean, "sd": cell.sd}
        return found | {"state_at": STATE_AT}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of texts: mean ± standard deviation, best of a column not marked."""
        speeds = list(dict.fromkeys(name for row in self.rows for name in row.speed))
        heads = ["layer", "paradigm", *(c.task for c in self.columns), "parameters", f"state at {STATE_AT:,}", *speeds]
        rows = [
            ["chance", "", *(column.text(column.chance) for column in self.columns), "", "", *("" for _ in speeds)],
            *([
                row.layer, row.paradigm, *(self.cell_text(row, column) for column in self.columns),
                f"{row.parameters:,}", "none" if row.state_bytes is None else f"{row.state_bytes:,} B",
                *(f"{row.speed[name]:,.4g}" if name in row.speed else "" for name in speeds),
            ] for row in self.rows),
        ]  # fmt: skip
        return heads, rows

    def cell_text(self, row: BenchRow, column: BenchColumn) -> str:
        """Mean ± sd, with the number of seeds where some are not there; empty where none is."""
        cell = row.cells.get(column.task)
        if cell is None:
            return ""
        text = column.text(cell.mean, cell.sd)
        done = len(cell.values)
        notes = [f"{done} of {len(self.seeds)}"] * (0 < done < len(self.seeds)) + [
            f"{cell.diverged} diverged"
        ] * (cell.diverged > 0)  # fmt: skip
        return f"{text} ({', '.join(notes)})".strip() if notes else text

    def caption(self) -> str:
        """What all cells have in common."""
        t = self.training
        return (
            f"{t.depth} blocks of width {t.width}, {t.steps:,} steps of {t.batch} sequences; mean ± standard deviation "
            f"over {len(self.seeds)} seed(s); accuracy in %, normalised MSE and bits per byte: lower is better"
        )

    def markdown(self) -> str:
        """The table, what its columns are, and what is missing."""
        heads, rows = self.table()
        lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---", "---", *["---:"] * (len(heads) - 2)], *rows)]
        about = [
            f"- {c.task}: {c.about}; {c.length:,} steps; {c.metric}" for c in self.columns
        ]  # fmt: skip
        missing = [f"Not computed: {'; '.join(self.missing)}."] if self.missing else []
        return "\n".join([self.caption() + ".", "", *lines, "", *about, *(["", *missing] if missing else []), ""])


def compare_layers(
    rows: Sequence[str], tasks: Mapping[str, SequenceTask] | None = None, *,
    training: SequenceTraining | None = None, seeds: Sequence[int] = (0, 1, 2), mixers: MixerSettings | None = None,
    kept: str | Path | None = None, budget_s: float | None = None, data_dir: Path | None = None,
    say: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic,
) -> LayerComparison:  # fmt: skip
    """Train every layer on every task and seed that `kept` does not hold yet.

    rows    names of layers (`likely.sequence.MIXERS`); "mamba2+attention" puts several in turn
    tasks   by default all of TASKS
    mixers  settings of layers: {"mamba2": {"head_dim": 16}}
    kept    a JSON-lines file of finished cells: read first, then added to
    budget_s  no cell is begun after so many seconds; what is left out is in `missing`.  All of a seed come before the
            next seed's
    """
    training, tasks = training or SequenceTraining(), TASKS if tasks is None else tasks
    check_rows(rows, mixers or {})
    if not rows or not tasks or not seeds or len({*seeds}) < len(seeds):
        raise ValueError("a comparison needs layers, tasks and seeds, each seed once")
    values, began, missing = KeptValues(kept), clock(), []
    for seed in seeds:
        for name, task in tasks.items():
            for row in rows:
                key = _key(row, name, task, training, seed, mixers or {})
                if key in values:
                    continue
                if budget_s is not None and clock() - began >= budget_s:
                    missing.append(f"{row}, {name}, {seed}")
                    continue
                found = learn(row, task, training, seed=seed, mixers=mixers, data_dir=data_dir)
                values.add({key: asdict(found)})
                if say:
                    said = "diverged" if found.value is None else f"{found.value:.3f} {found.meta.metric}"
                    say(f"seed {seed}, {name}, {row}: {said} (chance {found.meta.chance:.3f})")

    def cells(row: str, name: str) -> list[dict[str, Any]]:
        keys = [_key(row, name, tasks[name], training, seed, mixers or {}) for seed in seeds]
        return [values[key] for key in keys if key in values]

    columns = []
    for name, task in tasks.items():
        if known := [cell for row in rows for cell in cells(row, name)]:
            meta = TaskMeta(**known[0]["meta"])
            chance = float(np.mean([cell["meta"]["chance"] for cell in known]))
            columns.append(
                BenchColumn(name, task.about, meta.metric, meta.higher_is_better, known[0]["length"], chance)
            )  # fmt: skip
    found_rows = [_row(row, {c.task: cells(row, c.task) for c in columns}, training, mixers) for row in rows]
    return LayerComparison(training, list(seeds), columns, found_rows, missing)


def apply_settings(
    settings: Mapping[str, Any], tasks: Mapping[str, SequenceTask]
) -> tuple[dict[str, SequenceTask], dict[str, dict[str, Any]]]:
    """Tasks at other sizes, and settings of layers, from "mqar.pairs" -> 4 and "mamba2.head_dim" -> 16."""
    changed = dict(tasks)
    mixers: dict[str, dict[str, Any]] = {}
    for place, value in settings.items():
        name, _, key = place.partition(".")
        if name in changed and key:
            changed[name] = changed[name].with_size(name, {key: value})
        elif name in MIXERS and key:
            mixers.setdefault(name, {})[key] = value
        else:
            raise DataError(
                f'"{place}" sets nothing{nearest(name, [*changed, *MIXERS])}: give TASK.SIZE or LAYER.SETTING, of the '
                f"tasks {', '.join(changed)}, or of a layer"
            )
    return changed, mixers


def check_rows(rows: Sequence[str], mixers: MixerSettings) -> None:
    """ValueError for a layer that there is not, in a row or in settings."""
    for row in rows:
        for name in row.split("+"):
            check_choice("layer", name, MIXERS)
    for name in mixers:
        check_choice("layer", name, MIXERS)
        if not any(name in row.split("+") for row in rows):
            raise DataError(f"settings are given for {name}, which is in no row ({', '.join(rows)})")


def _key(
    row: str, name: str, task: SequenceTask, training: SequenceTraining, seed: int, mixers: MixerSettings
) -> str:  # fmt: skip
    own = {layer: dict(mixers[layer]) for layer in sorted({*row.split("+")} & {*mixers})}
    size = [dict(sorted(task.size.items())), task.train, task.test]
    return f"{row}, {name}, {seed}, {fingerprint([size, asdict(training), own])}"


def _row(
    row: str, cells: Mapping[str, list[dict[str, Any]]], training: SequenceTraining, mixers: MixerSettings | None
) -> BenchRow:
    model = build_model(row, _PROBE, training, mixers=mixers)
    paradigms = dict.fromkeys(MIXERS[name].paradigm for name in layer_names(row, training.depth))
    return BenchRow(
        row,
        " + ".join(paradigms),
        sum(parameter.numel() for parameter in model.backbone.layers.parameters()),
        measure_state(model, STATE_AT),
        {name: _cell(found) for name, found in cells.items() if found},
    )


def _cell(found: list[dict[str, Any]]) -> BenchCell:
    whole = [one for one in found if not one["diverged"]]
    return BenchCell(
        [one["curve"][-1] for one in whole],
        whole[0]["steps"] if whole else [],
        [one["curve"] for one in whole],
        len(found) - len(whole),
    )
