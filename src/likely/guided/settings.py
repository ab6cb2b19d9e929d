"""A form of texts (a schema, a regular expression, a grammar or a list of choices) and how it is held: plain data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypedDict

Whitespace = Literal["compact", "single", "any"]
OnUnsupported = Literal["error", "validate", "ignore"]


@dataclass(frozen=True)
class FormSettings:
    """How a form is held.

    backend            "llguidance" (enforces or refuses), "reference" (regex and choices only: slow, readable)
    whitespace         in JSON: "single" one after , and :, as models mostly learned it, "compact" none, "any" as JSON
                       allows, in runs of at most 8
                       properties come in the order of the schema
    on_unsupported     a keyword that the backend cannot enforce: "error"; "validate": generate without it, validate the
                       text, try again up to `retries` times with other samples (at temperature 1 where the first
                       was greedy), then SchemaUnsatisfied; "ignore": with a warning
    close_on_budget    leave out tokens after which the text could no longer be completed within max_tokens; without
                       effect, and with a warning, where no completion of at most 2,000 bytes is found
    extra_properties   whether objects whose schema lists properties and does not speak of others may have others;
                       JSON Schema says yes, False is what a list of properties usually means
    max_string, max_items, max_number_digits   bounds where the schema has none (None: none); small models loop there
    """

    backend: Literal["llguidance", "reference"] = "llguidance"
    whitespace: Whitespace = "single"
    on_unsupported: OnUnsupported = "error"
    retries: int = 3
    close_on_budget: bool = True
    extra_properties: bool = False
    max_string: int | None = None
    max_items: int | None = None
    max_number_digits: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("backend", ("llguidance", "reference")),
            ("whitespace", ("compact", "single", "any")),
            ("on_unsupported", ("error", "validate", "ignore")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("retries", "max_string", "max_items", "max_number_digits"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 0):
                raise ValueError(f"{name} must be a whole number >= 0, got {value!r}")


@dataclass(frozen=True)
class Form:
    """One of the four kinds.

    kind      "schema" | "regex" | "grammar" | "choices"
    source    the JSON Schema (a mapping), the pattern, the grammar in Lark notation, the choices
              (for a schema what is generated from: the user's, in words that the backend enforces)
    read      text -> the value it stands for: a validated object for a schema, else the text itself.
              InvalidText where the text does not follow the whole schema
    warnings  what will not be held, one line each
    """

    kind: Literal["schema", "regex", "grammar", "choices"]
    source: Any
    settings: FormSettings = FormSettings()
    read: Callable[[str], Any] = str
    warnings: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Equal keys: the same language, held the same way (the order of properties is part of it)."""
        return json.dumps([self.kind, self.source, vars(self.settings)], ensure_ascii=False)


class FormSettingsOptions(TypedDict, total=False):
    """Keywords that say how a form is held: the fields of `FormSettings`."""

    backend: Literal["llguidance", "reference"]
    whitespace: Whitespace
    on_unsupported: OnUnsupported
    retries: int
    close_on_budget: bool
    extra_properties: bool
    max_string: int | None
    max_items: int | None
    max_number_digits: int | None


class FormOptions(FormSettingsOptions, total=False):
    """Keywords that name a form, at most one of them, and how it is held."""

    schema: Any
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None


FORM_OPTIONS = ("schema", "regex", "grammar", "choices")


def check_choices(choices: Sequence[str]) -> list[str]:
    """The choices, once each; ValueError for none, for an empty one, for something else than strings."""
    if isinstance(choices, (str, bytes, Mapping)):
        raise ValueError(f"choices must be a list of strings, got {choices!r}")
    out = list(dict.fromkeys(choices))
    if not out:
        raise ValueError("choices is empty: give at least one")
    for choice in out:
        if not isinstance(choice, str) or not choice:
            raise ValueError(f"each choice must be a string of at least one character, got {choice!r}")
    return out
