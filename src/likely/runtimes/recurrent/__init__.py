"""State-space models and their hybrids as a Runtime: a sequence is a state of fixed size, not a cache of its tokens."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.runtimes.recurrent.checkpoints import kept_checkpoints as kept_checkpoints
    from likely.runtimes.recurrent.runtime import RecurrentRuntime as RecurrentRuntime

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
