"""Tokens per call against the draft budget, one curve per drafter: in the terminal as bars, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from likely.errors import missing_extra
from likely.show.plot import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[int, float, float, float]  # budget, tokens per call, its interval's ends
MARKS = "os^Dv<>P*X"


def bars(curves: Mapping[str, Sequence[Point]], *, width: int = 40) -> list[str]:
    """Lines of text: one bar per drafter and budget, from 1 token per call on."""
    top = max(value for points in curves.values() for _, value, _, _ in points)
    names = max(map(len, curves))
    lines = [f"{'drafter':{names}}  budget  tokens per call"]
    for name, points in curves.items():
        for i, (budget, value, _, _) in enumerate(points):
            length = round(width * (value - 1) / (top - 1)) if top > 1 else 0
            lines.append(f"{'' if i else name:{names}}  {budget:6}  {value:6.2f} {'#' * length}".rstrip())
    return lines


def draw(curves: Mapping[str, Sequence[Point]], *, title: str = "") -> Figure:
    """One line per drafter with its 95 % band."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "plots") from None
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        budgets, values, low, high = zip(*points, strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(budgets, values, color=colour, marker=MARKS[i % len(MARKS)], label=name.replace("$", r"\$"))
        axes.fill_between(budgets, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    ticks = sorted({budget for points in curves.values() for budget, *_ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="drafted tokens per call, at most", ylabel="tokens per call", title=title.replace("$", r"\$"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.8, edgecolor="none", fontsize="small")
    return figure
