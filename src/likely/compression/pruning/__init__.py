"""Structured pruning: whole groups of heads and neurons go, and what is left is a smaller model of the same kind."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.compression.pruning.allocation import AllocationOptions as AllocationOptions
    from likely.compression.pruning.allocation import keep_units as keep_units
    from likely.compression.pruning.allocation import split_sparsity as split_sparsity
    from likely.compression.pruning.nirvana import CalibrationTrials as CalibrationTrials
    from likely.compression.pruning.nirvana import PruningOptions as PruningOptions
    from likely.compression.pruning.nirvana import make_plan as make_plan
    from likely.compression.pruning.nirvana import nirvana_plan as nirvana_plan
    from likely.compression.pruning.nirvana import prune as prune
    from likely.compression.pruning.nirvana import select_calibration as select_calibration
    from likely.compression.pruning.plan import PruningPlan as PruningPlan
    from likely.compression.pruning.plan import with_equal_layers as with_equal_layers
    from likely.compression.pruning.recovery import recover as recover
    from likely.compression.pruning.scores import UnitScores as UnitScores
    from likely.compression.pruning.scores import magnitude as magnitude
    from likely.compression.pruning.scores import saliency as saliency
    from likely.compression.pruning.sizes import BlockSizes as BlockSizes

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
