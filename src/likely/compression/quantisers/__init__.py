"""Rounding of a decoder's matrices, and of what they read: nearest, GPTQ, AWQ, SmoothQuant, rotations."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.compression.quantisers.activations import QuantLinear as QuantLinear
    from likely.compression.quantisers.activations import quantize_inputs as quantize_inputs
    from likely.compression.quantisers.gptq import round_by_gptq as round_by_gptq
    from likely.compression.quantisers.walk import BlockWalk as BlockWalk

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
