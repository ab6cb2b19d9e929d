"""The object a user holds for a masked diffusion language model: how its canvas is decoded, and what it refuses."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.lm.diffusion.model import DiffusionModel as DiffusionModel
    from likely.lm.diffusion.settings import DiffusionSettings as DiffusionSettings

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
