"""h-calibration: order-preserving maps trained on an error-bounded calibration loss; fitting needs torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.calibration.h.loss import hcal_loss as hcal_loss
    from likely.calibration.h.loss import resampling_floor as resampling_floor
    from likely.calibration.h.recalibrator import HCalibrator as HCalibrator

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
