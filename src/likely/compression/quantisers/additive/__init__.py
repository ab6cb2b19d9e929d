"""Additive quantisation: a group of weights is the sum of one codeword from each of several codebooks (AQLM)."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.compression.quantisers.additive.fit import encode as encode
    from likely.compression.quantisers.additive.fit import fit_additive as fit_additive
    from likely.compression.quantisers.additive.tensor import AdditiveScheme as AdditiveScheme
    from likely.compression.quantisers.additive.tensor import AdditiveTensor as AdditiveTensor
    from likely.compression.quantisers.additive.tensor import parse_additive as parse_additive

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
