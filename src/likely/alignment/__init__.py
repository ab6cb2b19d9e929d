"""Changing p(y|x): losses of sequence log-likelihoods on preferences, rewards and labels, and their KL; needs torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    pass

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
