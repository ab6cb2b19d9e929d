"""SuffixDecoding: drafts from suffix trees over this text and earlier answers."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.suffix.drafter import SuffixMemory as SuffixMemory
    from likely.decoding.drafting.suffix.guess import DraftLimits as DraftLimits
    from likely.decoding.drafting.suffix.tree import SuffixTree as SuffixTree

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
