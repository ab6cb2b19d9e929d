"""Conditions on holes: the tree that `where` builds, its value on unfinished texts, and constraints made of it."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.queries.where.constraint import WhereCompiler as WhereCompiler
    from likely.queries.where.final import Final as Final
    from likely.queries.where.final import evaluate as evaluate
    from likely.queries.where.nodes import THIS as THIS
    from likely.queries.where.nodes import Hole as Hole
    from likely.queries.where.nodes import Node as Node
    from likely.queries.where.ops import op as op

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
