"""Smaller models with the same likelihoods: quantisers, pruning, exports, and what each did to log p(y|x).

Every method is exact rewrites and one step that loses something; `compare` measures what was lost, in nats per token.
"""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.compression.architecture import DecoderMap as DecoderMap
    from likely.compression.calibration_set import CalibrationSet as CalibrationSet
    from likely.compression.evaluate import LikelihoodReport as LikelihoodReport
    from likely.compression.evaluate import RememberedRows as RememberedRows
    from likely.compression.evaluate import compare as compare
    from likely.compression.evaluate import compare_all as compare_all
    from likely.compression.mergequant.method import MergeQuant as MergeQuant
    from likely.compression.methods import METHODS as METHODS
    from likely.compression.methods import CompressedModel as CompressedModel
    from likely.compression.methods import compress as compress
    from likely.compression.quantized import QuantizedTensor as QuantizedTensor
    from likely.compression.quantized import round_to_nearest as round_to_nearest
    from likely.compression.schemes import QuantScheme as QuantScheme
    from likely.compression.schemes import parse_scheme as parse_scheme
    from likely.compression.settings import MethodSettings as MethodSettings
    from likely.compression.statistics import ActivationStats as ActivationStats
    from likely.compression.statistics import outlier_table as outlier_table

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
