"""A model of no opinion over bytes and some merges, and random schemas."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
from byte_tokenizer import PieceTokenizer

from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import ToyRuntime

BYTES = [bytes([b]) for b in range(256)]
MERGES = [
    b'":',
    b'","',
    b'{"',
    b'"}',
    b'["',
    b'"]',
    b"},",
    b"true",
    b"null",
    b"12",
    b"\xc3\xa9",
    b'\\"',
    b"2020-0",
    b", ",
]


@cache
def uniform(context_length: int = 4096) -> Model:
    """Every token alike: the hardest model to keep to a form."""
    tokenizer = PieceTokenizer([*BYTES, *MERGES], control=["<end>"])
    logits = np.zeros(tokenizer.vocab_size, np.float32)
    runtime = ToyRuntime(
        lambda prefix: logits, vocab_size=tokenizer.vocab_size, context_length=context_length, tokens_held=10**6
    )
    return Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float64", "0", "pieces", template=False))


def opinionated(seed: int = 0) -> Model:
    """Random logits by the last tokens."""
    tokenizer = PieceTokenizer([*BYTES, *MERGES], control=["<end>"])
    runtime = ToyRuntime.random(tokenizer.vocab_size, seed=seed, order=2, context_length=2048, tokens_held=10**6)
    return Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float64", "0", "pieces", template=False))


PATTERNS = [
    "^[a-c]{2,5}$",
    "^\\d{1,3}-\\w+$",
    "x",
    "^a|b$",
    "^(foo|bar)+$",
    "[^aeiou]$",
    "^\\S\\s\\S$",
    "^.{0,4}$",
    '^"\\\\$',
]
FORMATS = ["date", "time", "date-time", "duration", "email", "ipv4", "ipv6", "uuid", "uri", "hostname", "json-pointer"]
NAMES = ["a", "b", "name", "x/y", 'q"t', "é", "long name"]
VALUES = [None, True, False, 0, 1, -7, 2.5, "", "a", "é\n", [], [1, "a"], {}, {"a": 1}, {"b": [None]}]


class Schemas:
    """Random schemas of every keyword that can be enforced, nested and recursive; with `rich`, of the others, too."""

    def __init__(self, seed: int, rich: bool = False):
        self.rng, self.rich = random.Random(seed), rich

    def draw(self) -> Any:
        schema = self.node(3)
        if isinstance(schema, dict) and self.rng.random() < 0.3:
            schema["$defs"] = {"tree": {
                "type": "object", "properties": {"v": self.node(0), "next": {"$ref": "#/$defs/tree"}},
                "required": ["v"], "additionalProperties": False,
            }}  # fmt: skip
            if schema.get("type") == "object":
                schema.setdefault("properties", {})["tree"] = {"$ref": "#/$defs/tree"}
        return schema

    def node(self, depth: int) -> Any:
        rng = self.rng
        kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "mixed"]
        if depth:
            kinds += ["object", "object", "object", "array", "array", "anyOf", "oneOf", "allOf", "true"]
        if self.rich:
            kinds += ["different", "either"]
        kind = rng.choice(kinds)
        out = getattr(self, f"_{kind}", lambda depth: {"type": kind})(depth)
        if self.rich and depth and isinstance(out, dict) and rng.random() < 0.4:
            out.update(self._beyond(depth))
        return out

    def _beyond(self, depth: int) -> dict[str, Any]:
        return self.rng.choice([
            {"not": self.node(0)}, {"uniqueItems": True}, {"contains": self.node(0)},
            {"dependentRequired": {"a": ["b"]}}, {"propertyNames": {"maxLength": 4}},
            {"if": self.node(0), "then": self.node(0)}, {"unevaluatedProperties": False},
            {"dependentSchemas": {"a": {"minProperties": 2}}}, {"minProperties": 2},
        ])  # fmt: skip

    def _some(self, **choices: Any) -> dict[str, Any]:
        return {key: value for key, value in choices.items() if self.rng.random() < 0.4}

    def _string(self, depth: int) -> dict[str, Any]:
        rng, low = self.rng, self.rng.randint(0, 3)
        if rng.random() < 0.3:
            return {"type": "string", "format": rng.choice(FORMATS)}
        if rng.random() < 0.4:
            return {"type": "string", "pattern": rng.choice(PATTERNS)}
        return {"type": "string", **self._some(minLength=low, maxLength=low + rng.randint(0, 4))}

    def _integer(self, depth: int) -> dict[str, Any]:
        low = self.rng.randint(-50, 50)
        return {
            "type": "integer",
            **self._some(minimum=low, exclusiveMaximum=low + 30, multipleOf=self.rng.randint(1, 7)),
        }

    def _number(self, depth: int) -> dict[str, Any]:
        low = round(self.rng.uniform(-9, 9), 2)
        return {
            "type": "number",
            **self._some(exclusiveMinimum=low, maximum=low + 5, multipleOf=self.rng.choice([0.5, 0.25])),
        }

    def _mixed(self, depth: int) -> dict[str, Any]:
        """Keywords without a type."""
        return self._some(
            minLength=2, maxLength=5, minimum=3, maxItems=2, required=["a"], properties={"a": self.node(0)},
            pattern="a", type=["string", "object", "integer"], items=self.node(0),
        )  # fmt: skip

    def _enum(self, depth: int) -> dict[str, Any]:
        return {"enum": self.rng.sample(VALUES, self.rng.randint(1, 4))}

    def _const(self, depth: int) -> dict[str, Any]:
        return {"const": self.rng.choice(VALUES)}

    def _different(self, depth: int) -> dict[str, Any]:
        return {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}

    def _either(self, depth: int) -> dict[str, Any]:
        return {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]}

    def _true(self, depth: int) -> Any:
        return self.rng.choice([True, {}, {"title": "anything"}])

    def _object(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        names = rng.sample(NAMES, rng.randint(0, 4))
        required = [name for name in names if rng.random() < 0.5]
        if rng.random() < 0.2:
            required.append("other")
        further = rng.choice([False, True, self.node(0)])
        out: dict[str, Any] = {"type": "object"}
        if names or rng.random() < 0.5:
            out["properties"] = {name: self.node(depth - 1) for name in names}
        if (required and further is not False) or set(required) <= set(names):
            out["required"] = required
        if rng.random() < 0.6:
            out["additionalProperties"] = further
        elif rng.random() < 0.3:
            out["patternProperties"] = {"^p_": self.node(0)}
        return out

    def _array(self, depth: int) -> dict[str, Any]:
        rng, low = self.rng, self.rng.randint(0, 2)
        out = {
            "type": "array",
            **self._some(items=self.node(depth - 1), minItems=low, maxItems=low + rng.randint(0, 2)),
        }
        if rng.random() < 0.3:
            out["prefixItems"] = [self.node(depth - 1) for _ in range(rng.randint(1, 2))]
        return out

    def _anyOf(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.node(depth - 1) for _ in range(self.rng.randint(1, 3))]}

    def _oneOf(self, depth: int) -> dict[str, Any]:
        return {"oneOf": [self._string(0), self._integer(0), {"type": "null"}]}

    def _allOf(self, depth: int) -> dict[str, Any]:
        return {"type": "object", "allOf": [self._object(depth - 1), self._object(0)]}
