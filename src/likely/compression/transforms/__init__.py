"""Exact rewrites of a decoder's weights: its function stays, what a rounding step then loses does not."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.compression.transforms.hadamard import hadamard_matrix as hadamard_matrix
    from likely.compression.transforms.hadamard import rotation_matrix as rotation_matrix
    from likely.compression.transforms.residual import rotate_residual as rotate_residual
    from likely.compression.transforms.residual import rotate_values as rotate_values
    from likely.compression.transforms.scaling import fold_norms as fold_norms
    from likely.compression.transforms.scaling import inject_outliers as inject_outliers
    from likely.compression.transforms.scaling import permute_heads as permute_heads
    from likely.compression.transforms.scaling import permute_neurons as permute_neurons
    from likely.compression.transforms.scaling import scale_neurons as scale_neurons
    from likely.compression.transforms.scaling import scale_norm as scale_norm
    from likely.compression.transforms.scaling import scale_values as scale_values
    from likely.compression.transforms.scaling import split_channels as split_channels
    from likely.compression.transforms.scaling import untie_head as untie_head
    from likely.compression.transforms.scaling import verify as verify

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
