"""The query language: prompts with holes, control flow between them, and conditions on what may stand in a hole."""

from likely.queries.actions import ActionError, Lookup, calculate, effect
from likely.queries.decoders import Decoder, make_decoder
from likely.queries.program import Query, QueryResult, query, query_file
from likely.queries.run import QueryError, Run
from likely.queries.syntax.parse import QuerySyntaxError
from likely.queries.text import control
from likely.queries.trace import Cost, Event, ReplayMismatch, Trace
from likely.queries.where.final import Final
from likely.queries.where.nodes import THIS, Hole
from likely.queries.where.ops import op

__all__ = [
    "THIS",
    "ActionError",
    "Cost",
    "Decoder",
    "Event",
    "Final",
    "Hole",
    "Lookup",
    "Query",
    "QueryError",
    "QueryResult",
    "QuerySyntaxError",
    "ReplayMismatch",
    "Run",
    "Trace",
    "calculate",
    "control",
    "effect",
    "make_decoder",
    "op",
    "query",
    "query_file",
]
