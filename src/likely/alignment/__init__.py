"""Changing p(y|x): losses of sequence log-likelihoods on preferences, rewards and labels, and what they cost in KL; needs
torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.edit_invariant import edit_invariant_loss as edit_invariant_loss

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
