"""Sequences as lists of slots in one cache, shared by counts: what the torch and the native runtime have in common."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.runtimes.slots.layout import WorkLayout as WorkLayout
    from likely.runtimes.slots.runtime import SlotRuntime as SlotRuntime
    from likely.runtimes.slots.runtime import SlotSequence as SlotSequence
    from likely.runtimes.slots.table import SlotTable as SlotTable
    from likely.runtimes.slots.table import TokenCount as TokenCount

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
