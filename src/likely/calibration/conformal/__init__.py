"""Conformal prediction: sets of classes, intervals and p-values that hold as often as promised; risk control."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.calibration.conformal.classification import ConformalSets as ConformalSets
    from likely.calibration.conformal.classification import set_report as set_report
    from likely.calibration.conformal.pvalues import OnlineConformal as OnlineConformal
    from likely.calibration.conformal.pvalues import conformal_pvalue as conformal_pvalue
    from likely.calibration.conformal.pvalues import pvalue_threshold as pvalue_threshold
    from likely.calibration.conformal.pvalues import rate_spread as rate_spread
    from likely.calibration.conformal.quantiles import conformal_quantile as conformal_quantile
    from likely.calibration.conformal.regression import ConformalIntervals as ConformalIntervals
    from likely.calibration.conformal.risk_control import ControlledRisk as ControlledRisk
    from likely.calibration.conformal.risk_control import control_risk as control_risk
    from likely.calibration.conformal.risk_control import wrong_answers_threshold as wrong_answers_threshold

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
