"""Documents to values: a prompt that shows a schema and a document, and what the answer held to the schema gives.

A document without a value has an error instead, in one line: too long for the context, cut before the JSON was whole,
or against the schema.  One bad document never stops the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likely.errors import ConstraintError, DataError, KvFull, LikelyError, ModelError
from likely.lm.results import Generation

INSTRUCTION = "Extract the information that the schema asks for from the document. Answer with JSON only."
_ONE_DOCUMENTS = (ConstraintError, DataError, KvFull, ModelError)  # errors that say nothing about the others


@dataclass(frozen=True)
class Extracted:
    """What one document gave.

    value   as the schema wants it (of the schema's type, where it was a Python type); None where there is none
    error   why there is none, in one line; None where there is one
    result  the generation: text, log-probabilities, `fields`; None if the model was not asked
    """

    value: Any
    error: str | None = None
    result: Generation | None = None


def schema_text(schema: Any) -> str:
    """The schema as the model reads it."""
    if not isinstance(schema, (Mapping, bool)):
        from pydantic import TypeAdapter

        schema = TypeAdapter(schema).json_schema()
    return json.dumps(schema, ensure_ascii=False)


def extraction_prompt(document: str, schema: Any, instruction: str | None = None) -> str:
    """What the model is asked about one document; the instruction stands last, next to the answer."""
    return f"Schema:\n{schema_text(schema)}\n\nDocument:\n{document}\n\n{instruction or INSTRUCTION}"


def why_incomplete(result: Generation) -> str | None:
    """One line about a text that is not whole; None for one that is, and for one that was to have no form."""
    if result.complete is not False:
        return None
    count = len(result.token_ids if result.token_ids is not None else result.tokens or [])
    if result.finish_reason == "cancelled":
        return f"the text is not complete: it was stopped after {count} tokens"
    if result.finish_reason == "stop":
        return (
            "the text is not complete: a stop string or the server ended it before it had the form"
            if result.token_ids is None
            else f"the text is not complete: a stop string or stop token cut it after {count} tokens: drop --stop"
        )
    from likely.guided.fields import open_string

    pointer = open_string(result.text.encode()) if result.text.lstrip()[:1] in ("{", "[", '"') else None
    where = "" if pointer is None else f", inside the string at {pointer or 'its top'}"
    if result.finish_reason == "context":
        return (
            f"the text is not complete: the context is full after {count} tokens{where}: shorten the prompt, or "
            f"load the model with a larger --context"
        )
    more = "" if pointer is None else ", or bound strings by maxLength in the schema or -s max_string=60"
    return f"the text is not complete: it ended after {count} tokens{where}: raise --max-tokens{more}"


def extracted(outcome: Sequence[Generation] | LikelyError) -> Extracted:
    """The value of a finished document, or why it has none; what says something of the others, too, is raised."""
    if isinstance(outcome, _ONE_DOCUMENTS):
        return Extracted(None, str(outcome))
    if isinstance(outcome, LikelyError):
        raise outcome
    [result] = outcome
    return Extracted(result.value, why_incomplete(result), result)
