"""Language models on speech recognition: n-best lists in a prompt, intents, word errors."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.prompting.speech.intent import SpokenIntentClassifier as SpokenIntentClassifier
    from likely.prompting.speech.intent import training_pairs as training_pairs
    from likely.prompting.speech.nbest import NBest as NBest
    from likely.prompting.speech.nbest import SpokenTask as SpokenTask
    from likely.prompting.speech.nbest import nbest_prompt as nbest_prompt
    from likely.prompting.speech.nbest import transcript_prompt as transcript_prompt
    from likely.prompting.speech.recognise import Recogniser as Recogniser
    from likely.prompting.speech.recognise import Utterance as Utterance
    from likely.prompting.speech.recognise import speak_and_listen as speak_and_listen
    from likely.prompting.speech.words import oracle_word_error_rate as oracle_word_error_rate
    from likely.prompting.speech.words import rover as rover
    from likely.prompting.speech.words import word_error_rate as word_error_rate
    from likely.prompting.speech.words import word_errors as word_errors

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
