"""Changing p(y|x): losses of sequence log-likelihoods on preferences, rewards and labels, and their cost in KL; needs
torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.edit_invariant.loss import edit_invariant_loss as edit_invariant_loss
    from likely.alignment.edit_invariant.own_outputs import EditInvariantSettings as EditInvariantSettings
    from likely.alignment.edit_invariant.own_outputs import fit_own_outputs as fit_own_outputs
    from likely.alignment.frontier.bound import Envelope as Envelope
    from likely.alignment.frontier.bound import envelope as envelope
    from likely.alignment.frontier.comparison import MatchedKl as MatchedKl
    from likely.alignment.frontier.comparison import draw_frontier as draw_frontier
    from likely.alignment.frontier.comparison import matched_kl as matched_kl
    from likely.alignment.frontier.policies import FrontierPoint as FrontierPoint
    from likely.alignment.frontier.policies import PolicySamples as PolicySamples
    from likely.alignment.frontier.policies import compare_policies as compare_policies
    from likely.alignment.importance import effective_sample_size as effective_sample_size
    from likely.alignment.importance import temperature_for_ess as temperature_for_ess
    from likely.alignment.labellers import Labels as Labels
    from likely.alignment.labellers import PreferenceOracle as PreferenceOracle
    from likely.alignment.labellers import PreferencePair as PreferencePair
    from likely.alignment.labellers import RewardDifference as RewardDifference
    from likely.alignment.labellers import Symmetrised as Symmetrised
    from likely.alignment.labellers import label_pairs as label_pairs
    from likely.alignment.links import Hinge as Hinge
    from likely.alignment.links import Logistic as Logistic
    from likely.alignment.links import Square as Square
    from likely.alignment.links import pair_loss as pair_loss
    from likely.alignment.links import robust_preference as robust_preference
    from likely.alignment.links import smoothed_preference as smoothed_preference
    from likely.alignment.listwise import exponential_goodness as exponential_goodness
    from likely.alignment.listwise import list_batch_loss as list_batch_loss
    from likely.alignment.listwise import posterior_logweights as posterior_logweights
    from likely.alignment.listwise import sigmoid_goodness as sigmoid_goodness
    from likely.alignment.listwise import snis_cross_entropy as snis_cross_entropy
    from likely.alignment.methods import METHODS as METHODS
    from likely.alignment.methods import PreferenceMethod as PreferenceMethod
    from likely.alignment.methods import pair_losses as pair_losses
    from likely.alignment.online.mixture import GeometricMixture as GeometricMixture
    from likely.alignment.online.policy_gradient import nash_md_loss as nash_md_loss
    from likely.alignment.online.tabular import exploitability as exploitability
    from likely.alignment.online.tabular import nash as nash
    from likely.alignment.online.training import OnlineSettings as OnlineSettings
    from likely.alignment.online.training import train_online as train_online
    from likely.alignment.pairing import all_pairs as all_pairs
    from likely.alignment.pairing import best_worst as best_worst
    from likely.alignment.pairing import first_round as first_round
    from likely.alignment.pairing import pairs_of as pairs_of
    from likely.alignment.pairing import tournament as tournament
    from likely.alignment.rejection import RejectionStatistics as RejectionStatistics
    from likely.alignment.rejection import accept_candidates as accept_candidates
    from likely.alignment.rejection import rejection_sample as rejection_sample
    from likely.alignment.rewards import LengthReward as LengthReward
    from likely.alignment.rewards import MeanReward as MeanReward
    from likely.alignment.rewards import PairRanker as PairRanker
    from likely.alignment.rewards import RegexReward as RegexReward
    from likely.alignment.rewards import RewardModel as RewardModel
    from likely.alignment.rewards import SentimentReward as SentimentReward
    from likely.alignment.rewards import TextReward as TextReward
    from likely.alignment.rewards import UnfinishedPenalty as UnfinishedPenalty
    from likely.alignment.rewards import bradley_terry_loss as bradley_terry_loss
    from likely.alignment.scores import Completion as Completion
    from likely.alignment.scores import ReferenceSums as ReferenceSums
    from likely.alignment.scores import normalise as normalise
    from likely.alignment.sequence_match.objective import sequence_match_loss as sequence_match_loss
    from likely.alignment.sequence_match.text_quality import mauve_like as mauve_like
    from likely.alignment.sequence_match.text_quality import repeated_ngrams as repeated_ngrams
    from likely.alignment.sequence_match.training import SequenceMatchSettings as SequenceMatchSettings
    from likely.alignment.sequence_match.training import train_sequence_match as train_sequence_match
    from likely.alignment.sequence_match.trajectories import Trajectory as Trajectory
    from likely.alignment.sources import BestOfN as BestOfN
    from likely.alignment.sources import Candidates as Candidates
    from likely.alignment.sources import FromPolicy as FromPolicy
    from likely.alignment.sources import Given as Given
    from likely.alignment.sources import Prompt as Prompt
    from likely.alignment.sources import RejectionSampled as RejectionSampled
    from likely.training.logprobs import SequenceScores as SequenceScores
    from likely.training.logprobs import sequence_logprobs as sequence_logprobs

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
