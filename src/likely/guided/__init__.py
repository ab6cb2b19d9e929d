"""Guided decoding: texts held to a schema, a regular expression, a grammar or choices, and contrastive decoding."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.guided.combinators import AllOf as AllOf
    from likely.guided.combinators import AnyOf as AnyOf
    from likely.guided.combinators import InOrder as InOrder
    from likely.guided.conditional_sampling import Ensemble as Ensemble
    from likely.guided.contrast import CollisionGate as CollisionGate
    from likely.guided.contrast import Contrast as Contrast
    from likely.guided.fields import Field as Field
    from likely.guided.form import make_form as make_form
    from likely.guided.guide import Guide as Guide
    from likely.guided.json_schema.errors import InvalidSchema as InvalidSchema
    from likely.guided.json_schema.errors import InvalidText as InvalidText
    from likely.guided.json_schema.errors import SchemaUnsatisfied as SchemaUnsatisfied
    from likely.guided.json_schema.errors import UnsupportedSchema as UnsupportedSchema
    from likely.guided.processor import for_llama_cpp as for_llama_cpp
    from likely.guided.processor import for_transformers as for_transformers
    from likely.guided.settings import Form as Form
    from likely.guided.settings import FormSettings as FormSettings
    from likely.guided.vocabulary import Vocabulary as Vocabulary

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
