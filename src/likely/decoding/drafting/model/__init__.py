"""A second model as drafter: of the same tokenizer, or of another by way of the text or of the shared tokens."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.model.cross_tokenizer import CrossTokenizerModel as CrossTokenizerModel
    from likely.decoding.drafting.model.drafter import DraftModel as DraftModel
    from likely.decoding.drafting.model.drafter import draft_model as draft_model
    from likely.decoding.drafting.model.shared_vocabulary import shared_vocabulary_model as shared_vocabulary_model

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
