"""Changing p(y|x): losses of sequence log-likelihoods on preferences, rewards and labels, and what they cost in KL.

Needs torch.
"""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.sequence_match.objective import SequenceMatchLoss as SequenceMatchLoss
    from likely.alignment.sequence_match.objective import sequence_match_loss as sequence_match_loss
    from likely.alignment.sequence_match.text_quality import mauve_like as mauve_like
    from likely.alignment.sequence_match.text_quality import repeated_ngrams as repeated_ngrams
    from likely.alignment.sequence_match.training import SequenceMatchSettings as SequenceMatchSettings
    from likely.alignment.sequence_match.training import train_sequence_match as train_sequence_match
    from likely.alignment.sequence_match.trajectories import Trajectory as Trajectory

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
