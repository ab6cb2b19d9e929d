"""Training on a user's file from one call: rows to tokens, a run that resumes, a report of before and after."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.runs.backspace import train_with_backspace as train_with_backspace
    from likely.alignment.runs.examples import train_on_examples as train_on_examples
    from likely.alignment.runs.folder import RunSettings as RunSettings
    from likely.alignment.runs.online import online_settings as online_settings
    from likely.alignment.runs.online import train_on_own_samples as train_on_own_samples
    from likely.alignment.runs.preferences import train_on_preferences as train_on_preferences
    from likely.alignment.runs.reward import open_reward as open_reward
    from likely.alignment.runs.reward import train_reward_model as train_reward_model
    from likely.alignment.runs.rows import RowEncoder as RowEncoder
    from likely.alignment.runs.rows import read_pairs as read_pairs
    from likely.alignment.runs.rows import read_prompts as read_prompts
    from likely.alignment.runs.sampling import write_pairs as write_pairs

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
