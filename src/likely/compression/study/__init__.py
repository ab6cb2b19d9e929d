"""Studies of compression: models x methods x calibration sets x evaluations in one table, and what it says."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.compression.study.effects import SetEffect as SetEffect
    from likely.compression.study.effects import VarianceSplit as VarianceSplit
    from likely.compression.study.effects import expected_range as expected_range
    from likely.compression.study.effects import recommendation as recommendation
    from likely.compression.study.effects import set_effects as set_effects
    from likely.compression.study.effects import split_variance as split_variance
    from likely.compression.study.evaluations import Evaluation as Evaluation
    from likely.compression.study.evaluations import LikelihoodEvaluation as LikelihoodEvaluation
    from likely.compression.study.grid import CellFile as CellFile
    from likely.compression.study.grid import StudyGrid as StudyGrid
    from likely.compression.study.grid import StudyMethod as StudyMethod
    from likely.compression.study.grid import StudyModel as StudyModel
    from likely.compression.study.grid import StudyRow as StudyRow
    from likely.compression.study.grid import run_grid as run_grid

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
