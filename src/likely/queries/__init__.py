"""The query language: prompts with holes, control flow between them, and conditions on what may stand in a hole."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.queries.actions import ActionError as ActionError
    from likely.queries.actions import Lookup as Lookup
    from likely.queries.actions import calculate as calculate
    from likely.queries.actions import effect as effect
    from likely.queries.decoders import Decoder as Decoder
    from likely.queries.decoders import make_decoder as make_decoder
    from likely.queries.program import Query as Query
    from likely.queries.program import QueryResult as QueryResult
    from likely.queries.program import query as query
    from likely.queries.program import query_file as query_file
    from likely.queries.run import QueryError as QueryError
    from likely.queries.run import QueryRun as QueryRun
    from likely.queries.syntax.parse import QuerySyntaxError as QuerySyntaxError
    from likely.queries.text import control as control
    from likely.queries.trace import QueryCost as QueryCost
    from likely.queries.trace import QueryEvent as QueryEvent
    from likely.queries.trace import QueryTrace as QueryTrace
    from likely.queries.trace import ReplayMismatch as ReplayMismatch
    from likely.queries.where.final import Final as Final
    from likely.queries.where.nodes import THIS as THIS
    from likely.queries.where.nodes import Hole as Hole
    from likely.queries.where.ops import op as op

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
