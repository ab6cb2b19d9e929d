"""What computes sets of allowed tokens: llguidance, and a readable automaton over bytes to compare it with."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.guided.engines.automaton import ByteAutomaton as ByteAutomaton
    from likely.guided.engines.llguidance import LLGuidance as LLGuidance
    from likely.guided.engines.reference import Reference as Reference

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
