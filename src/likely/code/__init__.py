"""Code completion held by static analysis: files with a cursor, monitors, exact choice of names."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.code.analysis.jedi_provider import JediProvider as JediProvider
    from likely.code.analysis.members import Analyses as Analyses
    from likely.code.buffer import CodeBuffer as CodeBuffer
    from likely.code.complete import CodeCompletion as CodeCompletion
    from likely.code.complete import CodeOptions as CodeOptions
    from likely.code.complete import complete_code as complete_code
    from likely.code.exact_choice import name_logprobs as name_logprobs
    from likely.code.monitors.typestate import TypestateAutomaton as TypestateAutomaton
    from likely.code.monitors.typestate import TypestateMonitor as TypestateMonitor

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
