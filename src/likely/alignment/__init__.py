"""Changing p(y|x): losses of sequence log-likelihoods on preferences, rewards and labels, and what they cost in KL;
needs torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.frontier import Envelope as Envelope
    from likely.alignment.frontier import FrontierPoint as FrontierPoint
    from likely.alignment.frontier import MatchedKl as MatchedKl
    from likely.alignment.frontier import PolicySamples as PolicySamples
    from likely.alignment.frontier import compare_policies as compare_policies
    from likely.alignment.frontier import draw_frontier as draw_frontier
    from likely.alignment.frontier import envelope as envelope
    from likely.alignment.frontier import matched_kl as matched_kl
    from likely.alignment.importance import effective_sample_size as effective_sample_size
    from likely.alignment.importance import temperature_for_ess as temperature_for_ess
    from likely.alignment.listwise import exponential_goodness as exponential_goodness
    from likely.alignment.listwise import posterior_logweights as posterior_logweights
    from likely.alignment.listwise import sigmoid_goodness as sigmoid_goodness
    from likely.alignment.listwise import snis_cross_entropy as snis_cross_entropy
    from likely.alignment.rejection import RejectionStatistics as RejectionStatistics
    from likely.alignment.rejection import accept_candidates as accept_candidates
    from likely.alignment.rejection import rejection_sample as rejection_sample

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
