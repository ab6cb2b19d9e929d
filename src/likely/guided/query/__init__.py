"""The query language: prompts with holes, control flow between them, and conditions on what may stand in a hole."""

from likely.guided.query.actions import ActionError, Lookup, calculate
from likely.guided.query.cost import Cost
from likely.guided.query.decoders import Decoder, make_decoder
from likely.guided.query.effect import effect
from likely.guided.query.final import Final
from likely.guided.query.nodes import THIS, Hole
from likely.guided.query.ops import op
from likely.guided.query.program import Query, QueryResult, query, query_file
from likely.guided.query.run import QueryError, Run
from likely.guided.query.syntax import QuerySyntaxError
from likely.guided.query.text import control
from likely.guided.query.trace import Event, ReplayMismatch, Trace

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
