"""Function calls held against what was expected: the Berkeley cases (BFCL), their documents as tools, and their rules.

The check compares names and values, not texts (BFCL's AST check).  Nothing is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from likely.data.datasets import load_records
from likely.errors import DataError, check_choice

CATEGORIES = (
    "simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance",
    "live_simple", "live_multiple", "live_relevance", "live_irrelevance",
)  # fmt: skip
# answer keys that contradict their own documents: no acceptable value has the declared type, a parameter that the
# document lacks, a required one without acceptable values; where the value is the name of a variable it passes still
CONTRADICTORY = frozenset({
    "simple_python_307", "live_multiple_302-131-1", "parallel_multiple_26", "live_simple_106-63-0",
    "parallel_multiple_21", "live_multiple_338-133-2", "live_multiple_345-133-9", "live_multiple_354-133-18",
})  # fmt: skip
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}  # the documents' words for JSON Schema's
KEYWORDS = ("description", "enum", "required", "minItems", "maxItems", "minimum", "maximum")  # that are taken over
LEFT_OUT = ""  # among acceptable values: the parameter may be left out

CallProblem = Literal["count", "name", "missing", "extra", "type", "value", "left out"]
FunctionDocument = Mapping[
    str, Any
]  # {"name", "description", "parameters": {"type": "dict", "properties", "required"}}
Key = Mapping[str, Mapping[str, Sequence[Any]]]  # {name: {parameter: acceptable values}}


@dataclass(frozen=True)
class PredictedCall:
    """A call that a model made."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class CallVerdict:
    """Whether calls are the expected ones; `problem` and `why`: of the first difference."""

    passed: bool
    problem: CallProblem | None = None
    why: str = ""


@dataclass(frozen=True)
class FunctionCase:
    """One question, the functions on offer, and the acceptable calls; none where the right answer is that there is no
    call, or just any call."""

    id: str
    category: str
    messages: list[dict[str, str]]
    functions: list[dict[str, Any]]
    expected: list[dict[str, dict[str, list[Any]]]]

    @property
    def kind(self) -> Literal["one", "several", "none", "any"]:
        """How many calls are right."""
        if self.category.endswith("irrelevance"):
            return "none"
        if self.category.endswith("relevance"):
            return "any"
        return "several" if "parallel" in self.category else "one"


def function_cases(category: str, *, limit: int | None = None, data_dir: str | None = None) -> list[FunctionCase]:
    """The cases of one of `CATEGORIES`, in the order of the file; limit: only the first ones."""
    check_choice("category", category, CATEGORIES)
    found: list[FunctionCase] = []
    for record in load_records("bfcl", f"{category}.jsonl.gz", data_dir=data_dir):
        if limit is not None and len(found) == limit:
            break
        [turn] = record["question"]
        found.append(FunctionCase(record["id"], category, turn, record["function"], record.get("ground_truth") or []))
    return found


# --- documents as tools -----------------------------------------------------------------------------------------------


def as_json_schema(found: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter of a document as a JSON Schema.

    A default becomes part of the description, since it is a remark for whoever calls; an object that lists its
    properties has no others.  What is required but not listed cannot be given and is dropped.
    """
    out: dict[str, Any] = {}
    kind = found.get("type")
    if kind not in (None, "any"):
        out["type"] = JSON_TYPES.get(kind, kind)
    out |= {name: found[name] for name in KEYWORDS if found.get(name) not in (None, [])}
    if "default" in found and found["default"] is not None:
        out["description"] = f"{out.get('description', '')} Default: {found['default']}".strip()
    if isinstance(items := found.get("items"), Mapping):
        out["items"] = as_json_schema(items)
    if out.get("type") == "array" and "enum" in out and not any(isinstance(v, list) for v in out["enum"]):
        out["items"] = {**out.get("items", {}), "enum": out.pop("enum")}  # it lists what the elements may be
    if isinstance(listed := found.get("properties"), Mapping) and listed:
        out["properties"] = {name: as_json_schema(part) for name, part in listed.items()}
        out["additionalProperties"] = False
    if "required" in out:
        out["required"] = [name for name in out["required"] if name in out.get("properties", {})]
    return out


def as_functions(documents: Sequence[FunctionDocument]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(functions as a chat request offers them, offered name -> the document's own name).

    Names of tools hold no dots: each becomes "_", and a name that is then taken gets a number.
    """
    functions, names = [], dict[str, str]()
    for document in documents:
        plain = offered = re.sub(r"[^a-zA-Z0-9_-]", "_", document["name"])[:60]
        number = 1
        while offered in names:
            number += 1
            offered = f"{plain}_{number}"
        names[offered] = document["name"]
        parameters = {"properties": {}, "additionalProperties": False, **as_json_schema(document["parameters"])}
        functions.append({"name": offered, "description": document.get("description", ""), "parameters": parameters})
    return functions, names


# --- the check --------------------------------------------------------------------------------------------------------


def check_case(case: FunctionCase, calls: Sequence[PredictedCall]) -> CallVerdict:
    """Whether the calls answer the case; an output that holds no call that can be read is no call."""
    if case.kind in ("none", "any"):
        right = bool(calls) == (case.kind == "any")
        wanted = "a call" if case.kind == "any" else "no call"
        return (
            CallVerdict(True) if right else CallVerdict(False, "count", f"{len(calls)} calls where {wanted} is right")
        )
    return check_calls(case.functions, case.expected, calls)


def check_calls(
    documents: Sequence[FunctionDocument], expected: Sequence[Key], calls: Sequence[PredictedCall]
) -> CallVerdict:
    """Whether the calls are the expected ones, in any order.

    Each expected call takes the first call that passes for it and was not taken before (greedily, as BFCL does).
    """
    if len(calls) != len(expected):
        return CallVerdict(False, "count", f"{len(calls)} calls, expected {len(expected)}")
    left = list(calls)
    for key in expected:
        verdicts = [check_call(_document(documents, key), key, call) for call in left]
        taken = next((i for i, verdict in enumerate(verdicts) if verdict.passed), None)
        if taken is None:
            right_name = [v for v in verdicts if v.problem != "name"]
            return (right_name or verdicts)[0]
        del left[taken]
    return CallVerdict(True)


def check_call(document: FunctionDocument, key: Key, call: PredictedCall) -> CallVerdict:
    """Whether one call is the one that the key describes.

    The name is the key's, dots perhaps written as "_".  Every required parameter is given, none that the document or
    the key lacks.  Each value has the declared type (a whole number is a float, true and false are no numbers, elements
    of lists are looked at one level deep), or is exactly an acceptable value of another type (a variable's name); and
    it is among the acceptable values.  A parameter that is left out has "" among its values.
    """
    ((name, acceptable),) = key.items()
    if call.name not in (name, name.replace(".", "_")):
        return CallVerdict(False, "name", f"{call.name} was called, expected {name}")
    listed = document["parameters"].get("properties", {})
    for parameter in document["parameters"].get("required", ()):
        if parameter not in call.arguments:
            return CallVerdict(False, "missing", f"the required parameter {parameter} is missing")
    for parameter, value in call.arguments.items():
        if parameter not in listed or parameter not in acceptable:
            return CallVerdict(False, "extra", f"there is no parameter {parameter}, or it should be left out")
        values = acceptable[parameter]
        if not (_has_type(value, listed[parameter]) or any(_is_name_or_null(value, each) for each in values)):
            kind = listed[parameter].get("type")
            return CallVerdict(False, "type", f"{parameter} must be of type {kind}, got {_short(value)}")
        if not any(_matches(value, each) for each in values):
            return CallVerdict(False, "value", f"{parameter} is {_short(value)}, expected one of {_short(values)}")
    for parameter, values in acceptable.items():
        if parameter not in call.arguments and LEFT_OUT not in values:
            return CallVerdict(False, "left out", f"{parameter} may not be left out")
    return CallVerdict(True)


def first_acceptable(case: FunctionCase) -> list[PredictedCall]:
    """The calls that the key describes, each parameter with its first acceptable value."""
    calls = []
    for key in case.expected:
        ((name, parameters),) = key.items()
        required = next((d["parameters"].get("required", ()) for d in case.functions if d["name"] == name), ())
        calls.append(PredictedCall(name, _first_of(parameters, required)))
    return calls


def _first_of(parameters: Mapping[str, Sequence[Any]], required: Sequence[str] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for parameter, values in parameters.items():
        value: Any = next((each for each in values if not _is_left_out(each)), None if values else [])
        if value is None and None not in values:
            if parameter not in required:
                continue
            value = LEFT_OUT
        if _describes_object(value):
            value = _first_of(value)
        elif isinstance(value, list):
            value = [_first_of(each) if _describes_object(each) else each for each in value]
        found[parameter] = value
    return found


def _document(documents: Sequence[FunctionDocument], key: Key) -> FunctionDocument:
    (name,) = key
    for document in documents:
        if document["name"] == name:
            return document
    raise DataError(f"the answer key names {name}, which none of the documents describes")


def _is_left_out(value: Any) -> bool:
    return isinstance(value, str) and value == LEFT_OUT


def _describes_object(value: Any) -> bool:
    """Whether a value of a key is an object whose members are lists of acceptable values."""
    return isinstance(value, Mapping) and all(isinstance(each, list) for each in value.values())


def _has_type(value: Any, declared: Mapping[str, Any]) -> bool:
    kind = declared.get("type")
    if kind in ("array", "tuple"):
        inner = declared.get("items")
        inner = inner.get("type") if isinstance(inner, Mapping) else None
        return isinstance(value, (list, tuple)) and all(inner is None or _is(each, inner) for each in value)
    return _is(value, kind)


def _is(value: Any, kind: Any) -> bool:
    if kind in ("integer", "float"):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (kind == "float" and isinstance(value, float))
    types: dict[Any, Any] = {"string": str, "boolean": bool, "dict": Mapping, "array": list, "tuple": list}
    return kind not in types or isinstance(value, types[kind])


def _matches(value: Any, acceptable: Any) -> bool:
    """Whether a value is this acceptable one; in its objects every member has acceptable values of its own."""
    if isinstance(value, Mapping) and isinstance(acceptable, Mapping):
        if not _describes_object(acceptable):
            return _equal(value, acceptable)
        given = all(name in acceptable and any(_matches(v, a) for a in acceptable[name]) for name, v in value.items())
        return given and all(name in value or LEFT_OUT in values for name, values in acceptable.items())
    if isinstance(value, (list, tuple)) and isinstance(acceptable, (list, tuple)):
        return len(value) == len(acceptable) and all(map(_matches, value, acceptable))
    return _equal(value, acceptable)


def _equal(a: Any, b: Any) -> bool:
    """Strings without spaces, the marks , . / - _ * ^ and case, ' as "; true and false equal no number."""
    if isinstance(a, str) and isinstance(b, str):
        return _bare(a) == _bare(b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _is_name_or_null(value: Any, acceptable: Any) -> bool:
    """Whether a value is this one whatever the document declares: a variable's name, or null where the key lists it."""
    return value is acceptable is None or (isinstance(value, str) and value != LEFT_OUT and _equal(value, acceptable))


def _bare(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
