"""How much of an answer is due to the order in which the choices are shown.

A model that always says "A" gives a choice 0.8 when it stands first and 0.2 when it stands second: the average over
both orders is 0.5 and says what it knows, nothing.  The difference between orders says that it was so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OrderBias:
    """What the order does.

    order_bias  mean over rows of the largest difference between two orders' risks, 0 to 1; for two choices
                mean |s₁ − s₂|
    first       mean probability of whatever choice is shown first; 1/K without bias
    mirrored    |mean(s₁) + mean(s₂) − 1| with two choices: near 0 together with a large order_bias, the place decides
                and the content does not; None with more choices
    """

    order_bias: float
    first: float
    mirrored: float | None

    @property
    def line(self) -> str:
        verdict = ""
        if self.mirrored is not None and self.order_bias > 0.5 and self.mirrored < 0.1:
            verdict = ": the place decides, not the row"
        return f"order_bias {self.order_bias:.3f} (the choice shown first gets {self.first:.3f} on average){verdict}"


def order_bias(probs: Floats, orders: Sequence[Sequence[int]], values: Sequence[float]) -> OrderBias | None:
    """The bias of answers given in several orders; None where there was one order only, or no row to tell it from.

    probs   (N, O, K) probability of each choice (in the task's order) when shown in order o; rows with NaN are left out
    orders  O orders, orders[o][i] is the choice at place i;  values: (K,) of the choices
    """
    probs = np.asarray(probs, np.float64)
    if probs.ndim != 3 or probs.shape[1:] != (len(orders), len(values)):
        raise ValueError(f"probs must be (N, {len(orders)}, {len(values)}), got shape {probs.shape}")
    probs = probs[~np.isnan(probs).any(axis=(1, 2))]
    if len(orders) < 2 or not len(probs):
        return None
    risks = probs @ np.asarray(values, np.float64)  # (N, O)
    shown_first = np.stack([probs[:, o, order[0]] for o, order in enumerate(orders)], axis=1)
    mirrored = abs(float(risks.mean(axis=0).sum()) - 1) if len(values) == 2 else None
    spread = risks.max(axis=1) - risks.min(axis=1)
    return OrderBias(float(spread.mean()), float(shown_first.mean()), mirrored)
