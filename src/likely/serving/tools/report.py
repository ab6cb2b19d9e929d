"""What a run of tasks achieved and cost: success, validity, executed calls, repairs, fallbacks, latency, energy.

Cost per successful task (CPS) = the cost of all tasks, failed attempts, repairs and fallbacks included, divided by the
number of solved ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from likely.metrics.bootstrap import bootstrap_ratio
from likely.metrics.checks import Floats

RAPL = Path("/sys/class/powercap")
EnergySource = Literal["rapl", "estimate"]


@dataclass(frozen=True)
class Prices:
    """What a model costs, in one unit: per token of prompts and of texts, per second, per call of the model."""

    prompt_token: float = 0.0
    token: float = 0.0
    second: float = 0.0
    call: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number >= 0, got {value}")

    def cost(self, *, prompt_tokens: int = 0, tokens: int = 0, seconds: float = 0.0, calls: int = 1) -> float:
        return prompt_tokens * self.prompt_token + tokens * self.token + seconds * self.second + calls * self.call


@dataclass(frozen=True)
class TaskRecord:
    """One task.

    structured    whether its answer had to have a form;  valid_first, valid: it had at the first attempt, at the last
    calls_made, calls_executed  of the last attempt: all, and those that passed every check and did not fail
    selected      whether the right tools were called;  arguments: of these, whether with the right arguments
    joules        None: not measured
    """

    solved: bool
    cost: float = 0.0
    seconds: float = 0.0
    structured: bool = True
    valid_first: bool = True
    valid: bool = True
    calls_made: int = 0
    calls_executed: int = 0
    selected: bool | None = None
    repairs: int = 0
    fell_back: bool = False
    joules: float | None = None


@dataclass(frozen=True)
class Rate:
    """A mean or ratio with its 95 % bootstrap interval over tasks; value None where there is nothing to divide by."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        return {name: None if value is not None and math.isinf(value) else value for name, value in vars(self).items()}


def cost_per_success(costs: Sequence[float], solved: Sequence[bool]) -> float:
    """Σ costs / number solved; inf where none is."""
    if len(costs) != len(solved):
        raise ValueError(f"{len(costs)} costs for {len(solved)} tasks")
    count = sum(map(bool, solved))
    return math.fsum(costs) / count if count else math.inf


def ratio_of(tops: Sequence[float], bottoms: Sequence[float]) -> Rate:
    """Σ tops / Σ bottoms; inf where something was spent and nothing achieved."""
    above, below = math.fsum(tops), math.fsum(bottoms)
    if not below:
        value = math.inf if above else None
        return Rate(value, None, None, len(tops))
    low, high = bootstrap_ratio(tops, bottoms)
    return Rate(above / below, min(low, above / below), max(high, above / below), len(tops))


def mean_of(values: Sequence[float]) -> Rate:
    return ratio_of(values, [1.0] * len(values))


def task_report(records: Sequence[TaskRecord], *, measured_by: EnergySource = "estimate") -> dict[str, Any]:
    """All figures of a run, each a `Rate` as a dict; latency as p50 and p95 in seconds.

    measured_by  where the joules come from: "estimate" says that they are processor seconds times stated watts
    """
    if not records:
        raise ValueError("a report needs at least one task")
    asked = [r for r in records if r.structured]
    chosen = [r for r in records if r.selected is not None]
    right = [r for r in chosen if r.selected]
    rates = {
        "success": mean_of([r.solved for r in records]),
        "valid_first": mean_of([r.valid_first for r in asked]),
        "valid": mean_of([r.valid for r in asked]),
        "executable_calls": ratio_of([r.calls_executed for r in records], [r.calls_made for r in records]),
        "tool_selection": mean_of([float(bool(r.selected)) for r in chosen]),
        "arguments": mean_of([float(r.solved) for r in right]),
        "repairs_per_task": mean_of([r.repairs for r in records]),
        "fallback": mean_of([r.fell_back for r in records]),
        "cost_per_success": ratio_of([r.cost for r in records], [r.solved for r in records]),
        "cost_per_task": mean_of([r.cost for r in records]),
    }
    found: dict[str, Any] = {"tasks": len(records), **{name: rate.to_dict() for name, rate in rates.items()}}
    seconds: Floats = np.array([r.seconds for r in records])
    found["latency_s"] = {"p50": float(np.quantile(seconds, 0.5)), "p95": float(np.quantile(seconds, 0.95))}
    joules = [r.joules for r in records if r.joules is not None]
    if joules:
        found["energy_j"] = {**mean_of(joules).to_dict(), "source": measured_by, "estimate": measured_by == "estimate"}
    return found


class EnergyMeter:
    """Joules between `with` and its end: of the whole machine by Intel RAPL, else processor seconds × watts.

    watts  of one busy core, for the estimate;  idle_watts: of the idle machine, taken off what RAPL says
    root   folder of the powercap files

    `joules` and `source` ("rapl" or "estimate") are set at the end.
    """

    joules: float = 0.0

    def __init__(self, *, watts: float = 10.0, idle_watts: float = 0.0, root: Path = RAPL):
        if not watts > 0 or not idle_watts >= 0:
            raise ValueError(f"watts must be > 0 and idle_watts >= 0, got {watts} and {idle_watts}")
        self._watts, self._idle, self._root = watts, idle_watts, root
        self.source: EnergySource = "rapl" if self._read() else "estimate"

    def __enter__(self) -> EnergyMeter:
        self._before, self._cpu, self._clock = self._read(), time.process_time(), time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.source == "estimate":
            self.joules = (time.process_time() - self._cpu) * self._watts
            return
        used = 0.0
        for name, (after, most) in self._read().items():
            before, _ = self._before.get(name, (after, most))
            used += (after - before if after >= before else after + most - before) / 1e6
        self.joules = max(0.0, used - self._idle * (time.monotonic() - self._clock))

    def _read(self) -> Mapping[str, tuple[int, int]]:
        """Of each package: (its counter, where the counter begins anew), in microjoules."""
        found = {}
        for zone in sorted(self._root.glob("intel-rapl:?")):
            try:
                found[zone.name] = (
                    int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text()),
                )  # fmt: skip
            except (OSError, ValueError):
                continue
        return found
