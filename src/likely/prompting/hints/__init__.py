"""Hints that make stated confidence honest (Prompt4Trust): the reward, a bandit, a writer trained by GRPO."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.prompting.hints.bandit import HintBandit as HintBandit
    from likely.prompting.hints.downstream import ChoiceQuestion as ChoiceQuestion
    from likely.prompting.hints.downstream import Downstream as Downstream
    from likely.prompting.hints.downstream import Stated as Stated
    from likely.prompting.hints.downstream import hint_features as hint_features
    from likely.prompting.hints.reward import confidence_reward as confidence_reward
    from likely.prompting.hints.reward import group_advantages as group_advantages
    from likely.prompting.hints.writer import HintWriter as HintWriter
    from likely.prompting.hints.writer import WriterSettings as WriterSettings
    from likely.prompting.hints.writer import train_hint_writer as train_hint_writer

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
