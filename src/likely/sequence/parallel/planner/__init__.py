"""Which devices share which sequences: costs, micro-batches, groups of unequal sizes (FlexSP), checked plans."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.sequence.parallel.planner.comparison import CorpusComparison as CorpusComparison
    from likely.sequence.parallel.planner.comparison import compare_plans as compare_plans
    from likely.sequence.parallel.planner.comparison import first_batches as first_batches
    from likely.sequence.parallel.planner.comparison import length_batches as length_batches
    from likely.sequence.parallel.planner.comparison import longest_that_fits as longest_that_fits
    from likely.sequence.parallel.planner.comparison import read_lengths as read_lengths
    from likely.sequence.parallel.planner.cost import SIZES as SIZES
    from likely.sequence.parallel.planner.cost import CostModel as CostModel
    from likely.sequence.parallel.planner.cost import GroupTiming as GroupTiming
    from likely.sequence.parallel.planner.cost import published_cost as published_cost
    from likely.sequence.parallel.planner.integer_program import SolverLimits as SolverLimits
    from likely.sequence.parallel.planner.plans import DeviceGroup as DeviceGroup
    from likely.sequence.parallel.planner.plans import ParallelPlan as ParallelPlan
    from likely.sequence.parallel.planner.plans import homogeneous_plans as homogeneous_plans
    from likely.sequence.parallel.planner.plans import plan as plan
    from likely.sequence.parallel.planner.splits import bucket_bounds as bucket_bounds
    from likely.sequence.parallel.planner.splits import split_batch as split_batch

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
