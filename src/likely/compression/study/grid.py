"""The grid of a study: every model, method, calibration set, draw and evaluation is a cell, measured once.

A file of cells makes a run resumable: a cell is known by a digest of everything its numbers depend on.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import torch

from likely.compression.architecture import DecoderMap, open_module
from likely.compression.calibration_set import CalibrationSet, calibration_set
from likely.compression.methods import METHODS, CompressedModel, compress_module, reads_text
from likely.compression.settings import MethodSettings, Scheme
from likely.compression.statistics import ActivationStats
from likely.compression.study.evaluations import Evaluation
from likely.errors import DataError, check_choice
from likely.io.hashes import fingerprint
from likely.io.jsonl import open_alone, parse_line
from likely.tokenizers.protocol import Tokenizer

if TYPE_CHECKING:
    from likely.runtimes.torch.runtime import TorchRuntime

Numbers = dict[str, float | None]
Said = Callable[[str], None]


@dataclass(eq=False)
class StudyModel:
    """An original: its module stays as it is, methods get copies of it.

    source  the file or folder it was read from
    """

    name: str
    module: torch.nn.Module
    tokenizer: Tokenizer
    source: Path

    @classmethod
    def open(cls, model: str | Path) -> StudyModel:
        place, module, tokenizer = open_module(model)
        return cls(str(model), module, tokenizer, place)

    @cached_property
    def digest(self) -> str:
        """Of all weights."""
        parts = {
            name: fingerprint(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
            for name, tensor in self.module.state_dict().items()
        }
        return fingerprint(parts)

    @cached_property
    def runtime(self) -> TorchRuntime:
        """Of a copy, since a runtime sets a module's attention."""
        from likely.runtimes.torch.runtime import TorchRuntime

        return TorchRuntime(copy.deepcopy(self.module), revision=self.digest)

    def statistics(self, text: CalibrationSet) -> ActivationStats:
        """Of its activations on a text."""
        return ActivationStats.collect(DecoderMap.of(self.module), text.input_ids)


@dataclass(frozen=True)
class StudyMethod:
    """A method of `METHODS` with its scheme, or, if it prunes, its sparsity; written "gptq:w3g64", "nirvana:0.2"."""

    method: str
    scheme: Scheme | None = None
    sparsity: float | None = None

    @classmethod
    def parse(cls, text: str) -> StudyMethod:
        """Without a scheme the method's usual one."""
        method, _, setting = text.strip().partition(":")
        check_choice("method", method, METHODS)
        if not METHODS[method].prunes:
            return cls(method, scheme=METHODS[method].parse_scheme(setting or METHODS[method].scheme))
        try:
            sparsity = float(setting or 0.2)
        except ValueError:
            sparsity = -1.0
        if not 0 <= sparsity < 1:
            raise ValueError(f'{method} prunes: write its sparsity, in [0, 1), as in "{method}:0.2", got "{text}"')
        return cls(method, sparsity=sparsity)

    @property
    def name(self) -> str:
        return f"{self.method}:{self.scheme.name if self.scheme else f'{self.sparsity:g}'}"

    @property
    def reads_text(self) -> bool:
        return reads_text(self.method, self.scheme)

    def apply(self, model: StudyModel, calibration: CalibrationSet | None) -> CompressedModel:
        """Compress a copy of the model."""
        settings = MethodSettings(
            scheme=self.scheme, calibration=calibration, sparsity=self.sparsity, tokenizer=model.tokenizer
        )
        module = copy.deepcopy(model.module)
        return compress_module(module, model.tokenizer, self.method, settings, model=model.name, source=model.source)


@dataclass(frozen=True)
class StudyGrid:
    """What is varied.

    calibrations  names for `calibration_set`, each drawn `draws` times with seeds 0, 1, ...: `windows` of `length`
                  tokens from all of the text
    """

    methods: Sequence[StudyMethod]
    calibrations: Sequence[str]
    evaluations: Sequence[Evaluation]
    draws: int = 2
    windows: int = 8
    length: int = 256
    data_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, got {self.draws}")
        for what, names in (
            ("method", [m.name for m in self.methods]), ("calibration set", list(self.calibrations)),
            ("evaluation", [e.name for e in self.evaluations]),
        ):  # fmt: skip
            if not names:
                raise ValueError(f"a study needs at least one {what}")
            if len(set(names)) < len(names):
                raise ValueError(f"a {what} is named twice: {', '.join(names)}")
        if not self.calibrations and any(m.reads_text for m in self.methods):
            raise ValueError("a method here reads text: name calibration sets")
        for evaluation in self.evaluations:
            if any(evaluation.name in name.split("+") for name in self.calibrations):
                raise ValueError(f"{evaluation.name} is calibrated on and judged on: judge on text that was held out")

    def text(self, model: StudyModel, name: str, draw: int) -> CalibrationSet:
        """One draw of a calibration set in the tokens of a model."""
        return calibration_set(
            name, model.tokenizer, windows=self.windows, length=self.length, seed=draw, data_dir=self.data_dir
        )

    def columns(self, method: StudyMethod) -> list[tuple[str | None, int | None]]:
        """(calibration set, draw) of a method's rows; (None, None) alone for one that reads no text."""
        if not method.reads_text:
            return [(None, None)]
        return [(name, draw) for name in self.calibrations for draw in range(self.draws)]


@dataclass(frozen=True)
class StudyRow:
    """One cell: calibration and draw are None for a method that reads no text."""

    model: str
    method: str
    calibration: str | None
    draw: int | None
    evaluation: str
    numbers: Numbers

    @property
    def labels(self) -> dict[str, Any]:
        """Which cell it is."""
        return {name: getattr(self, name) for name in ("model", "method", "calibration", "draw", "evaluation")}

    def to_dict(self) -> dict[str, Any]:
        """Flat, the numbers as columns."""
        return self.labels | self.numbers


@dataclass(eq=False)
class CellFile:
    """Numbers of cells by their digest; with a path also in a JSONL file, a line for each, written as it is measured.

    A line that a kill cut is dropped.  Cells of other grids and models may stand in the same file.

    seconds  of the processor that each cell took, its share of making the candidate included
    used     cells that grids have asked for
    """

    path: Path | None = None
    known: dict[str, Numbers] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    _file: IO[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> CellFile:
        if self.path is None:
            return self
        self._file, good = open_alone(self.path), 0
        self._file.seek(0)
        for number, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):
                break
            where = f"{self.path}:{number}"
            record = parse_line(raw, where)
            if not isinstance(record.get("cell"), str) or not isinstance(record.get("numbers"), dict):
                self._file.close()
                raise DataError(f'{where}: no cell of a study (fields "cell" and "numbers"): choose another file')
            self.known[record["cell"]] = record["numbers"]
            self.seconds[record["cell"]] = float(record.get("seconds", 0.0))
            good += len(raw)
        self._file.truncate(good)
        self._file.seek(good)
        return self

    @property
    def seconds_used(self) -> float:
        """Of all cells that grids have asked for, whenever they were measured."""
        return sum(self.seconds.get(cell, 0.0) for cell in self.used)

    def add(self, cell: str, row: StudyRow, seconds: float) -> None:
        self.known[cell], self.seconds[cell] = row.numbers, seconds
        if self._file is not None:
            record = {"cell": cell, **row.labels, "numbers": row.numbers, "seconds": round(seconds, 2)}
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def run_grid(
    models: Sequence[StudyModel], grid: StudyGrid, *, cells: CellFile | None = None, said: Said | None = None
) -> list[StudyRow]:
    """Measure every cell that `cells` does not know; rows in the order of models, methods, sets, draws, evaluations.

    A candidate is made once for all its evaluations; equal calibration sets (by their tokens) share a cell.
    said  is given a line about each cell that was measured
    """
    cells = CellFile() if cells is None else cells
    total = len(models) * sum(len(grid.columns(method)) for method in grid.methods) * len(grid.evaluations)
    return list(_rows(models, grid, cells, total, said or (lambda line: None)))


def _rows(models: Sequence[StudyModel], grid: StudyGrid, cells: CellFile, total: int, said: Said) -> Iterator[StudyRow]:
    done = 0
    for model in models:
        reading = any(method.reads_text for method in grid.methods)
        asked = [(name, draw) for name in grid.calibrations for draw in range(grid.draws) if reading]
        sets = {(name, draw): grid.text(model, name, draw) for name, draw in asked}  # a text too short ends it here
        keys = [evaluation.key(model) for evaluation in grid.evaluations]
        for method in grid.methods:
            for name, draw in grid.columns(method):
                chosen = None if name is None or draw is None else sets[name, draw]
                candidate: CompressedModel | None = None
                for evaluation, key in zip(grid.evaluations, keys, strict=True):
                    cell, done, started = _digest(model, method, chosen, key), done + 1, time.process_time()
                    cells.used.add(cell)
                    fresh = cell not in cells.known
                    if fresh:
                        candidate = candidate or method.apply(model, chosen)
                        numbers = dict(evaluation.measure(model, candidate))
                    row = StudyRow(
                        model.name, method.name, name, draw, evaluation.name, numbers if fresh else cells.known[cell]
                    )
                    if fresh:
                        cells.add(cell, row, time.process_time() - started)
                        said(f"{done}/{total} {_line(row)}")
                    yield row
        for evaluation in grid.evaluations:
            evaluation.close()


def _digest(model: StudyModel, method: StudyMethod, chosen: CalibrationSet | None, key: Mapping[str, Any]) -> str:
    return fingerprint(
        {
            "likely": version("likely"), "model": model.digest, "method": method.name,
            "scheme": repr(method.scheme), "calibration": None if chosen is None else chosen.digest,
            "evaluation": dict(key),
        }
    )  # fmt: skip


def _line(row: StudyRow) -> str:
    made = row.method if row.calibration is None else f"{row.method} on {row.calibration}, draw {row.draw}"
    first, value = next(iter(row.numbers.items()))
    return f"{row.model}, {made}: {first} {'-' if value is None else f'{value:.4g}'} on {row.evaluation}"
