"""Prompts chosen, combined and put into words: selection, self-ensembles, tables, speech, hints."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.prompting.ensembles.ensemble import EnsembleSpec as EnsembleSpec
    from likely.prompting.ensembles.ensemble import SelfEnsemble as SelfEnsemble
    from likely.prompting.hints.bandit import HintBandit as HintBandit
    from likely.prompting.risk.scorer import RiskScorer as RiskScorer
    from likely.prompting.selection.choosing import select as select
    from likely.prompting.selection.scoring import score_pool as score_pool
    from likely.prompting.speech.intent import SpokenIntentClassifier as SpokenIntentClassifier
    from likely.prompting.templates import PromptPool as PromptPool
    from likely.prompting.templates import Template as Template

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
