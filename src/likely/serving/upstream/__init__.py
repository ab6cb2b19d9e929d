"""Other OpenAI-compatible servers behind this one: which of them gets a request, and how it is passed on."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.upstream.balancer import Balancer as Balancer
    from likely.serving.upstream.balancer import Hedging as Hedging
    from likely.serving.upstream.balancer import Upstream as Upstream
    from likely.serving.upstream.proxy import UpstreamProxy as UpstreamProxy

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
