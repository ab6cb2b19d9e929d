"""Intervals and a warning sign for a regression that is already there, from one forward pass (SPC-UQ)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple, Self, get_args

import numpy as np

from likely.errors import DataError, check_choice
from likely.metrics.checks import Floats, check_score
from likely.uncertainty.split_point.file import SplitPoint, as_uncertainty, check_table
from likely.uncertainty.split_point.heads import SMALLEST, Training, fit_base, fit_side_heads
from likely.uncertainty.split_point.network import Network, softplus
from likely.uncertainty.split_point.residuals import (
    Factors,
    Gap,
    check_sides,
    interval_factors,
    self_consistency_gap,
)
from likely.uncertainty.types import Uncertainty


class SplitPrediction(NamedTuple):
    """N rows, units of y.

    v          the prediction;  low, high: each side's quantile of level tau away from it
    sds        how much the heads contradict each other (unit: see `gap`); high where the input is unlike those fitted
    aleatoric  U + D: how far y scatters to both sides
    """

    v: Floats
    low: Floats
    high: Floats
    sds: Floats
    aleatoric: Floats

    @property
    def uncertainty(self) -> Uncertainty:
        return as_uncertainty(self.sds)


class SideHeads(NamedTuple):
    """What the heads say of N rows, positive, in units of y."""

    mar: Floats
    upper: Floats
    lower: Floats
    quantile_up: Floats
    quantile_down: Floats


@dataclass(eq=False)
class SplitPointRegressor(SplitPoint):
    """Heads for MAR, U, D and two side quantiles on the features of a frozen regression.

    base      the regression: an object with `predict`, or a function, (N, F) -> (N,).  None: a network with ReLU layers
              of `base_hidden` units is fitted first, by squared error
    features  function (N, F) -> (N, G), what the heads read.  None: the base network's last hidden layer; X itself for
              a base of your own
    tau       level of each side, and so of the whole interval
    gap       what `sds` is: "product" (published), "root" or "relative", see `self_consistency_gap`.  Where
              all heads fall to 0, far from the rows fitted, the product falls with them, the relative gap need not
    recalibrate  widen both sides by `interval_factors`; may be changed after fitting
    hidden    units of the heads' one layer
    held_out  share of the rows that only the heads see: a base that memorises has small residuals on its own rows.
              Few rows are memorised by the heads in turn; on small tables intervals were too narrow with and without
              (results/split_point.json): for a promise about coverage put ConformalIntervals on top
    epochs, batch, learning_rate, weight_decay, seed   of both trainings (Adam)
    `fit` needs torch, `predict` does not.
    Learned: `base_` (None for a base of your own), `heads_`, `unit_` (mean |residual| of the rows fitted).
    """

    kind: ClassVar[str] = "regressor"

    base: Any = None
    features: Callable[[Any], Any] | None = None
    _: KW_ONLY
    tau: float = 0.95
    gap: Gap = "relative"
    recalibrate: bool = False
    base_hidden: tuple[int, ...] = (64,)
    hidden: int = 64
    held_out: float = 0.0
    epochs: int = 400
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    seed: int = 0

    def check_params(self) -> None:
        if not 0 < self.tau < 1:
            raise ValueError(f"tau must lie between 0 and 1, got {self.tau}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be at least 0 and below 1, got {self.held_out}")
        if self.held_out and self.base is not None:
            raise ValueError("held_out is for the network fitted here: give fit rows that your base has not seen")
        for width in (self.hidden, *self.base_hidden):
            if width < 1:
                raise ValueError(f"a layer needs at least 1 unit, got {width}")
        check_choice("gap", self.gap, get_args(Gap))
        self._training()

    def fit(self, X: Any, y: Any) -> Self:
        """X (N, F), y (N,).  ValueError if no residual lies on a side (a constant y, say)."""
        self.check_params()
        table, target = check_table(X, "X"), check_score(y, "y")
        if len(target) != len(table):
            raise ValueError(f"y has {len(target)} rows, X has {len(table)}")
        if target.min() == target.max():
            raise ValueError(f"y is constant ({target[0]:g}): neither side has a residual to learn")
        mine = np.ones(len(table), bool)
        self.base_: Network | None = None
        if self.base is None:
            apart = round(self.held_out * len(table))
            if self.held_out and not apart:
                raise ValueError(f"held_out {self.held_out:g} of {len(table)} rows leaves none for the heads: raise it")
            kept = np.random.default_rng(self.seed).permutation(len(table))[apart:]
            if len(kept) < 2:
                raise ValueError(f"held_out {self.held_out:g} of {len(table)} rows leaves {len(kept)} for the base")
            self.base_ = fit_base(table[kept], target[kept], self.base_hidden, self._training())
            if self.held_out:
                mine[kept] = False
        residual = (target - self._predicted(table))[mine]
        check_sides(residual)
        self.unit_ = float(np.abs(residual).mean())
        self.heads_ = fit_side_heads(
            self._features(table)[mine], residual, tau=self.tau, hidden=self.hidden, training=self._training(),
        )  # fmt: skip
        return self

    def predict(self, X: Any) -> SplitPrediction:
        """(v, low, high, sds, aleatoric), each (N,)."""
        table = self._table(X)
        heads, v = self._heads(table), self._predicted(table)
        up, down = heads.quantile_up, heads.quantile_down
        if self.recalibrate:
            factors = interval_factors(heads.mar, heads.upper, heads.lower)
            up, down = up * factors.up, down * factors.down
        sds = self_consistency_gap(heads.mar, heads.upper, heads.lower, gap=self.gap)
        return SplitPrediction(v, v - down, v + up, sds, heads.upper + heads.lower)

    def heads(self, X: Any) -> SideHeads:
        """MAR, U, D and the side quantiles (before recalibration), each (N,)."""
        return self._heads(self._table(X))

    def factors(self, X: Any) -> Factors:
        """What `recalibrate` multiplies the sides of the interval by, and for which rows no factor would do."""
        return interval_factors(*self.heads(X)[:3])

    def arrays(self) -> tuple[dict[str, Floats], dict[str, Any]]:
        self.check_fitted("heads_")
        arrays = self.heads_.arrays("heads") | (self.base_.arrays("base") if self.base_ else {})
        return arrays, {"unit": self.unit_, "own_base": self.base_ is not None, "own_features": self.features is None}

    def restore(self, arrays: Mapping[str, Floats], learned: Mapping[str, Any]) -> None:
        own, unit = learned["own_base"], learned["unit"]
        if own is not (self.base is None) or learned["own_features"] is not (self.features is None):
            raise DataError("load needs base= and features= just where they were given when this was fitted")
        if not (isinstance(unit, float) and np.isfinite(unit) and unit > 0):
            raise DataError(f"learned.unit must be a number > 0, got {unit!r}")
        self.base_ = Network.from_arrays(arrays, "base") if own else None
        self.heads_, self.unit_ = Network.from_arrays(arrays, "heads"), unit
        if self.heads_.outputs != 5:
            raise DataError(f"heads: have {self.heads_.outputs} outputs, expected 5")

    def _training(self) -> Training:
        return Training(self.epochs, self.batch, self.learning_rate, self.weight_decay, seed=self.seed)

    def _table(self, X: Any) -> Floats:
        self.check_fitted("heads_")
        return check_table(X, "X", self.base_.inputs if self.base_ else None)

    def _predicted(self, table: Floats) -> Floats:
        if self.base_ is not None:
            return self.base_(table)[:, 0]
        predict = getattr(self.base, "predict", self.base)
        v = check_score(predict(table), "what the base predicts")
        if len(v) != len(table):
            raise ValueError(f"the base predicts {len(v)} values for {len(table)} rows")
        return v

    def _features(self, table: Floats, columns: int | None = None) -> Floats:
        if self.features is not None:
            found = check_table(self.features(table), "features", columns)
            if len(found) != len(table):
                raise ValueError(f"features gives {len(found)} rows for {len(table)}")
            return found
        return check_table(self.base_.hidden(table) if self.base_ is not None else table, "X", columns)

    def _heads(self, table: Floats) -> SideHeads:
        out = self.heads_(self._features(table, self.heads_.inputs))
        return SideHeads(*((softplus(out) + SMALLEST) * self.unit_).T)
