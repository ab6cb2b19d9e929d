"""One sequence layer each: attention, linear attention, state spaces.  `likely.sequence.MIXERS` names them."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.sequence.layers.attention import SoftmaxAttention as SoftmaxAttention
    from likely.sequence.layers.delta import DeltaNet as DeltaNet
    from likely.sequence.layers.delta import GatedDeltaNet as GatedDeltaNet
    from likely.sequence.layers.diagonal import DSS as DSS
    from likely.sequence.layers.diagonal import S4D as S4D
    from likely.sequence.layers.diagonal import DiagonalMixer as DiagonalMixer
    from likely.sequence.layers.ema import EMA as EMA
    from likely.sequence.layers.gated import GSS as GSS
    from likely.sequence.layers.gated import H3 as H3
    from likely.sequence.layers.hyena import Hyena as Hyena
    from likely.sequence.layers.linear_attention import GatedLinearAttention as GatedLinearAttention
    from likely.sequence.layers.linear_attention import LinearAttention as LinearAttention
    from likely.sequence.layers.linear_attention import RetNet as RetNet
    from likely.sequence.layers.lru import LRU as LRU
    from likely.sequence.layers.lru import S5 as S5
    from likely.sequence.layers.lru import SharedDiagonalMixer as SharedDiagonalMixer
    from likely.sequence.layers.mamba import Mamba as Mamba
    from likely.sequence.layers.mamba2 import Mamba2 as Mamba2
    from likely.sequence.layers.parallel import ParallelMixer as ParallelMixer

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
