"""One sequence layer each: attention, linear attention, state spaces.  `likely.sequence.MIXERS` names them."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.sequence.layers.attention import SoftmaxAttention as SoftmaxAttention
    from likely.sequence.layers.diagonal import S4D as S4D
    from likely.sequence.layers.diagonal import DiagonalMixer as DiagonalMixer
    from likely.sequence.layers.ema import EMA as EMA
    from likely.sequence.layers.linear_attention import LinearAttention as LinearAttention
    from likely.sequence.layers.mamba2 import Mamba2 as Mamba2
    from likely.sequence.layers.s4 import S4 as S4

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
