"""Any causal language model of transformers, on a CPU or a GPU, with gradients; the one runtime that imports torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.runtimes.torch.gguf_module import load_gguf as load_gguf
    from likely.runtimes.torch.hydragen import PrefixLevel as PrefixLevel
    from likely.runtimes.torch.hydragen import attention_with_lse as attention_with_lse
    from likely.runtimes.torch.hydragen import merge_attention as merge_attention
    from likely.runtimes.torch.hydragen import shared_prefix_attention as shared_prefix_attention
    from likely.runtimes.torch.runtime import TorchRuntime as TorchRuntime

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
