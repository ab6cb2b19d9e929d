"""From a log-probability to one of seven colours, by fixed breakpoints: the same colour means the same p everywhere.

Each level has its own background and text colour (contrast at least 4.5 : 1), so a cell can be read on any page.  The
backgrounds differ in brightness, not only in hue: the order survives every kind of colour blindness and a grey print.
In `DARK` a less likely token is brighter, in `LIGHT` it is darker; either way it stands out more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# Nats. A token whose logprob is at least BREAKPOINTS[k] (and below the one before) has level k; below all: level 6.
BREAKPOINTS = (-0.1, -0.5, -1.0, -2.0, -4.0, -8.0)
LEVELS = len(BREAKPOINTS) + 1


class Cell(NamedTuple):
    background: str  # "#rrggbb"
    text: str


LIGHT = (
    Cell("#ffffff", "#1a1a1a"),
    Cell("#fff0c2", "#1a1a1a"),
    Cell("#ffd57e", "#1a1a1a"),
    Cell("#fbab45", "#1a1a1a"),
    Cell("#e57a1f", "#1a1a1a"),
    Cell("#b3430f", "#ffffff"),
    Cell("#651a08", "#ffffff"),
)
DARK = (
    Cell("#1b1b1b", "#ededed"),
    Cell("#3b2a0c", "#ededed"),
    Cell("#603a08", "#ededed"),
    Cell("#8c4f06", "#ffffff"),
    Cell("#cc7a12", "#111111"),
    Cell("#f7ae2f", "#111111"),
    Cell("#ffec9a", "#111111"),
)


def level_of(logprob: float) -> int:
    """0 (the model was nearly certain of this token) to 6 (it was nearly excluded); -inf is 6.

    NaN is an error: it is no log-probability.
    """
    if math.isnan(logprob):
        raise ValueError("a log-probability is NaN: it has no colour")
    return sum(logprob < edge for edge in BREAKPOINTS)


def legend() -> list[str]:
    """What each level means, in nats, likely tokens first."""
    nats = [f"{edge:g}" for edge in BREAKPOINTS]
    return [f"≥ {nats[0]}", *(f"≥ {edge}" for edge in nats[1:]), f"< {nats[-1]}"]


def legend_probability() -> list[str]:
    """The same edges as probabilities."""
    p = [f"{math.exp(edge):.2g}" for edge in BREAKPOINTS]
    return [f"≥ {p[0]}", *(f"≥ {edge}" for edge in p[1:]), f"< {p[-1]}"]
