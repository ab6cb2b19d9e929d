"""Masked diffusion language models in torch: the network, its predictor, and the folders that it is read from."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.runtimes.torch.masked.checkpoint import load_masked as load_masked
    from likely.runtimes.torch.masked.checkpoint import open_masked as open_masked
    from likely.runtimes.torch.masked.checkpoint import save_masked as save_masked
    from likely.runtimes.torch.masked.network import MaskedShape as MaskedShape
    from likely.runtimes.torch.masked.network import MaskedTransformer as MaskedTransformer
    from likely.runtimes.torch.masked.network import TinyMaskedLM as TinyMaskedLM
    from likely.runtimes.torch.masked.predictor import FrozenStates as FrozenStates
    from likely.runtimes.torch.masked.predictor import MaskedPredictor as MaskedPredictor

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
