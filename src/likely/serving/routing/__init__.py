"""A small model first, a larger one where it is worth it: confidence of an answer, policies, the router, verifiers."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.routing.cascade import Cascade as Cascade
    from likely.serving.routing.cascade import Verifier as Verifier
    from likely.serving.routing.cascade import fit_verifier as fit_verifier
    from likely.serving.routing.evidence import AnswerEvidence as AnswerEvidence
    from likely.serving.routing.evidence import evidence_of as evidence_of
    from likely.serving.routing.evidence import fit_confidence as fit_confidence
    from likely.serving.routing.fitting import FittedRouter as FittedRouter
    from likely.serving.routing.fitting import RoutingTask as RoutingTask
    from likely.serving.routing.fitting import fit_router as fit_router
    from likely.serving.routing.policy import Budget as Budget
    from likely.serving.routing.policy import CostOptimal as CostOptimal
    from likely.serving.routing.policy import RiskControlled as RiskControlled
    from likely.serving.routing.policy import parse_policy as parse_policy
    from likely.serving.routing.router import RoutedResponse as RoutedResponse
    from likely.serving.routing.router import Router as Router
    from likely.serving.routing.router import load_router as load_router

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
