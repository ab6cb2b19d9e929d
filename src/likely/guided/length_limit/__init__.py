"""Length limits that leave no text incomplete: tokens after which it could not be completed in time are left out."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.guided.length_limit.constraint import LengthLimit as LengthLimit
    from likely.guided.length_limit.constraint import LengthLimiter as LengthLimiter

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
