"""An n-gram language model as drafter: counts of a corpus and of the running text."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.ngram.counts import CorpusCounts as CorpusCounts
    from likely.decoding.drafting.ngram.drafter import NgramModel as NgramModel

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
