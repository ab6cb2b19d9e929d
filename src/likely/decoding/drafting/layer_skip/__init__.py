"""Self-speculation: the target drafts with layers left out, and a search for the layers that it can miss."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.layer_skip.drafter import LayerSkip as LayerSkip
    from likely.decoding.drafting.layer_skip.drafter import save_plan as save_plan
    from likely.decoding.drafting.layer_skip.search import relative_cost as relative_cost
    from likely.decoding.drafting.layer_skip.search import speed_on as speed_on

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
