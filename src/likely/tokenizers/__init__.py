"""Text to token ids: the Tokenizer protocol, Hugging Face's and GGUF's, and whether two of them agree."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.tokenizers.files import metadata_from_folder as metadata_from_folder
    from likely.tokenizers.files import save_tokenizer as save_tokenizer
    from likely.tokenizers.gguf import tokenizer_from_gguf as tokenizer_from_gguf
    from likely.tokenizers.huggingface import HFTokenizer as HFTokenizer
    from likely.tokenizers.parity import compare_tokenizers as compare_tokenizers
    from likely.tokenizers.protocol import Tokenizer as Tokenizer

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
