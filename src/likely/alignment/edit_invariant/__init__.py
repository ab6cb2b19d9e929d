"""The edit-invariant sequence loss (EISL): noisy references, learned wherever their n-grams stand in the output."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.edit_invariant.loss import edit_invariant_loss as edit_invariant_loss
    from likely.alignment.edit_invariant.loss import ngram_log_probs as ngram_log_probs
    from likely.alignment.edit_invariant.own_outputs import EditInvariantSettings as EditInvariantSettings
    from likely.alignment.edit_invariant.own_outputs import OwnOutputs as OwnOutputs
    from likely.alignment.edit_invariant.own_outputs import WrittenOutput as WrittenOutput
    from likely.alignment.edit_invariant.own_outputs import fit_own_outputs as fit_own_outputs
    from likely.alignment.edit_invariant.own_outputs import output_logits as output_logits
    from likely.alignment.edit_invariant.own_outputs import own_output_loss as own_output_loss
    from likely.alignment.edit_invariant.own_outputs import write_outputs as write_outputs

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
