"""The kernels that layers are made of: scans, chunked linear attention, convolutions, and each one as a plain loop."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.sequence.ops.chunked import linear_attention as linear_attention
    from likely.sequence.ops.chunked import linear_attention_by_steps as linear_attention_by_steps
    from likely.sequence.ops.chunked import ssd as ssd
    from likely.sequence.ops.chunked import ssd_by_steps as ssd_by_steps
    from likely.sequence.ops.conv import causal_conv1d as causal_conv1d
    from likely.sequence.ops.conv import conv_by_steps as conv_by_steps
    from likely.sequence.ops.conv import fft_conv as fft_conv
    from likely.sequence.ops.conv import vandermonde as vandermonde
    from likely.sequence.ops.scan import linear_scan as linear_scan
    from likely.sequence.ops.scan import scan_by_steps as scan_by_steps
    from likely.sequence.ops.scan import selective_scan as selective_scan

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
