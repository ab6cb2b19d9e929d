"""GGUF files on a CPU through llama.cpp, without torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.runtimes.llamacpp.masked import LlamaCppPredictor as LlamaCppPredictor
    from likely.runtimes.llamacpp.runtime import LlamaCppRuntime as LlamaCppRuntime
    from likely.runtimes.llamacpp.tokenizer import LlamaCppTokenizer as LlamaCppTokenizer

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
