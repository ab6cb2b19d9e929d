"""The maps of h-calibration: from log-probabilities to probabilities, keeping each row's order of classes.

A mixture of temperatures, or one rising function of a log-probability followed by softmax.  A rising function is the
integral of a positive density over [−100, 0]; `cells` and `integral` work on numpy arrays and torch tensors alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from likely.calibration.recalibrators.protocol import Learned, read_learned
from likely.errors import DataError, nearest
from likely.metrics.checks import Floats, Ints, softmax

LOWEST = -100.0  # log-probabilities are clipped here
FLATTEST = 1e-6  # a density is never below, so that two classes never become equal


@dataclass(frozen=True)
class HMap:
    """A fitted map.

    kind    "temperature"  softmax(βz): `inverse_temperatures` (1,)
            "linear"       Σ_r w_r softmax(β_r z): `inverse_temperatures`, `weights` (R,)
            "piecewise"    softmax(f(z)), f' constant between `nodes` (S + 1,) rising from −100 to 0: `density` (S,)
            "nonlinear"    softmax(f(z)), f' straight between `nodes` (J,): `density` (J,)
    Classes with log-probability -inf keep probability 0.
    """

    kind: str
    values: dict[str, Floats]

    FIELDS: ClassVar[dict[str, dict[str, Learned]]] = {
        "temperature": {"inverse_temperatures": Learned("R", low=0)},
        "linear": {"inverse_temperatures": Learned("R", low=0), "weights": Learned("R", low=0, high=1)},
        "piecewise": {"nodes": Learned("S", low=LOWEST, high=0, increasing=True), "density": Learned("D", low=0)},
        "nonlinear": {"nodes": Learned("J", low=LOWEST, high=0, increasing=True), "density": Learned("J", low=0)},
    }

    def predict(self, logp: Floats) -> Floats:
        """(N, K) probabilities from (N, K) log-probabilities."""
        z = clipped(logp)
        impossible = np.isneginf(logp)
        if self.kind in ("temperature", "linear"):
            betas = self.values["inverse_temperatures"]
            weights = self.values.get("weights", np.ones(1))
            parts = (w * softmax(np.where(impossible, -np.inf, b * z)) for b, w in zip(betas, weights, strict=True))
            return np.minimum(sum(parts), 1)  # weights that sum to 1 but for rounding
        nodes, density = self.values["nodes"], self.values["density"]
        left, right = (density, density) if self.kind == "piecewise" else (density[:-1], density[1:])
        f = integral(nodes, left, right, *cells(nodes, z))
        return softmax(np.where(impossible, -np.inf, f))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind} | {name: value.tolist() for name, value in self.values.items()}

    @classmethod
    def from_dict(cls, record: Any, where: str) -> HMap:
        """DataError names the field that is wrong."""
        if not isinstance(record, Mapping) or record.get("kind") not in cls.FIELDS:
            kind = record.get("kind") if isinstance(record, Mapping) else record
            raise DataError(
                f"{where}.kind: {kind!r} is none of {', '.join(cls.FIELDS)}{nearest(str(kind), cls.FIELDS)}"
            )
        kind = record["kind"]
        values = read_learned({k: v for k, v in record.items() if k != "kind"}, cls.FIELDS[kind], where)
        if kind == "piecewise" and len(values["nodes"]) != len(values["density"]) + 1:
            raise DataError(f"{where}.density: has {len(values['density'])} entries for {len(values['nodes'])} nodes")
        if "nodes" in values and (len(values["nodes"]) < 2 or values["nodes"][0] != LOWEST or values["nodes"][-1] != 0):
            raise DataError(f"{where}.nodes: must run from {LOWEST:g} to 0")
        return cls(kind, values)


def clipped(logp: Floats) -> Floats:
    return np.maximum(logp, LOWEST)


def dense_nodes(count: int) -> Floats:
    """(count,) closer together towards 0, where the probabilities that matter are: equal in log(1 − z)."""
    nodes = -np.expm1(np.linspace(np.log1p(-LOWEST), 0, count))
    nodes[0], nodes[-1] = LOWEST, 0.0
    return nodes


def cells(nodes: Floats, z: Floats) -> tuple[Ints, Floats]:
    """(which cell between nodes each value lies in, how far above its lower node)."""
    at = np.clip(np.searchsorted(nodes, z, side="right") - 1, 0, len(nodes) - 2)
    return at, z - nodes[at]


def integral(nodes: Any, left: Any, right: Any, at: Any, above: Any) -> Any:
    """f(z) = −∫_z^0 g: rising, f(0) = 0.

    g goes straight from left[i] to right[i] (S,) over cell i between nodes[i] and nodes[i + 1]; z as `cells` gives it.
    """
    width = nodes[1:] - nodes[:-1]
    area = (left + right) / 2 * width
    below = area.cumsum(0) - area - area.sum()  # f at the lower node of each cell
    bend = (right - left) / (2 * width)
    return below[at] + (left[at] + bend[at] * above) * above
