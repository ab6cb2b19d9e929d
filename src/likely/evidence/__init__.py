"""Claims measured again: the index of papers, and results with their checks."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.evidence.papers import Paper as Paper
    from likely.evidence.papers import find as find
    from likely.evidence.papers import index as index
    from likely.evidence.results import Check as Check
    from likely.evidence.results import Evidence as Evidence
    from likely.evidence.results import Figure as Figure
    from likely.evidence.results import MachineRecord as MachineRecord
    from likely.evidence.results import Source as Source
    from likely.evidence.results import read_result as read_result
    from likely.evidence.results import read_results as read_results
    from likely.evidence.results import results_dir as results_dir
    from likely.evidence.results import verdict_of as verdict_of
    from likely.evidence.results import write_result as write_result

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
