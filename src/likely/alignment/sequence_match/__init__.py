"""SequenceMatch: a model learns from its own texts, too, and to delete what went wrong (Cundy and Ermon 2023,
arXiv:2306.05426).

A text is a trajectory of actions on a stack: a token is pushed, `backspace_id` takes the last one away, an end token
ends it.  The logits are soft Q-values, their logsumexp is the value of a state.
"""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.sequence_match.objective import sequence_match_loss as sequence_match_loss
    from likely.alignment.sequence_match.text_quality import divergence_frontier as divergence_frontier
    from likely.alignment.sequence_match.text_quality import mauve_like as mauve_like
    from likely.alignment.sequence_match.text_quality import repeated_ngrams as repeated_ngrams
    from likely.alignment.sequence_match.training import SequenceMatchRun as SequenceMatchRun
    from likely.alignment.sequence_match.training import SequenceMatchSettings as SequenceMatchSettings
    from likely.alignment.sequence_match.training import initialise_backspace as initialise_backspace
    from likely.alignment.sequence_match.training import sample_trajectories as sample_trajectories
    from likely.alignment.sequence_match.training import train_sequence_match as train_sequence_match
    from likely.alignment.sequence_match.trajectories import PrefixTrees as PrefixTrees
    from likely.alignment.sequence_match.trajectories import Trajectory as Trajectory
    from likely.alignment.sequence_match.trajectories import corrupt as corrupt
    from likely.alignment.sequence_match.trajectories import to_trees as to_trees
    from likely.alignment.sequence_match.trajectories import tree_logits as tree_logits

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
