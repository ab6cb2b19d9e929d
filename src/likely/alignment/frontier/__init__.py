"""Reward against KL: what policies gained, what they cost, and what could have been had for that."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.frontier.bound import Envelope as Envelope
    from likely.alignment.frontier.bound import default_betas as default_betas
    from likely.alignment.frontier.bound import envelope as envelope
    from likely.alignment.frontier.bound import lies_above as lies_above
    from likely.alignment.frontier.comparison import MatchedKl as MatchedKl
    from likely.alignment.frontier.comparison import draw_frontier as draw_frontier
    from likely.alignment.frontier.comparison import matched_kl as matched_kl
    from likely.alignment.frontier.measure import completion_rows as completion_rows
    from likely.alignment.frontier.measure import frontier_record as frontier_record
    from likely.alignment.frontier.measure import sample_policy as sample_policy
    from likely.alignment.frontier.policies import KL_ESTIMATORS as KL_ESTIMATORS
    from likely.alignment.frontier.policies import FrontierPoint as FrontierPoint
    from likely.alignment.frontier.policies import KlEstimator as KlEstimator
    from likely.alignment.frontier.policies import PolicySamples as PolicySamples
    from likely.alignment.frontier.policies import compare_policies as compare_policies
    from likely.alignment.frontier.policies import distinct as distinct
    from likely.alignment.frontier.policies import kl_exact as kl_exact
    from likely.alignment.frontier.policies import kl_k1 as kl_k1
    from likely.alignment.frontier.policies import kl_k3 as kl_k3

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
