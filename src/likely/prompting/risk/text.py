"""A row of a table as text: what each column is called, how its values are said, how the lines are laid out.

The layout is data, so that one can ask how much of an answer is due to it (folktexts' variations of a prompt).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from likely.errors import DataError, check_choice, nearest

RowFormat = Literal["the-bullets", "bullets", "commas", "prose"]
Connector = Literal["is:", "is", "=", ":"]
Granularity = Literal["fine", "coarse"]
FORMATS = get_args(RowFormat)
CONNECTORS = get_args(Connector)
GRANULARITIES = get_args(Granularity)
MISSING = ("", "?", "NA", "N/A", "nan", "NaN", "None", "null")
TableRow = Mapping[str, Any]


@dataclass(frozen=True)
class ColumnText:
    """How one column is put into words.

    label    what stands before the value: "age", "level of education"
    values   code -> text, every code that occurs (another one is an error); or a function; None: the value as it stands
    unit     after a value that is said as it stands: "years old"
    missing  what is said where the value is missing; None: a missing value is an error
    coarse   code -> text for the coarse granularity, or a function;  bands: the numbers at which bands begin, instead
    """

    label: str
    values: Mapping[str, str] | Callable[[str], str] | None = None
    unit: str = ""
    missing: str | None = "not known"
    coarse: Mapping[str, str] | Callable[[str], str] | None = None
    bands: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.label.strip():
            raise ValueError("a column needs a label that is not empty")
        if self.coarse is not None and self.bands:
            raise ValueError(f'"{self.label}": give coarse= or bands=, not both')
        if list(self.bands) != sorted(set(self.bands)):
            raise ValueError(f'"{self.label}": bands must rise, got {list(self.bands)}')

    def text(self, value: object, granularity: Granularity = "fine") -> str:
        """The words for a value; DataError for a code without a text."""
        code = code_of(value)
        if code in MISSING:
            if self.missing is None:
                raise DataError(f'"{self.label}": the value is missing, and nothing says how to write that')
            return self.missing
        said: Mapping[str, str] | Callable[[str], str] | None = self.values
        if granularity == "coarse" and self.bands:
            return f"{self._band(code)} {self.unit}".rstrip()
        if granularity == "coarse" and self.coarse is not None:
            said = self.coarse
        if said is None:
            return f"{code} {self.unit}".rstrip()
        if callable(said):
            return said(code)
        if code not in said:
            known = ", ".join(list(said)[:8]) + (", ..." if len(said) > 8 else "")
            raise DataError(f'"{self.label}": no text for the value "{code}"{nearest(code, said)} (known: {known})')
        return said[code]

    def _band(self, code: str) -> str:
        try:
            number = float(code)
        except ValueError:
            raise DataError(f'"{self.label}": bands need numbers, found "{code}"') from None
        at = bisect_right(self.bands, number)
        if at == 0:
            return f"under {self.bands[0]:g}"
        low = self.bands[at - 1]
        return f"{low:g} or more" if at == len(self.bands) else f"at least {low:g} and under {self.bands[at]:g}"


def code_of(value: object) -> str:
    """A cell as text: no spaces around it, 5.0 as "5", None and NaN as "" (missing)."""
    if value is None:
        return ""
    if isinstance(value, float) or type(value).__name__.startswith("float"):
        number = float(value)  # type: ignore[arg-type]
        return "" if math.isnan(number) else f"{number:.12g}"
    text = str(value).strip()
    return "" if text in ("<NA>", "NaT") else text


@dataclass(frozen=True)
class RowLayout:
    """How the lines of a row are laid out.

    format       "the-bullets": "- The age is: 51 years old.";  "bullets": "- age is: 51 years old";
                 "commas": "age is: 51 years old, ...";  "prose": "The age is 51 years old. The ..."
    connector    between label and value; prose says "is" whatever it is
    order        names of columns in the order in which they stand; columns that are not named follow in their own
    granularity  "coarse" uses a column's coarse texts or bands where it has them
    heading      the line above
    """

    format: RowFormat = "the-bullets"
    connector: Connector = "is:"
    order: tuple[str, ...] = ()
    granularity: Granularity = "fine"
    heading: str = "Information:"

    def __post_init__(self) -> None:
        for name, allowed in (("format", FORMATS), ("connector", CONNECTORS), ("granularity", GRANULARITIES)):
            check_choice(name, getattr(self, name), allowed)
        if len(set(self.order)) != len(self.order):
            raise ValueError(f"order names a column twice: {', '.join(self.order)}")


AS_IS = RowLayout()


def row_text(row: TableRow, columns: Mapping[str, ColumnText], layout: RowLayout = AS_IS) -> str:
    """The block that tells a row: a heading and what is known, ready to stand before a question.

    DataError names a column that the row does not have, or a value without a text.
    """
    names = column_order(columns, layout.order)
    said = []
    for name in names:
        if name not in row:
            raise DataError(f'column "{name}" is missing{nearest(name, map(str, row))} (found: {_names(row)})')
        said.append((columns[name].label, columns[name].text(row[name], layout.granularity)))
    return f"{layout.heading}\n{_laid_out(said, layout)}" if layout.heading else _laid_out(said, layout)


def _laid_out(said: Sequence[tuple[str, str]], layout: RowLayout) -> str:
    between = layout.connector if layout.connector == ":" else f" {layout.connector}"
    if layout.format == "the-bullets":
        return "\n".join(f"- The {label}{between} {text}." for label, text in said)
    if layout.format == "bullets":
        return "\n".join(f"- {label}{between} {text}" for label, text in said)
    if layout.format == "commas":
        return ", ".join(f"{label}{between} {text}" for label, text in said) + "."
    return " ".join(f"The {label} is {text}." for label, text in said)


def column_order(columns: Mapping[str, ColumnText], first: Sequence[str] = ()) -> list[str]:
    """The columns' names, those of `first` in front; ValueError for a name that is no column."""
    for name in first:
        if name not in columns:
            raise ValueError(f'order: no column is called "{name}"{nearest(name, columns)}')
    return [*first, *(name for name in columns if name not in first)]


def _names(row: TableRow) -> str:
    names = ", ".join(f'"{name}"' for name in list(row)[:20])
    return names + (", ..." if len(row) > 20 else "") or "nothing"
