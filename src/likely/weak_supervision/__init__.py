"""Learning without labels: rules vote, a harmonizer fuses them with a model's answers, risky answers are re-asked."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.weak_supervision.harmonizer import Harmonizer as Harmonizer
    from likely.weak_supervision.labelling_rules import LabelingFunction as LabelingFunction
    from likely.weak_supervision.labelling_rules import Votes as Votes
    from likely.weak_supervision.labelling_rules import read_rules as read_rules
    from likely.weak_supervision.reasking import LabelTask as LabelTask
    from likely.weak_supervision.reasking import Reasked as Reasked
    from likely.weak_supervision.reasking import budget_threshold as budget_threshold
    from likely.weak_supervision.reasking import reask as reask
    from likely.weak_supervision.risk import RiskReport as RiskReport
    from likely.weak_supervision.risk import polar as polar
    from likely.weak_supervision.risk import risk_quality as risk_quality

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
