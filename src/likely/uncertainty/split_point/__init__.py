"""Split-point self-consistency (SPC-UQ): corrected predictions and a warning sign from one forward pass."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.uncertainty.split_point.classifier import SplitClassPrediction as SplitClassPrediction
    from likely.uncertainty.split_point.classifier import SplitPointClassifier as SplitPointClassifier
    from likely.uncertainty.split_point.regressor import SplitPointRegressor as SplitPointRegressor
    from likely.uncertainty.split_point.regressor import SplitPrediction as SplitPrediction
    from likely.uncertainty.split_point.residuals import class_gap as class_gap
    from likely.uncertainty.split_point.residuals import corrected_probs as corrected_probs
    from likely.uncertainty.split_point.residuals import harmonic_mar as harmonic_mar
    from likely.uncertainty.split_point.residuals import interval_factors as interval_factors
    from likely.uncertainty.split_point.residuals import self_consistency_gap as self_consistency_gap

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
