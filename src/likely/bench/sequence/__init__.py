"""Tasks on which sequence layers differ, and the benchmark of every layer on every task."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.bench.sequence.computation import listops_value as listops_value
    from likely.bench.sequence.computation import make_listops as make_listops
    from likely.bench.sequence.computation import make_modular_sum as make_modular_sum
    from likely.bench.sequence.examples import Examples as Examples
    from likely.bench.sequence.examples import TaskMeta as TaskMeta
    from likely.bench.sequence.paths import make_paths as make_paths
    from likely.bench.sequence.recall import make_copy as make_copy
    from likely.bench.sequence.recall import make_induction as make_induction
    from likely.bench.sequence.recall import make_mqar as make_mqar
    from likely.bench.sequence.recall import make_recall as make_recall
    from likely.bench.sequence.recall import make_selective_copy as make_selective_copy
    from likely.bench.sequence.signals import make_bytes as make_bytes
    from likely.bench.sequence.signals import make_delay as make_delay
    from likely.bench.sequence.signals import make_digits as make_digits
    from likely.bench.sequence.signals import make_forecast as make_forecast
    from likely.bench.sequence.signals import make_reconstruction as make_reconstruction
    from likely.bench.sequence.tasks import TASKS as TASKS
    from likely.bench.sequence.tasks import SequenceTask as SequenceTask

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
