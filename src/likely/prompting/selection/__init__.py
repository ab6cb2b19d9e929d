"""Choose among prompts without labels: score a pool, rank its prompts, take the bias out of the answers."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.prompting.selection.answer_bias import CBM as CBM
    from likely.prompting.selection.answer_bias import cbm as cbm
    from likely.prompting.selection.answer_bias import contextual as contextual
    from likely.prompting.selection.answer_bias import pmi as pmi
    from likely.prompting.selection.choosing import Selection as Selection
    from likely.prompting.selection.choosing import calibrated_probs as calibrated_probs
    from likely.prompting.selection.choosing import select as select
    from likely.prompting.selection.criteria import METHODS as METHODS
    from likely.prompting.selection.criteria import prompt_values as prompt_values
    from likely.prompting.selection.scores import PromptScores as PromptScores
    from likely.prompting.selection.scoring import score_pool as score_pool
    from likely.prompting.selection.scoring import shuffle_answers as shuffle_answers

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
