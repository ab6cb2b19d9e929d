"""Documents to values: a prompt that shows a schema and a document, answers held to the schema, in batches.

A document without a value has an error instead, in one line: too long for the context, cut before the JSON was whole,
or against the schema.  One bad document never stops the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from likely.errors import ConstraintError, DataError, KvFull, LikelyError, ModelError
from likely.io.jsonl import chunked
from likely.lm.batch import BATCH, outcomes

if TYPE_CHECKING:
    from likely.decoding.loop import Loop
    from likely.decoding.request import Request
    from likely.lm.model import Model
    from likely.lm.remote.model import RemoteModel
    from likely.lm.results import Generation

INSTRUCTION = "Extract the information that the schema asks for from the document. Answer with JSON only."
_ONE_DOCUMENTS = (ConstraintError, DataError, KvFull, ModelError)  # errors that say nothing about the others
DEFAULTS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 512}


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


def extract(
    lm: Model | RemoteModel,
    documents: str | Sequence[str],
    *,
    schema: Any,
    instruction: str | None = None,
    **options: Any,
) -> Any:
    """All documents, in their order; of a single one its own."""
    from likely.lm.remote.model import RemoteModel

    listed = [documents] if isinstance(documents, str) else list(documents)
    if isinstance(lm, RemoteModel):
        found = [extract_remote(lm, document, schema, instruction, options) for document in listed]
    else:
        with closing(lm.loop()) as loop:
            batches = [extract_batch(lm, loop, batch, schema, instruction, options) for batch in chunked(listed, BATCH)]
            found = [each for batch in batches for each in batch]
    return found[0] if isinstance(documents, str) else found


def extract_batch(
    lm: Model, loop: Loop, documents: Sequence[str], schema: Any, instruction: str | None, options: dict[str, Any]
) -> Iterator[Extracted]:
    """The documents of one batch in their order, each as soon as it and all before it are done."""
    asked = [_asked(lm, document, schema, instruction, options) for document in documents]
    for found in outcomes(lm, loop, asked):
        if isinstance(found, _ONE_DOCUMENTS):
            yield Extracted(None, str(found))
        elif isinstance(found, LikelyError):
            raise found
        else:
            yield of_result(found)


def _asked(
    lm: Model, document: str, schema: Any, instruction: str | None, options: dict[str, Any]
) -> Request | LikelyError:
    try:
        return lm.extraction(document, schema=schema, instruction=instruction, **options)[0]
    except (DataError, ModelError) as error:  # empty, or nothing that this model's template takes
        return error


def of_result(result: Generation) -> Extracted:
    """The value of a finished generation, or why it has none."""
    return Extracted(result.value, why_incomplete(result), result)


def extract_remote(
    lm: RemoteModel, document: str, schema: Any, instruction: str | None, options: dict[str, Any]
) -> Extracted:
    """One document, by a server."""
    try:
        prompt = extraction_prompt(document, schema, instruction)
        return of_result(lm.ask(prompt, schema=schema, **{**DEFAULTS, **options}))
    except ConstraintError as error:
        return Extracted(None, str(error))
