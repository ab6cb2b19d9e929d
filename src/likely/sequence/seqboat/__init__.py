"""SeqBoat, and sparse modular activation by itself: route, compress, run a unit on what is left, extract."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.sequence.seqboat.layer import SeqBoat as SeqBoat
    from likely.sequence.seqboat.sma import ActiveTokens as ActiveTokens
    from likely.sequence.seqboat.sma import compress as compress
    from likely.sequence.seqboat.sma import extract as extract
    from likely.sequence.seqboat.sma import route as route
    from likely.sequence.seqboat.sma import run_where_active as run_where_active
    from likely.sequence.seqboat.windowed import WindowedKeys as WindowedKeys
    from likely.sequence.seqboat.windowed import windowed_attention as windowed_attention

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
