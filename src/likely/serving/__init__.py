"""Many users of one model: an engine that one thread owns, and the OpenAI-compatible API around it."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.api.app import create_app as create_app
    from likely.serving.engine import AsyncEngine as AsyncEngine
    from likely.serving.engine import EngineFailed as EngineFailed
    from likely.serving.engine import Overloaded as Overloaded
    from likely.serving.engine import Ticket as Ticket
    from likely.serving.limits import ServerLimits as ServerLimits

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
