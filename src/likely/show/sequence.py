"""The benchmark of sequence layers as a page and a picture: the table, and learning curves of each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.show.html import html_table, opening, page_style
from likely.show.plot import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from likely.bench.sequence.comparison import BenchCell, BenchColumn, LayerComparison

_STYLE = """
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.panels svg { width: 100%; height: auto; display: block; }
.panels text { fill: var(--soft); font: 9px system-ui, sans-serif; }
.panels .axis { stroke: var(--line); }
.panels .chance { stroke: var(--soft); stroke-dasharray: 3 3; }
.key { display: inline-block; }
table { white-space: nowrap; }
"""
_DASHES = ("-", "--", "-.", ":")


def layers_page(found: LayerComparison, *, title: str = "", origin: Mapping[str, Any] | None = None) -> str:
    """A page that loads nothing: the table, then for each task the curves of all layers (mean over seeds)."""
    parts = opening(title or "Sequence layers on small tasks", page_style() + _STYLE, origin)
    heads, rows = found.table()
    cells = [[escape(text) for text in row] for row in rows]
    parts += ["</header><main>", html_table(escape(found.caption()), [escape(h) for h in heads], cells)]
    if found.missing:
        parts.append(f'<p class="soft">Not computed: {escape("; ".join(found.missing))}</p>')
    parts.append('<div class="panels">')
    parts += [_panel(found, column) for column in found.columns]
    parts.append("</div></main></body></html>\n")
    return "\n".join(parts)


def _panel(found: LayerComparison, column: BenchColumn) -> str:
    curves = [(row.layer, cell) for row in found.rows if (cell := row.cells.get(column.task)) and cell.curves]
    low, high = _range(column, [cell for _, cell in curves])
    last = max((cell.steps[-1] for _, cell in curves), default=1)

    def point(step: float, value: float) -> str:
        clipped = min(max(value, low), high)
        return f"{36 + 200 * step / last:.1f},{110 - 100 * (clipped - low) / (high - low):.1f}"

    lines, keys = [], []
    for number, (layer, cell) in enumerate(curves):
        means = np.mean(cell.curves, 0)
        points = " ".join(point(s, v) for s, v in zip(cell.steps, means, strict=True))
        colour, dash = COLOURS[number % len(COLOURS)], ("", "6 3", "6 2 2 2", "2 2")[number // len(COLOURS) % 4]
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" '
                     f'stroke-dasharray="{dash}"><title>{escape(layer)}</title></polyline>')  # fmt: skip
        keys.append(
            f'<span class="key"><svg width="24" height="8" aria-hidden="true"><line x1="0" x2="22" y1="4" y2="4" '
            f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/></svg> {escape(layer)} '
            f"{escape(column.text(cell.mean))}</span>"
        )
    x, y = point(0, column.chance).split(",")
    ends = f"{escape(column.text(high))}</text>", f"{escape(column.text(low))}</text>"
    return (
        f'<article><h2>{escape(column.task)}</h2><p class="soft">{escape(column.about)}; {escape(column.metric)}; '
        f"{column.length:,} steps; dashed: chance</p>"
        f'<svg viewBox="0 0 244 126" role="img" aria-label="Learning curves of {escape(column.task)}">'
        f'<line class="axis" x1="36" x2="36" y1="10" y2="110"/><line class="axis" x1="36" x2="236" y1="110" y2="110"/>'
        f'<line class="chance" x1="{x}" x2="236" y1="{y}" y2="{y}"/>{"".join(lines)}'
        f'<text x="0" y="14">{ends[0]}<text x="0" y="110">{ends[1]}<text x="236" y="122" text-anchor="end">'
        f"{last:,} steps of training</text></svg><p>{' '.join(keys)}</p></article>"
    )


def _range(column: BenchColumn, cells: list[BenchCell]) -> tuple[float, float]:
    """Of the values shown: from 0 to 1 for shares, else what is seen, up to a third above chance."""
    if column.metric == "accuracy":
        return 0.0, 1.0
    seen = [value for cell in cells for curve in cell.curves for value in curve if math.isfinite(value)]
    low = min([column.chance, *seen])
    high = max([column.chance, *(value for value in seen if value <= column.chance * 4 / 3)])
    return (low, high) if high > low else (low, low + 1)


def draw_layers(found: LayerComparison) -> Figure:
    """A panel per task: the mean of each layer's curves, a band from the lowest to the highest seed, chance dashed."""
    across = min(4, max(1, len(found.columns)))
    down = -(-len(found.columns) // across)
    figure = new_figure((3.6 * across, 2.9 * down + 0.5))
    panels = figure.subplots(max(down, 1), across, squeeze=False).ravel()
    for axes, column in zip(panels, found.columns, strict=False):
        for number, row in enumerate(found.rows):
            cell = row.cells.get(column.task)
            if cell is None or not cell.curves:
                continue
            curves, colour = np.array(cell.curves), COLOURS[number % len(COLOURS)]
            axes.plot(cell.steps, curves.mean(0), color=colour, label=row.layer, linewidth=1.6,
                      linestyle=_DASHES[number // len(COLOURS) % len(_DASHES)])  # fmt: skip
            axes.fill_between(cell.steps, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.axhline(column.chance, color="grey", linewidth=1, linestyle="--")
        low, high = _range(column, [row.cells[column.task] for row in found.rows if column.task in row.cells])
        margin = 0.03 * (high - low)
        axes.set(
            title=column.task, xlabel="steps of training", ylabel=column.metric, ylim=(low - margin, high + margin)
        )
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(found.columns) :]:
        axes.set_axis_off()
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=min(6, len(handles)),
                      frameon=False, fontsize="small")  # fmt: skip
    return figure
