"""Pictures of what drafters gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from likely.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from likely.bench.speculation import Row


def draw_ratios(found: Mapping[str, Sequence[Row]]) -> Figure:
    """Ratios to plain decoding with their intervals: a panel per runtime, a line per task."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "plots") from None
    tasks = list(dict.fromkeys(row.task for rows in found.values() for row in rows))
    figure = Figure(figsize=(5.5 * len(found), 1.5 + 0.6 * len(tasks)), layout="constrained")
    for axis, (name, rows) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        drafters = list(dict.fromkeys(row.drafter for row in rows))
        for k, drafter in enumerate(drafters):
            mine = [row for row in rows if row.drafter == drafter]
            height = [tasks.index(row.task) + (k - (len(drafters) - 1) / 2) * 0.7 / len(drafters) for row in mine]
            ends = [[max(row.ratio - row.low, 0) for row in mine], [max(row.high - row.ratio, 0) for row in mine]]
            axis.errorbar([row.ratio for row in mine], height, xerr=ends, fmt="o", capsize=2, label=drafter)
        axis.axvline(1.0, color="grey", linewidth=1)
        axis.set_yticks(range(len(tasks)), tasks)
        axis.invert_yaxis()
        axis.set(xlabel="times as fast as plain decoding", title=name)
        axis.legend()
    return figure
