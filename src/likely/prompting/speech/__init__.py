"""Language models on speech recognition: n-best lists in a prompt, and intents."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.prompting.speech.intent import SpokenIntentClassifier as SpokenIntentClassifier
    from likely.prompting.speech.intent import training_pairs as training_pairs
    from likely.prompting.speech.nbest import NBest as NBest
    from likely.prompting.speech.nbest import SpokenTask as SpokenTask
    from likely.prompting.speech.nbest import nbest_prompt as nbest_prompt
    from likely.prompting.speech.nbest import transcript_prompt as transcript_prompt

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
