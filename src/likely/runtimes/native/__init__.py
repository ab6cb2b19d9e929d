"""Llama, Mistral, Qwen and Gemma models on a CPU in likely's own C++, compiled on first use; rows equal to the bit."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.runtimes.native.architecture import Architecture as Architecture
    from likely.runtimes.native.build import can_build as can_build
    from likely.runtimes.native.runtime import NativeRuntime as NativeRuntime

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
