"""What one call of a model costs on this machine, measured: what choosing a runtime, batching and drafting rest on."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from likely.errors import DataError
from likely.io.hashes import cache_dir, fingerprint
from likely.io.whole_file import write_whole_file
from likely.runtimes.protocol import Runtime, Want, Work
from likely.runtimes.step_cost import StepCost

POSITIONS = (1, 2, 4, 8, 16, 32, 64)
SEQUENCES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class CallCost:
    """One measured call: `sequences` sequences with `context` kept tokens each, `positions` new tokens in all."""

    runtime: str
    dtype: str
    positions: int
    sequences: int
    context: int
    threads: int
    cpu: str
    milliseconds: float
    tokens_per_s: float
    kind: str = "decode"  # or "prefill"


@dataclass(frozen=True)
class CostCurve:
    """What was measured of one model on one runtime; `seconds(n)` interpolates single-sequence calls.

    source     sha256 of the model's files: the same in the curves of all runtimes
    step_cost  the terms fitted to the rows, where they tell them apart
    """

    revision: str
    rows: list[CallCost] = field(default_factory=list)
    source: str = ""
    step_cost: StepCost | None = None

    def fitted(self) -> StepCost:
        """The terms of `StepCost` from the rows of decoding; DataError where these tell too little."""
        rows = [row for row in self.rows if row.kind == "decode"]
        first = rows[0] if rows else None
        place = {} if first is None else {
            "cpu": first.cpu, "threads": str(first.threads), "runtime": first.runtime, "dtype": first.dtype,
            "model": self.source,
        }  # fmt: skip
        return StepCost.fit(
            [row.sequences for row in rows],
            [row.positions for row in rows],
            [row.sequences * row.context for row in rows],
            [row.milliseconds / 1e3 for row in rows],
            measured_on=place,
        )

    def seconds(self, positions: int) -> float:
        """Predicted time of one call on `positions` tokens of one sequence, linear between measurements."""
        points = sorted((r.positions, r.milliseconds) for r in self.rows if r.sequences == 1 and r.kind == "decode")
        if not points:
            raise ValueError("the cost curve is empty: run likely bench")
        xs, ys = zip(*points, strict=True)
        if positions > xs[-1]:
            return ys[-1] / xs[-1] * positions / 1e3
        return float(np.interp(positions, xs, ys)) / 1e3

    def seconds_per_token(self, use: str) -> float | None:
        """Of one text ("single"), of the largest measured batch ("batch"), of reading ("scoring"); None: not measured.

        The smallest measured context counts.
        """
        context = min((r.context for r in self.rows if r.kind == "decode"), default=0)
        decode = [r for r in self.rows if r.kind == "decode" and r.context == context]
        match use:
            case "scoring":
                rows = [r for r in self.rows if r.kind == "prefill"]
            case "batch":
                together = [r for r in decode if r.sequences == r.positions > 1]
                largest = max((r.sequences for r in together), default=0)
                rows = [r for r in together if r.sequences == largest]
            case _:
                rows = [r for r in decode if r.sequences == r.positions == 1]
        return min((r.milliseconds / 1e3 / r.positions for r in rows), default=None)

    def save(self) -> Path:
        """Store it for other parts of likely; written to a temporary name and renamed."""
        path = curve_path(self.revision)
        write_whole_file(path, json.dumps(asdict(self)).encode())
        return path

    @classmethod
    def load(cls, revision: str) -> CostCurve | None:
        """The stored curve of this revision; None if there is none that can be read."""
        found = cls._read(curve_path(revision))
        return found if found is not None and found.revision == revision else None

    @classmethod
    def of_source(cls, source: str, cpu: str) -> list[CostCurve]:
        """The stored curves of one model on this kind of processor, one per runtime and dtype."""
        found = [cls._read(path) for path in sorted((cache_dir() / "cost").glob("*.json"))]
        return [c for c in found if c and c.rows and c.source == source and all(r.cpu == cpu for r in c.rows)]

    @classmethod
    def _read(cls, path: Path) -> CostCurve | None:
        try:
            data = json.loads(path.read_text())
            step = data.get("step_cost")
            return cls(
                data["revision"],
                [CallCost(**row) for row in data["rows"]],
                data.get("source", ""),
                StepCost.from_dict(step) if step else None,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def curve_path(revision: str) -> Path:
    """Revisions of several runtimes begin alike: the name is a digest of all of it."""
    return cache_dir() / "cost" / f"{fingerprint(revision, 32)}.json"


def measure(
    runtime: Runtime,
    *,
    name: str,
    dtype: str,
    threads: int,
    cpu: str,
    source: str = "",
    contexts: Iterable[int] = (128,),
    positions: Iterable[int] = POSITIONS,
    sequences: Iterable[int] = SEQUENCES,
    per_sequence: Iterable[int] = (1,),
    batch_contexts: Iterable[int] = (),
    prefill: int = 512,
    rounds: int = 5,
    seconds: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> CostCurve:
    """Time calls of every shape, interleaved over `rounds`; medians.  Stops early, with whole rounds, at `seconds`.

    Every position's row of logits is computed and its best token read, as verification does.

    positions     new tokens of a single sequence with each of the `contexts` kept
    sequences     of a batch, each with these numbers of new tokens (per_sequence), and with each of batch_contexts kept
                  (by default the first of `contexts`)
    """
    contexts, rng = [c for c in contexts if c < runtime.context_length], np.random.default_rng(0)
    shapes = [("prefill", 0, 1, min(prefill, runtime.context_length - 1))]  # first: it needs the most free room
    shapes += [("decode", c, 1, n) for c in contexts for n in positions if c + n <= runtime.context_length]
    limits = runtime.limits
    shapes += [
        ("decode", c, s, s * each)
        for c in batch_contexts or contexts[:1]
        for s in sequences
        for each in per_sequence
        if s > 1
        and s * (c + each) <= limits.tokens_held
        and s <= limits.sequences
        and c + each <= runtime.context_length
    ]

    def tokens(n: int) -> np.ndarray:
        return rng.integers(3, min(runtime.vocab_size, 20_000), n)

    times: dict[tuple[str, int, int, int], list[float]] = {shape: [] for shape in shapes}
    started = time.perf_counter()
    for number in range(rounds + 1):  # the first round warms up
        if number > 1 and (time.perf_counter() - started) * (number + 1) / number > seconds:
            break
        if progress:
            progress(f"round {number} of {rounds}" if number else "warming up")
        held: dict[int, list[Any]] = {}
        for shape in shapes:
            kind, context, count, n = shape
            if kind == "prefill":
                sequence = runtime.open()
                elapsed = _timed(runtime, [Work(sequence, tokens(n), want=Want(rows="last", top=1))])
                runtime.close(sequence)
            else:
                group = held.setdefault(context, [])
                while len(group) < count:
                    group.append(runtime.open())
                    runtime.forward([Work(group[-1], tokens(context), want=Want.NONE)])
                each = n // count
                work = [Work(s, tokens(each), want=Want(rows="all", top=1)) for s in group[:count]]
                elapsed = _timed(runtime, work)
                for s in group[:count]:
                    runtime.truncate(s, context)
            if number:
                times[shape].append(elapsed)
        for group in held.values():
            for s in group:
                runtime.close(s)
    rows = []
    for (kind, context, count, n), found in times.items():
        median = float(np.median(found))
        rows.append(CallCost(name, dtype, n, count, context, threads, cpu, median * 1e3, n / median, kind))
    curve = CostCurve(runtime.revision, rows, source)
    with contextlib.suppress(DataError):  # too few shapes
        curve = replace(curve, step_cost=curve.fitted())
    return curve


def _timed(runtime: Runtime, work: list[Work]) -> float:
    started = time.perf_counter()
    runtime.forward(work)
    return time.perf_counter() - started
