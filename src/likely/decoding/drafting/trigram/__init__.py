"""ADED: an adaptive table of trigrams, searched as a tree for drafts."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.trigram.drafter import TrigramMemory as TrigramMemory
    from likely.decoding.drafting.trigram.table import TrigramTable as TrigramTable

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
