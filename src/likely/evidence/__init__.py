"""Claims measured again: the index of papers, results with their checks, and what every script that makes one does the
same."""

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
    from likely.evidence.results import surroundings as surroundings
    from likely.evidence.results import verdict_of as verdict_of
    from likely.evidence.results import write_result as write_result
    from likely.evidence.study import arguments as arguments
    from likely.evidence.study import conclude as conclude
    from likely.evidence.study import data_sources as data_sources
    from likely.evidence.study import figure_table as figure_table
    from likely.evidence.study import figure_with as figure_with
    from likely.evidence.study import model_source as model_source
    from likely.evidence.study import ratio_figure as ratio_figure
    from likely.evidence.study import report as report
    from likely.evidence.study import run_script as run_script
    from likely.evidence.study import run_study as run_study
    from likely.evidence.study import share_figure as share_figure

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
