"""Whether a finished text follows its schema: jsonschema, with exact decimals, our formats and quick patterns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from likely.errors import needs
from likely.guided.json_schema.document import Document, Schema
from likely.guided.json_schema.errors import InvalidSchema, InvalidText
from likely.guided.json_schema.formats import FORMATS, has_format
from likely.guided.json_schema.patterns import PatternError, python_pattern, searcher

MOST_ERRORS = 5
MOST_REFERENCES = 100_000  # followed while one text is checked


class Validator:
    """Of one schema.  References are followed inside it only."""

    def __init__(self, document: Document):
        with needs("jsonschema", "guided"):
            import jsonschema
            import referencing
        formats = jsonschema.FormatChecker(formats=())
        for name in FORMATS:
            formats.checks(name)(_format_check(name))
        base = jsonschema.Draft202012Validator
        words = {"pattern": _pattern, "multipleOf": _multiple_of, "$ref": self._counted(base.VALIDATORS["$ref"])}
        kind = jsonschema.validators.extend(base, words)
        self._followed = 0
        self._kind = kind(_for_python(document.root), registry=referencing.Registry(), format_checker=formats)

    def _counted(self, follow: Callable[..., Any]) -> Callable[..., Any]:
        """References that double with every step would never be followed to their end."""

        def ref(*arguments: Any) -> Any:
            self._followed += 1
            if self._followed > MOST_REFERENCES:
                raise InvalidText([f"checking it takes more than {MOST_REFERENCES:,} steps along $ref"])
            return follow(*arguments)

        return ref

    def errors(self, value: Any) -> list[str]:
        """One line each, the first few; [] if the value follows the schema."""
        self._followed = 0
        try:
            found = []
            for error in self._kind.iter_errors(value):
                found.append(f"{_place(error.absolute_path)}: {_shorten(error.message)}")
                if len(found) == MOST_ERRORS:
                    break
            return found
        except RecursionError:
            return ["the text is nested too deeply to be checked"]
        except InvalidText as endless:
            return list(endless.errors)

    def keeps(self, pointer: str, values: list[Any]) -> list[Any]:
        """Those of the values that the subschema at `pointer` allows."""
        part, self._followed = self._kind.evolve(schema={"$ref": "#" + quote(pointer)}), 0
        try:
            return [value for value in values if part.is_valid(value)]
        except (RecursionError, InvalidText):
            raise InvalidSchema(pointer, "its values cannot be tried against it, $ref leads too far") from None

    def read(self, text: str) -> Any:
        """The value of a text that follows the schema; InvalidText otherwise."""
        value = parse(text)
        if errors := self.errors(value):
            raise InvalidText(errors)
        return value


def parse(text: str) -> Any:
    """JSON without NaN and numbers that no float holds."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise InvalidText(["the text is nested too deeply to be read"]) from None
    except ValueError as error:
        raise InvalidText([f"the text is not JSON: {error}"]) from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:40]} is larger than any float")
    return value


def _format_check(name: str) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, str) or has_format(name, value)


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    try:
        holds = not validator.is_type(value, "string") or searcher(pattern)(value)
    except PatternError:  # the preflight refuses it, or leaves it to the type that the schema was made from
        return
    if not holds:
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _multiple_of(validator: Any, factor: float, value: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if validator.is_type(value, "number") and _remainder(value, factor):
        yield ValidationError(f"{value!r} is not a multiple of {factor!r}")


def _remainder(value: float, factor: float) -> bool:
    """Exactly, in the decimals that are written (binary fractions would call 0.3 no multiple of 0.1)."""
    over, under = Decimal(repr(value)).as_integer_ratio(), Decimal(repr(factor)).as_integer_ratio()
    return (over[0] * under[1]) % (over[1] * under[0]) != 0


def _for_python(node: Schema) -> Schema:
    """The schema with the names in patternProperties in Python's words (`pattern` is read by our own check)."""
    if isinstance(node, list):
        return [_for_python(each) for each in node]
    if not isinstance(node, dict):
        return node
    out = {}
    for key, value in node.items():
        if key in ("enum", "const", "default", "examples"):
            out[key] = value
        elif key == "patternProperties" and isinstance(value, dict):
            out[key] = {_name_pattern(name): _for_python(each) for name, each in value.items()}
        elif key in ("properties", "$defs", "definitions", "dependentSchemas") and isinstance(value, dict):
            out[key] = {name: _for_python(each) for name, each in value.items()}
        elif key != "$schema":
            out[key] = _for_python(value)
    return out


def _name_pattern(pattern: str) -> str:
    """One that cannot be checked matches nothing: the preflight refuses it before any text is read."""
    try:
        return python_pattern(pattern)
    except PatternError:
        return "(?!)"


def _place(path: Any) -> str:
    return "/" + "/".join(map(str, path)) if path else "the text"


def _shorten(message: str) -> str:
    return message if len(message) <= 160 else message[:120] + " ... " + message[-35:]
