"""JSON Schema (draft 2020-12): read, checked for what an engine enforces, rewritten for it, and texts validated."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.guided.json_schema.errors import InvalidSchema as InvalidSchema
    from likely.guided.json_schema.errors import InvalidText as InvalidText
    from likely.guided.json_schema.errors import SchemaUnsatisfied as SchemaUnsatisfied
    from likely.guided.json_schema.errors import UnsupportedSchema as UnsupportedSchema
    from likely.guided.json_schema.form import schema_form as schema_form
    from likely.guided.json_schema.report import check_schema as check_schema

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
