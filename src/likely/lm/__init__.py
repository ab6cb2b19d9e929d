"""The language model that a user holds: score, generate, ask, chat, extract, on this machine or behind a server."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.lm.api import ask as ask
    from likely.lm.api import generate as generate
    from likely.lm.api import load as load
    from likely.lm.api import score as score
    from likely.lm.base import LanguageModel as LanguageModel
    from likely.lm.confidence import AskOptions as AskOptions
    from likely.lm.confidence import ConfidenceOptions as ConfidenceOptions
    from likely.lm.confidence import ConfidencePolicy as ConfidencePolicy
    from likely.lm.diffusion.model import DiffusionModel as DiffusionModel
    from likely.lm.diffusion.settings import DiffusionSettings as DiffusionSettings
    from likely.lm.extract import Extracted as Extracted
    from likely.lm.model import Model as Model
    from likely.lm.options import GenerateOptions as GenerateOptions
    from likely.lm.remote.model import RemoteModel as RemoteModel
    from likely.lm.results import Answer as Answer
    from likely.lm.results import Generation as Generation
    from likely.lm.stream import Stream as Stream

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
