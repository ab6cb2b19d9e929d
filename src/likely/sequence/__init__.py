"""Sequence layers with one interface: state spaces, linear attention, attention, and the kernels they are made of."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.sequence.mixer import MixerOutput as MixerOutput
    from likely.sequence.mixer import MixerRows as MixerRows
    from likely.sequence.mixer import MixerState as MixerState
    from likely.sequence.mixer import SequenceMixer as SequenceMixer
    from likely.sequence.ops.chunked import linear_attention as linear_attention
    from likely.sequence.ops.chunked import ssd as ssd
    from likely.sequence.ops.conv import causal_conv1d as causal_conv1d
    from likely.sequence.ops.conv import fft_conv as fft_conv
    from likely.sequence.ops.conv import vandermonde as vandermonde
    from likely.sequence.ops.scan import linear_scan as linear_scan
    from likely.sequence.ops.scan import selective_scan as selective_scan
    from likely.sequence.recurrent import ChunkSummary as ChunkSummary
    from likely.sequence.recurrent import RecurrentMixer as RecurrentMixer
    from likely.sequence.table import MIXERS as MIXERS
    from likely.sequence.table import MixerEntry as MixerEntry
    from likely.sequence.table import describe_layers as describe_layers
    from likely.sequence.table import make_mixer as make_mixer

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
