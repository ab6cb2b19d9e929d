"""Reliability diagrams: how often rows are right at each stated confidence, as data, text or a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.errors import needs
from likely.metrics.bins import Binning, BinTable, Edge, bin_table
from likely.metrics.intervals import wilson
from likely.metrics.smooth import SmoothCurve, smooth_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's
_SCALE = 41  # characters of the scale 0..1 in a text


@dataclass(frozen=True)
class Reliability:
    """What a diagram shows.

    n        rows;  mean_confidence, accuracy: of all of them;  ece: of `table`
    table    bins that hold rows
    low, high  (B,) Wilson interval, 95 %, of each bin's accuracy
    curve    kernel regression, if asked for
    """

    n: int
    mean_confidence: float
    accuracy: float
    ece: float
    table: BinTable
    low: list[float]
    high: list[float]
    curve: SmoothCurve | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        bins = [
            row | {"accuracy_interval": [low, high]}
            for row, low, high in zip(self.table.to_dict(), self.low, self.high, strict=True)
        ]
        found = {"n": self.n, "mean_confidence": self.mean_confidence, "accuracy": self.accuracy, "ece": self.ece}
        return found | {"bins": bins} | ({} if self.curve is None else {"curve": self.curve.to_dict()})


def reliability(
    confidence: Any,
    correct: Any,
    *,
    bins: int = 10,
    binning: Binning = "width",
    edge: Edge = "right",
    smooth: bool = False,
    seed: int = 0,
) -> Reliability:
    """Data of a diagram.  confidence (N,) in [0, 1], correct (N,) of 0 and 1; settings of bins as for `bins.ece`.

    smooth  also a curve without bins (`smooth.smooth_curve`), with a bootstrap band
    """
    table = bin_table(confidence, correct, bins=bins, binning=binning, edge=edge)
    right = np.rint(table.accuracy * table.n).astype(int)
    spread = [wilson(int(k), int(n)) for k, n in zip(right, table.n, strict=True)]
    total = int(table.n.sum())
    return Reliability(
        n=total,
        mean_confidence=float(table.n @ table.confidence / total),
        accuracy=float(right.sum() / total),
        ece=float(table.n @ np.abs(table.confidence - table.accuracy) / total),
        table=table,
        low=[low for low, _ in spread],
        high=[high for _, high in spread],
        curve=smooth_curve(confidence, correct, seed=seed) if smooth else None,
    )


def as_text(shown: Reliability) -> str:
    """A diagram of plain ASCII lines, one for each bin: its accuracy o, the interval of that, its confidence |.

    confidence          n   said  right   0         .2        .4        .6        .8        1
    0.600-0.700       214  0.651  0.562                             ---o--- |
    """
    head = f"{'confidence':<13}{'n':>8}{'said':>7}{'right':>7}   "
    ticks = [" "] * (_SCALE + 1)
    for tenth in range(0, 11, 2):
        for place, mark in enumerate("0" if tenth == 0 else "1" if tenth == 10 else f".{tenth}"):
            ticks[_at(tenth / 10) + place] = mark
    lines = [head + "".join(ticks).rstrip()]
    for row, low, high in zip(shown.table.to_dict(), shown.low, shown.high, strict=True):
        scale = [" "] * _SCALE
        scale[_at(low) : _at(high) + 1] = "-" * (_at(high) - _at(low) + 1)
        scale[_at(row["confidence"])] = "|"
        scale[_at(row["accuracy"])] = "o"  # on the same place: right as often as said
        numbers = f"{row['n']:>8}{row['confidence']:>7.3f}{row['accuracy']:>7.3f}"
        lines.append((f"{row['low']:.3f}-{row['high']:.3f}".ljust(13) + numbers + "   " + "".join(scale)).rstrip())
    lines.append(
        f"o right, | said, - 95 % interval of right.  {shown.n} rows: said {shown.mean_confidence:.3f}, "
        f"right {shown.accuracy:.3f}, ECE {shown.ece:.4f}"
    )
    return "\n".join(lines)


def _at(share: float) -> int:
    return round(share * (_SCALE - 1))


def draw(shown: Mapping[str, Reliability]) -> Figure:
    """A figure of one or more diagrams by name, over the shares of rows at each confidence.

    Points with 95 % intervals; where a curve is there, the curve with its band instead.
    """
    with needs("matplotlib", "plots"):
        from matplotlib.figure import Figure
    if not shown:
        raise ValueError("nothing to draw: give at least one diagram")
    figure = Figure(figsize=(6, 7), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    above.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=":")
    lines = []
    for number, (name, one) in enumerate(shown.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{name} (n={one.n:,}, ECE {one.ece:.3f})".replace("$", r"\$")
        lines.append(_accuracies(above, one, colour, " " + label if label.startswith("_") else label))
        _shares(below, one, colour)
    above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    below.set(xlabel="stated confidence", ylabel="share of rows", ylim=(0, None))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(handles=lines, loc="upper left", framealpha=0.8, edgecolor="none", fontsize="small")
    return figure


def _accuracies(axes: Axes, one: Reliability, colour: str, label: str) -> Any:
    """Draws, and returns what stands for it in the legend."""
    if one.curve is not None:
        curve = one.curve
        # points without rows between them are not joined
        gaps = np.flatnonzero(np.diff(curve.confidence) > 1.5 * np.diff(curve.confidence).min(initial=1)) + 1
        x, y, low, high = (
            np.insert(v, gaps, np.nan) for v in (curve.confidence, curve.accuracy, curve.low, curve.high)
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        return axes.plot(x, y, color=colour, linewidth=1.8, label=label)[0]
    table = one.table
    errors = np.stack([table.accuracy - one.low, one.high - table.accuracy]).clip(min=0)
    return axes.errorbar(
        table.confidence, table.accuracy, yerr=errors, color=colour, marker="o", markersize=4, linewidth=1.2,
        elinewidth=0.8, capsize=2, label=label,
    )  # fmt: skip


def _shares(axes: Axes, one: Reliability, colour: str) -> None:
    table = one.table
    width = np.maximum(table.high - table.low, 0.005)
    axes.bar(table.low, table.n / one.n, width=width, align="edge", edgecolor=colour, facecolor="none", linewidth=1.2)
