"""Early convergence: from which step on a diffusion model would give its final answer, were it stopped there.

"Diffusion Language Models Know the Answer Before Decoding", arXiv:2508.19982, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from likely.decoding.diffusion.canvas import BoolArray, Canvas
from likely.decoding.diffusion.prophet import Prophet
from likely.errors import needs
from likely.metrics.checks import Floats
from likely.runtimes.protocol import FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from likely.decoding.diffusion.generate import DiffusionOutput

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's


@dataclass(frozen=True)
class ConvergenceTrace:
    """One row that was decoded to its end in S steps.

    gaps    (S,) of Prophet's region before each step
    tokens  (S, A) the answer span, had all been filled with the most likely tokens at that step
    final   (A,) the span as it was decoded
    """

    gaps: Floats
    tokens: IntArray
    final: IntArray

    @property
    def same(self) -> BoolArray:
        """(S,) whether stopping at this step would have given the final answer."""
        return np.asarray((self.tokens == self.final).all(axis=1))

    @property
    def stable_from(self) -> int:
        """The first step, from 1, from which on the answer is the final one at every step; S + 1 if at none."""
        other = np.flatnonzero(~self.same)
        return 1 if not len(other) else int(other[-1]) + 2

    def right(self, is_right: Callable[[IntArray], bool]) -> BoolArray:
        """(S,) whether stopping at each step would have given an answer (A,) that is right."""
        known: dict[bytes, bool] = {}
        found = []
        for answer in self.tokens:
            key = answer.tobytes()
            if key not in known:
                known[key] = bool(is_right(answer))
            found.append(known[key])
        return np.array(found, np.bool_)


class ConvergenceRecorder:
    """A stop rule of `diffusion_generate` that never stops, and records what stopping at each step would have given.

    rule    its gap is recorded
    answer  (start, end) of the answer that counts; None: all of it
    """

    commit: Literal["all"] = "all"

    def __init__(self, rule: Prophet | None = None, answer: tuple[int, int] | None = None):
        self.rule = Prophet() if rule is None else rule
        self._span = slice(*answer) if answer is not None else slice(None)
        self._gaps: dict[int, list[float]] = {}
        self._tokens: dict[int, list[IntArray]] = {}

    def decide(self, logits: FloatArray, canvas: Canvas, progress: Floats) -> BoolArray:
        gaps = self.rule.gap(logits, canvas)
        filled = np.where(canvas.masked, logits.argmax(axis=2), canvas.answers)[:, self._span]
        for row, gap, tokens in zip(canvas.rows.tolist(), gaps, filled, strict=True):
            self._gaps.setdefault(row, []).append(float(gap))
            self._tokens.setdefault(row, []).append(tokens)
        return np.zeros(len(gaps), np.bool_)

    def traces(self, output: DiffusionOutput) -> list[ConvergenceTrace]:
        """Of all rows of the run that this rule was given to; the recorder is empty again."""
        if sorted(self._gaps) != list(range(len(output.answers))):
            raise ValueError(f"{len(self._gaps)} rows were recorded and the output has {len(output.answers)}")
        found = [
            ConvergenceTrace(np.array(self._gaps[row]), np.stack(self._tokens[row]), answer[self._span])
            for row, answer in enumerate(output.answers)
        ]
        self._gaps, self._tokens = {}, {}
        return found


def convergence_curve(rows: Sequence[BoolArray], fractions: Floats) -> Floats:
    """(F,) share of rows that hold at each fraction of their steps; the step is ceil(fraction * S), at least 1.

    rows  of each trace its `same`, or its `right`
    """
    if not rows:
        raise ValueError("a curve needs at least one row")
    found = np.zeros(len(fractions))
    for row in rows:
        step = np.ceil(np.asarray(fractions) * len(row) - 1e-9).astype(int).clip(1, len(row))
        found += row[step - 1]
    return found / len(rows)


def draw_convergence(curves: Mapping[str, tuple[Floats, Floats]], *, what: str = "share decided") -> Figure:
    """A figure of curves by name: (fractions of the steps, shares); what: label of the second axis."""
    with needs("matplotlib", "plots"):
        from matplotlib.figure import Figure
    if not curves:
        raise ValueError("nothing to draw: give at least one curve")
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, (name, (fractions, shares)) in enumerate(curves.items()):
        axes.plot(fractions, shares, color=_COLOURS[number % len(_COLOURS)], label=name.replace("$", r"\$"), marker=".")
    axes.axvline(0.5, color="#888888", linewidth=1, linestyle=":")
    axes.set(xlabel="fraction of the steps", ylabel=what, xlim=(0, 1), ylim=(0, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", framealpha=0.8, edgecolor="none", fontsize="small")
    return figure
