"""Queries as text: prompt strings, clauses and trailing keywords, read and rewritten into calls of a QueryRun."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.queries.syntax.parse import QuerySyntaxError as QuerySyntaxError
    from likely.queries.syntax.parse import parse as parse
    from likely.queries.syntax.parse import parse_function as parse_function

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
