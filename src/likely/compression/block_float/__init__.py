"""Block floating point for keys and values: formats, K-sort and V-sort as exact rewrites, and a packed KV cache.

Accurate Block Quantization in LLMs with Outliers, arXiv:2403.20137.
"""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.compression.block_float.cache import BlockQuantizedCache as BlockQuantizedCache
    from likely.compression.block_float.loading import load_block_float as load_block_float
    from likely.compression.block_float.scores import k_sort as k_sort
    from likely.compression.block_float.scores import v_sort as v_sort
    from likely.compression.block_float.sorting import KSort as KSort
    from likely.compression.block_float.sorting import VSort as VSort
    from likely.runtimes.kv_format import BFPFormat as BFPFormat
    from likely.runtimes.torch.block_float import BlockFloatTensor as BlockFloatTensor
    from likely.runtimes.torch.block_float import bfp_quantize as bfp_quantize

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
