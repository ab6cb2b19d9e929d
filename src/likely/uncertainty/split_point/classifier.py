"""Corrected probabilities and a warning sign for a classifier that is already there, a language model's options too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from likely.errors import DataError
from likely.metrics.checks import Floats, check_labels, check_probs
from likely.uncertainty.split_point.file import SplitPoint, as_uncertainty, check_table
from likely.uncertainty.split_point.heads import Training, fit_class_heads
from likely.uncertainty.split_point.network import Network
from likely.uncertainty.split_point.residuals import TOLERANCE, class_gap, corrected_probs, entropy
from likely.uncertainty.types import Uncertainty

HEADS = ("mar", "above", "below")
MILESTONES = (0.5, 5 / 6)  # the published 150 and 250 of 300 epochs


class SplitClassPrediction(NamedTuple):
    """N rows, K classes.

    probs    (N, K) corrected probabilities
    sds      (N,) Σ_k |MAR_k − 2p_k(1−p_k)| of the probabilities given; high where the input is unlike those fitted
    entropy  (N,) of the corrected probabilities, nats
    """

    probs: Floats
    sds: Floats
    entropy: Floats

    @property
    def uncertainty(self) -> Uncertainty:
        return as_uncertainty(self.sds)


@dataclass(kw_only=True, eq=False)
class SplitPointClassifier(SplitPoint):
    """Heads for MAR, A and B of every class, on the features from which a classifier made its probabilities.

    hidden     units of each head's one layer; None: as many as there are features
    tolerance  of `corrected_probs`
    epochs, batch, learning_rate, seed   of training (Adam); the step size falls to a tenth after half of the epochs
               and again after five sixths
    `fit` needs torch, `predict` does not.  For a language model see `likely.scoring.option_features`.
    Rows: those that the classifier was fitted to, as published, or others.  Measured on 150 classes with twenty other
    rows each, heads on the latter were worse in everything (results/split_point.json): they need many rows a class.
    Learned: `heads_` by name, `classes_` K.
    """

    kind: ClassVar[str] = "classifier"

    hidden: int | None = None
    tolerance: float = TOLERANCE
    epochs: int = 300
    batch: int = 128
    learning_rate: float = 1e-4
    seed: int = 0

    def check_params(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, or None, got {self.hidden}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0, got {self.tolerance}")
        self._training()

    def fit(self, features: Any, probs: Any, y: Any) -> Self:
        """features (N, F), probs (N, K), y (N,) in 0..K-1.  ValueError if all rows are of one class."""
        self.check_params()
        table, p = check_table(features, "features"), check_probs(probs)
        labels = check_labels(y, len(p), p.shape[1], "y")
        _same_rows(table, p)
        if (labels == labels[0]).all():
            raise ValueError(f"all {len(labels)} rows are of class {labels[0]}: no class has residuals on both sides")
        found = fit_class_heads(table, p, labels, hidden=self.hidden or table.shape[1], training=self._training())
        self.heads_ = dict(zip(HEADS, found, strict=True))
        self.classes_ = p.shape[1]
        return self

    def predict(self, features: Any, probs: Any) -> SplitClassPrediction:
        """(probs, sds, entropy); probs: what the classifier says of the same rows."""
        self.check_fitted("heads_")
        table, p = check_table(features, "features", self.heads_["mar"].inputs), check_probs(probs)
        _same_rows(table, p)
        if p.shape[1] != self.classes_:
            raise ValueError(f"probs have {p.shape[1]} classes, this was fitted on {self.classes_}")
        mar, above, below = (self.heads_[name](table) for name in HEADS)
        corrected = corrected_probs(p, mar, above, below, tolerance=self.tolerance)
        return SplitClassPrediction(corrected, class_gap(mar, p), entropy(corrected))

    def arrays(self) -> tuple[dict[str, Floats], dict[str, Any]]:
        self.check_fitted("heads_")
        found: dict[str, Floats] = {}
        for name, network in self.heads_.items():
            found |= network.arrays(name)
        return found, {"classes": self.classes_}

    def restore(self, arrays: Mapping[str, Floats], learned: Mapping[str, Any]) -> None:
        self.heads_ = {name: Network.from_arrays(arrays, name) for name in HEADS}
        self.classes_ = learned["classes"]
        for name, network in self.heads_.items():
            if network.outputs != self.classes_ or network.inputs != self.heads_["mar"].inputs:
                raise DataError(f"{name}: {network.inputs} features, {network.outputs} classes do not fit the others")

    def _training(self) -> Training:
        return Training(self.epochs, self.batch, self.learning_rate, milestones=MILESTONES, seed=self.seed)


def _same_rows(table: Floats, p: Floats) -> None:
    if len(table) != len(p):
        raise ValueError(f"features have {len(table)} rows, probs {len(p)}")
