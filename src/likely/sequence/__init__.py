"""Sequence layers with one interface: state spaces, linear attention, attention, and the kernels they are made of."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.sequence.backbone import ModelState as ModelState
    from likely.sequence.backbone import SequenceBackbone as SequenceBackbone
    from likely.sequence.backbone import SequenceClassifier as SequenceClassifier
    from likely.sequence.backbone import SequenceConfig as SequenceConfig
    from likely.sequence.backbone import SequenceLM as SequenceLM
    from likely.sequence.backbone import SequenceOutput as SequenceOutput
    from likely.sequence.backbone import SequenceRegressor as SequenceRegressor
    from likely.sequence.backbone import layers_of as layers_of
    from likely.sequence.convert import SequenceConversion as SequenceConversion
    from likely.sequence.convert import convert_folder as convert_folder
    from likely.sequence.convert import from_transformers as from_transformers
    from likely.sequence.convert import load_sequence_lm as load_sequence_lm
    from likely.sequence.convert import to_transformers as to_transformers
    from likely.sequence.hippo import DiagonalPlusLowRank as DiagonalPlusLowRank
    from likely.sequence.hippo import diagonal_initialisation as diagonal_initialisation
    from likely.sequence.hippo import hippo_matrix as hippo_matrix
    from likely.sequence.hippo import nplr as nplr
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
    from likely.sequence.optim import param_groups as param_groups
    from likely.sequence.recurrent import ChunkSummary as ChunkSummary
    from likely.sequence.recurrent import RecurrentMixer as RecurrentMixer
    from likely.sequence.table import MIXERS as MIXERS
    from likely.sequence.table import MixerEntry as MixerEntry
    from likely.sequence.table import describe_layers as describe_layers
    from likely.sequence.table import make_mixer as make_mixer

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
