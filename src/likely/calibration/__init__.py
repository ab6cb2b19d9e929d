"""Confidence that means what it says: calibrators fitted to labelled answers, and thresholds with a guarantee."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.calibration.calibrator import Calibrator as Calibrator
    from likely.calibration.calibrator import fit_calibrator as fit_calibrator
    from likely.calibration.labelled import Labelled as Labelled
    from likely.calibration.labelled import read_labelled as read_labelled
    from likely.calibration.selective import Threshold as Threshold
    from likely.calibration.selective import certified_threshold as certified_threshold
    from likely.calibration.selective import cheapest_threshold as cheapest_threshold
    from likely.calibration.selective import cost_threshold as cost_threshold
    from likely.calibration.selective import precision_bound as precision_bound
    from likely.calibration.selective import risk_coverage as risk_coverage
    from likely.calibration.threshold import AbstentionRule as AbstentionRule
    from likely.calibration.threshold import abstention_rule as abstention_rule
    from likely.calibration.threshold import risk_plan as risk_plan
    from likely.calibration.threshold import what_it_takes as what_it_takes

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
