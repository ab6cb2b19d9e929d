"""h-calibration: an order-keeping map learned by minimising an error-bounded calibration objective."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from likely.calibration.h.loss import (
    Weighting,
    check_objective,
    fitting_window,
    hcal_loss,
    resampling_floor,
)
from likely.calibration.h.maps import HMap
from likely.calibration.h.train import TRAINABLE, Metric, Setting, temperature_map, train_map
from likely.calibration.recalibrators.protocol import Fitted, Input, Learned, read_learned
from likely.calibration.recalibrators.scaling import inverse_temperature
from likely.errors import DataError, check_choice
from likely.metrics.bins import classwise_ece, debiased_ce
from likely.metrics.checks import Floats, Ints, top_label
from likely.metrics.proper import nll
from likely.training.loop import import_torch

MAPS = ("temperature", *TRAINABLE)
LOCO_CLASSES = 200
Select = Literal["dece", "cwece", "nll"]
METRICS: dict[str, Metric] = {
    "dece": lambda probs, labels: debiased_ce(*top_label(probs, labels), signed=True),
    "cwece": classwise_ece,
    "nll": nll,
}


@dataclass(kw_only=True, eq=False)
class HCalibrator(Fitted):
    """softmax(f(log p)) with f rising, or a mixture of temperatures: learned by `hcal_loss`, chosen by a metric.

    map        "auto": temperature scaling, a mixture of 16 temperatures, a piecewise linear function of 10 segments and
               a monotone network are compared by `folds`-fold cross-validation, and the best is fitted on all rows; so
               nothing is returned whose cross-validated metric is worse than temperature scaling's.  Or one of
               "temperature", "linear", "piecewise", "nonlinear", without comparison
    window, eps, weighting   of `hcal_loss`; of few rows the window is 2·⌊N K / 40⌋, at least 10, with a warning
    loco       leave classes out in turn while training; "auto": 3 to 200 classes.  Of two classes it leaves the rows of
               one label, and where one is rarer the loss is then lowest far from the truth
    select     the metric for choosing map and step: "dece" (debiased equal-mass ECE of the top label, signed), "cwece"
               (class-wise ECE), "nll"
    input      "logits" (N, K), or "probs" (N, K)
    No row's order of classes changes.  `fit` needs torch, `predict_proba` does not.
    Learned: `map_`;  `cross_validated_`: the metric per map;  `loss_` on the rows fitted, and `floor_`, what the loss
    would be on average if the fitted probabilities were true (it is never 0);  `map_classes_` K.
    """

    name: ClassVar[str] = "h"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "probs")

    map: str = "auto"
    window: int = 200
    eps: float = 0.0
    weighting: Weighting = "cluster"
    loco: bool | Literal["auto"] = "auto"
    select: Select = "dece"
    folds: int = 3
    max_steps: int = 2000
    seed: int = 0
    input: Input = "logits"

    def fit(self, x: Any, labels: Any) -> Self:
        torch = import_torch()
        logp, classes = self.checked_classes(x, labels)
        n, k = logp.shape
        setting = self._setting(n, k)
        chosen, self.cross_validated_ = self.map, {}
        if self.map == "auto":
            self.cross_validated_ = self._compared(logp, classes, setting)
            chosen = min(self.cross_validated_, key=self.cross_validated_.__getitem__)
        self.map_, self.map_classes_ = fitted(chosen, logp, classes, setting), k
        probs = self.map_.predict(logp)
        how: dict[str, Any] = {"window": setting.window, "eps": self.eps, "weighting": self.weighting}
        self.loss_ = float(hcal_loss(torch.as_tensor(probs), torch.as_tensor(classes), **how))
        self.floor_ = float(resampling_floor(probs, seed=self.seed, **how).mean())
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return self.map_.predict(self.checked_logprobs(x, self.map_classes_))

    def to_dict(self) -> dict[str, Any]:
        record = super().to_dict()
        record["learned"]["map_"] = self.map_.to_dict()
        return record

    def restore(self, learned: Any) -> Self:
        if not isinstance(learned, Mapping):
            raise DataError(f"learned: must be an object, got {type(learned).__name__}")
        for name in ("map_", "cross_validated_"):
            if name not in learned:
                raise DataError(f"learned.{name}: is missing")
        self.map_ = HMap.from_dict(learned["map_"], "learned.map_")
        compared = learned["cross_validated_"]
        wanted = {name: Learned() for name in (MAPS if compared else ())}
        self.cross_validated_ = read_learned(compared, wanted, "learned.cross_validated_")
        numbers = {"loss_": Learned(low=0), "floor_": Learned(low=0), "map_classes_": Learned(low=2)}
        rest = {name: value for name, value in learned.items() if name not in ("map_", "cross_validated_")}
        for name, value in read_learned(rest, numbers).items():
            setattr(self, name, value)
        self.map_classes_ = int(self.map_classes_)
        return self

    def _setting(self, n: int, k: int) -> Setting:
        check_choice("map", self.map, ("auto", *MAPS))
        check_choice("select", self.select, METRICS)
        if self.map == "auto" and not 2 <= self.folds <= n // 2:
            raise ValueError(f"folds must lie in 2..{n // 2} (two rows each), got {self.folds}")
        check_objective(self.window, self.eps, self.weighting)
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be >= 1, got {self.max_steps}")
        window = fitting_window(self.window, n * k)
        if window < self.window:
            warnings.warn(
                f"h: a window of {window} instead of {self.window}, since there are only {n} rows of {k} classes",
                stacklevel=3,
            )
        loco = 2 < k <= LOCO_CLASSES if self.loco == "auto" else bool(self.loco)
        return Setting(METRICS[self.select], window, self.eps, self.weighting, loco, self.max_steps, self.seed)

    def _compared(self, logp: Floats, labels: Ints, setting: Setting) -> dict[str, float]:
        """The metric of each map's held-out predictions, all rows together; temperature scaling first: it wins ties."""
        fold = np.random.default_rng(self.seed).permutation(len(logp)) % self.folds
        found = {}
        for kind in MAPS:
            held_out = np.empty_like(logp)
            for k in range(self.folds):
                held_out[fold == k] = fitted(kind, logp[fold != k], labels[fold != k], setting).predict(logp[fold == k])
            found[kind] = setting.metric(held_out, labels)
        return found


def fitted(kind: str, logp: Floats, labels: Ints, setting: Setting) -> HMap:
    """A map of this kind fitted on these rows."""
    beta, _ = inverse_temperature(logp, labels)
    return temperature_map(beta) if kind == "temperature" else train_map(kind, logp, labels, beta, setting)
