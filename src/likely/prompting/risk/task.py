"""What is asked of a table: its columns in words, the outcome, and the question in each style of asking.

A task comes from Python, from a small TOML file, or by name ("adult" is ready).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from likely.errors import DataError, nearest
from likely.io.hashes import fingerprint
from likely.prompting.risk.text import MISSING, ColumnText, TableRow, code_of

READY = {"adult": "adult.toml"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class TableChoice:
    """One outcome.

    code   what stands in the target column
    text   as a lettered option: "Above $50,000"
    word   as an answer in words: "above"
    value  its weight in the risk, in [0, 1]: risk = Σ value · probability; with two choices 0 and 1
    """

    code: str
    text: str
    word: str
    value: float


@dataclass(frozen=True)
class TableTask:
    """A table, an outcome, and how both are put into words.

    columns           name -> ColumnText, the features in their order; the target must not be among them
    target            the outcome's column (it may be absent from rows that are only scored)
    choices           the outcomes, at least 2, their values between 0 and 1, both ends taken
    description       who the rows are about, in front of every prompt
    question          for lettered options: "What is this person's yearly income?"
    word_question     with {options} in it: "Is this person's yearly income {options} $50,000?"
    word_prefix       how the answer begins: "Answer: It is"
    numeric_question  "What is the probability that this person's yearly income is above $50,000?"
    """

    columns: Mapping[str, ColumnText]
    target: str
    choices: tuple[TableChoice, ...]
    question: str
    word_question: str
    numeric_question: str
    description: str = ""
    word_prefix: str = "Answer:"
    name: str = "task"

    def __post_init__(self) -> None:
        if not self.columns:
            raise DataError("a task needs at least one column")
        if self.target in self.columns:
            raise DataError(f'the target "{self.target}" is among the features: the answer would leak into the prompt')
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise DataError(f"a task needs 2 to {len(LETTERS)} choices, got {len(self.choices)}")
        for field in ("code", "text", "word"):
            found = [getattr(choice, field) for choice in self.choices]
            if not all(found) or len(set(found)) != len(found):
                raise DataError(f"choices need a {field} each, all different, got {found}")
        values = [choice.value for choice in self.choices]
        if min(values) != 0 or max(values) != 1:
            raise DataError(f"the values of the choices must span 0 to 1 (the risk is their mean), got {values}")
        if "{options}" not in self.word_question:
            raise DataError(f"word_question must hold {{options}}, got {self.word_question!r}")

    @property
    def positive(self) -> TableChoice:
        """The outcome whose probability is the risk (of value 1)."""
        return max(self.choices, key=lambda choice: choice.value)

    def outcome(self, row: TableRow) -> int | None:
        """The number of the outcome that a row has; None where it has none."""
        code = code_of(row.get(self.target))
        if code in MISSING:
            return None
        for i, choice in enumerate(self.choices):
            if choice.code == code:
                return i
        known = [choice.code for choice in self.choices]
        raise DataError(
            f'target "{self.target}": unknown value "{code}"{nearest(code, known)} (known: {", ".join(known)})'
        )

    def label(self, row: TableRow) -> float | None:
        """The outcome's value in a row (0 or 1 with two choices); None where the row has none."""
        at = self.outcome(row)
        return None if at is None else self.choices[at].value

    def without(self, *names: str) -> TableTask:
        """The same task with fewer columns."""
        for name in names:
            if name not in self.columns:
                raise ValueError(f'no column is called "{name}"{nearest(name, self.columns)}')
        return replace(self, columns={name: text for name, text in self.columns.items() if name not in names})

    def digest(self) -> str:
        """A hash of everything that reaches a prompt, for headers of results; functions count by their name."""
        plain = json.dumps(asdict(self), sort_keys=True, default=lambda f: getattr(f, "__qualname__", repr(type(f))))
        return fingerprint(plain)


_TASK = ("name", "target", "description", "question", "word_question", "word_prefix", "numeric_question")
_CHOICE = ("code", "text", "word", "value")
_COLUMN = ("name", "label", "unit", "missing", "values", "coarse", "bands")


def load_task(name: str | Path) -> TableTask:
    """A ready task by name, or one from a TOML file; DataError says what of the file is wrong."""
    path = Path(__file__).with_name(READY[str(name)]) if str(name) in READY else Path(name)
    if not path.is_file():
        ready = ", ".join(READY)
        raise DataError(f'no task is called "{name}"{nearest(str(name), READY)} and no such file is there ({ready})')
    try:
        return read_task(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def read_task(record: Mapping[str, Any], where: str = "task") -> TableTask:
    """A task from what a TOML file holds: fields of `TableTask`, and lists [[choice]] and [[column]]."""
    _check(record, (*_TASK, "choice", "column"), ("target", "question", "choice", "column"), where)
    choices: list[TableChoice] = []
    columns: dict[str, ColumnText] = {}
    for i, entry in enumerate(_entries(record, "choice", where), 1):
        choices.append(_choice(entry, f"{where}: choice {i}"))
    for i, entry in enumerate(_entries(record, "column", where), 1):
        name, column = _column(entry, f"{where}: column {i}")
        if name in columns:
            raise DataError(f'{where}: the column "{name}" is described twice')
        columns[name] = column
    rest = {key: _text(record, key, where) for key in _TASK if key in record}
    positive = max(choices, key=lambda choice: choice.value, default=None)
    rest.setdefault("word_question", f"{rest['question']} {{options}}?")
    outcome = positive.text if positive else ""
    rest.setdefault("numeric_question", f'{rest["question"]} What is the probability of "{outcome}"?')
    try:
        return TableTask(columns=columns, choices=tuple(choices), **rest)
    except (DataError, TypeError) as error:
        raise DataError(f"{where}: {error}") from None


def _choice(entry: Mapping[str, Any], where: str) -> TableChoice:
    _check(entry, _CHOICE, ("code", "text", "value"), where)
    value = entry["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f'{where}: field "value" must be a number from 0 to 1, found {value!r}')
    code = str(entry["code"])  # 1 and "1" are the same in a CSV file
    return TableChoice(
        code, _text(entry, "text", where), _text(entry, "word" if "word" in entry else "text", where), value
    )


def _column(entry: Mapping[str, Any], where: str) -> tuple[str, ColumnText]:
    _check(entry, _COLUMN, ("name",), where)
    name = _text(entry, "name", where)
    given: dict[str, Any] = {"label": name}
    given |= {key: _text(entry, key, where) for key in ("label", "unit", "missing") if key in entry}
    for key in ("values", "coarse"):
        if key in entry:
            if not isinstance(entry[key], Mapping) or not all(isinstance(text, str) for text in entry[key].values()):
                raise DataError(f'{where}: field "{key}" must be a table of texts, "code" = "text"')
            given[key] = entry[key]
    bands = entry.get("bands", [])
    if not isinstance(bands, list) or not all(type(bound) in (int, float) for bound in bands):
        raise DataError(f'{where}: field "bands" must be a list of numbers, found {bands!r}')
    try:
        return name, ColumnText(**given, bands=tuple(bands))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(record[name], str):
        raise DataError(f'{where}: field "{name}" must be a text in quotes, found {record[name]!r}')
    return str(record[name])


def _entries(record: Mapping[str, Any], name: str, where: str) -> list[Mapping[str, Any]]:
    found = record[name]
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise DataError(f"{where}: write each {name} under its own [[{name}]]")
    return found


def _check(record: Mapping[str, Any], allowed: tuple[str, ...], needed: tuple[str, ...], where: str) -> None:
    for key in record:
        if key not in allowed:
            raise DataError(f'{where}: unknown field "{key}"{nearest(key, allowed)} (allowed: {", ".join(allowed)})')
    for key in needed:
        if key not in record:
            raise DataError(f'{where}: field "{key}" is missing')
