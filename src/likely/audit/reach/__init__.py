"""Which outputs a few tokens in front of a text can force ("magic words"), and what no control can do to a head."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.audit.reach.bound import AttentionBound as AttentionBound
    from likely.audit.reach.bound import HeadReport as HeadReport
    from likely.audit.reach.bound import attention_bound as attention_bound
    from likely.audit.reach.bound import attention_report as attention_report
    from likely.audit.reach.controllability import ControllabilityCurve as ControllabilityCurve
    from likely.audit.reach.controllability import ReachableSet as ReachableSet
    from likely.audit.reach.controllability import controllability_curve as controllability_curve
    from likely.audit.reach.controllability import explore as explore
    from likely.audit.reach.controllability import ranked_targets as ranked_targets
    from likely.audit.reach.controllability import reachable_set as reachable_set
    from likely.audit.reach.gradient import ControlGradient as ControlGradient
    from likely.audit.reach.gradient import TokenGradient as TokenGradient
    from likely.audit.reach.gradient import gradient_of as gradient_of
    from likely.audit.reach.problem import CandidateTest as CandidateTest
    from likely.audit.reach.problem import ReachProblem as ReachProblem
    from likely.audit.reach.report import reach_audit as reach_audit
    from likely.audit.reach.report import reach_case as reach_case
    from likely.audit.reach.report import reach_measure as reach_measure
    from likely.audit.reach.report import reach_report as reach_report
    from likely.audit.reach.search import GCG as GCG
    from likely.audit.reach.search import Backoff as Backoff
    from likely.audit.reach.search import ControlResult as ControlResult
    from likely.audit.reach.search import Exhaustive as Exhaustive
    from likely.audit.reach.search import GreedyBack as GreedyBack
    from likely.audit.reach.search import RandomSearch as RandomSearch
    from likely.audit.reach.search import backoff as backoff
    from likely.audit.reach.search import search_control as search_control
    from likely.audit.reach.search import search_method as search_method

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
