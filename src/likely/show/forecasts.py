"""Forecasts as a picture or a page: the last rows, what is expected, its intervals, and how the methods did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from likely.forecasting.selection import ForecastReport
from likely.forecasting.series import TimeSeries
from likely.show.html import html_table, opening, page_style
from likely.show.plot import COLOURS, new_figure
from likely.show.tokens import one_line, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 4  # horizons of the past that are drawn
_LEAST = 24  # rows of it, at least
_WIDTH, _HEIGHT = 960.0, 260.0
_STYLE = """
.texts { grid-template-columns: 1fr; }
.chart { display: block; width: 100%; height: auto; }
.chart .past { fill: none; stroke: currentColor; stroke-width: 1.5; }
.chart .mean { fill: none; stroke: #d55e00; stroke-width: 2; }
.chart .band { fill: #d55e00; fill-opacity: .2; stroke: none; }
.chart text { fill: currentColor; font-size: 12px; }
"""
HEADS = ("method", "validation MSE", "test MSE", "test MAE", "coverage")


def comparison_rows(report: ForecastReport) -> list[list[str]]:
    """The methods under HEADS, the chosen one with a star; errors in units of the training rows' standard deviation."""
    return [
        [m.method + " *" * (m.method == report.chosen), f"{m.validation:.4f}", f"{m.test:.4f}", f"{m.test_mae:.4f}",
         f"{m.coverage:.3f}"]
        for m in report.methods
    ]  # fmt: skip


def draw_forecast(report: ForecastReport) -> Figure:
    """One panel for each column: the last rows, the mean, its intervals."""
    forecast, past = report.forecast, _past(report)
    count = len(forecast.names)
    figure = new_figure((11, 1.2 + 2.8 * count), dpi=120)
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for c, (axes, name) in enumerate(zip(panels, forecast.names, strict=True)):
        axes.plot(past.times, past.values[:, c], color="#444444", linewidth=1.2, label="known")
        axes.plot(forecast.times, forecast.mean[:, c], color=COLOURS[1], linewidth=1.8, label="expected")
        band = _band(report, c)
        if band is not None:
            low, high = band
            axes.fill_between(
                forecast.times,
                low,
                high,
                color=COLOURS[1],
                alpha=0.2,
                linewidth=0,
                label=f"{forecast.level:.0%} interval",
            )
        axes.set_ylabel(name.replace("$", r"\$"))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize="small")
    panels[0].set_title(forecast.method.replace("$", r"\$"), loc="left", fontsize="medium")
    return figure


def forecast_page(report: ForecastReport, *, title: str = "Forecast") -> str:
    """A page that loads nothing and has no script: charts, the comparison, all numbers."""
    parts = opening(title, page_style() + _STYLE, {"method": report.chosen, "level": report.level})
    parts += ["</header>", '<main class="texts">']
    parts += [_chart(report, c) for c in range(len(report.forecast.names))]
    rows = [[_text(cell) for cell in row] for row in comparison_rows(report)]
    caption = (
        f"Errors in units of the training rows' standard deviation; {report.rows[0]} rows to train on, "
        f"{report.rows[1]} to choose by, {report.rows[2]} to test on; coverage of {report.level:.0%} promised"
    )
    parts.append(f"<article>{html_table(caption, HEADS, rows)}</article>")
    parts.append(f"<article>{_steps(report)}</article>")
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def _past(report: ForecastReport) -> TimeSeries:
    shown = max(_LEAST, _SHOWN * len(report.forecast.times))
    return report.history.rows(max(0, len(report.history) - shown))


def _band(report: ForecastReport, column: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """None where there is no finite interval."""
    low, high = report.forecast.low, report.forecast.high
    if low is None or high is None or not np.isfinite(low[:, column]).all():
        return None
    return low[:, column], high[:, column]


def _chart(report: ForecastReport, column: int) -> str:
    forecast, past = report.forecast, _past(report)
    known, mean, band = past.values[:, column], forecast.mean[:, column], _band(report, column)
    times = np.concatenate([past.times, forecast.times]).astype(np.int64).astype(float)
    x = (times - times[0]) / max(times[-1] - times[0], 1) * _WIDTH
    every = np.concatenate([known, mean, *(band or ())])
    bottom, span = every.min(), float(np.ptp(every)) or 1.0

    def y(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (_HEIGHT - 12) * (1 - (values - bottom) / span) + 6

    n = len(known)
    shapes = []
    if band is not None:
        low, high = band
        outline = [*_points(x[n:], y(high)), *reversed(list(_points(x[n:], y(low))))]
        shapes.append(f'<polygon class="band" points="{" ".join(outline)}"/>')
    shapes.append(f'<polyline class="past" points="{" ".join(_points(x[:n], y(known)))}"/>')
    shapes.append(f'<polyline class="mean" points="{" ".join(_points(x[n:], y(mean)))}"/>')
    name = _text(forecast.names[column])
    ends = f"{past.times[0]} to {forecast.times[-1]}; {every.min():.4g} to {every.max():.4g}"
    return (
        f'<article><h2>{name}</h2><svg class="chart" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{name}: known rows and forecast">{"".join(shapes)}</svg>'
        f'<p class="soft">{escape(ends)}</p></article>'
    )


def _points(x: Sequence[float] | NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[str]:
    return (f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _steps(report: ForecastReport) -> str:
    forecast = report.forecast
    heads = ["time"]
    for name in forecast.names:
        heads += [_text(name), "low", "high"]
    rows = []
    for i, time in enumerate(forecast.times):
        row = [escape(str(time))]
        for c in range(len(forecast.names)):
            row.append(_number(forecast.mean[i, c]))
            row += [_number(end[i, c]) if end is not None else "" for end in (forecast.low, forecast.high)]
        rows.append(row)
    return f"<details><summary>All {len(rows)} steps</summary>{html_table('Expected values', heads, rows)}</details>"


def _number(value: float) -> str:
    return f'<data value="{float(value)!r}">{value:.6g}</data>' if np.isfinite(value) else ""


def _text(text: str) -> str:
    return escape(visible(one_line(text)))
