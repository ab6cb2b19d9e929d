"""Where models come from: known names, files, folders and hub ids; loading, chat templates, conversion."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.models.catalog import DEFAULT_MODEL as DEFAULT_MODEL
    from likely.models.catalog import KNOWN as KNOWN
    from likely.models.catalog import KnownModel as KnownModel
    from likely.models.catalog import find_model as find_model
    from likely.models.chat_template import ChatTemplate as ChatTemplate
    from likely.models.load import Loaded as Loaded
    from likely.models.load import ModelInfo as ModelInfo
    from likely.models.load import available_runtimes as available_runtimes
    from likely.models.load import load_local as load_local
    from likely.models.load import resolve as resolve
    from likely.models.verify_conversion import compare_models as compare_models

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
