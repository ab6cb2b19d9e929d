"""Maps from logits, probabilities or confidences to calibrated probabilities, with scikit-learn's contract."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.calibration.recalibrators.answer import AnswerLogistic as AnswerLogistic
    from likely.calibration.recalibrators.binning import Histogram as Histogram
    from likely.calibration.recalibrators.binning import ScalingBinning as ScalingBinning
    from likely.calibration.recalibrators.isotonic import Isotonic as Isotonic
    from likely.calibration.recalibrators.isotonic import VennAbers as VennAbers
    from likely.calibration.recalibrators.one_vs_rest import OneVsRest as OneVsRest
    from likely.calibration.recalibrators.protocol import Recalibrator as Recalibrator
    from likely.calibration.recalibrators.scaling import Dirichlet as Dirichlet
    from likely.calibration.recalibrators.scaling import Matrix as Matrix
    from likely.calibration.recalibrators.scaling import Temperature as Temperature
    from likely.calibration.recalibrators.scaling import Vector as Vector
    from likely.calibration.recalibrators.sigmoid import Beta as Beta
    from likely.calibration.recalibrators.sigmoid import Platt as Platt
    from likely.calibration.recalibrators.table import RECALIBRATORS as RECALIBRATORS
    from likely.calibration.recalibrators.table import from_dict as from_dict
    from likely.calibration.recalibrators.table import make as make

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
