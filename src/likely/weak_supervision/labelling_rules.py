"""Labelling rules: short tests of a text that vote for a class or abstain, and the matrix of their votes.

A rule is somebody's knowledge in one line: a message that offers something "free" and asks to "call" is spam.  Rules
are often wrong and mostly silent; what many of them say together is worth much (`likely.weak_supervision.harmonizer`).

Shapes: N texts, M sources, K classes.  A vote is the number of a class, or -1: the source abstains.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from likely.errors import ConstraintError, DataError, nearest
from likely.io.jsonl import Line, read_checked
from likely.io.linear_regex import LinearRegex
from likely.metrics.checks import Floats, Ints

ABSTAIN = -1
FIELDS = ("label", "pattern", "name", "text", "exemplar")
_LITERALS = re.compile(r"\(((?:[^()\[\]*+?{}|\\]|\\\W|\|)+)\)")


@dataclass(frozen=True)
class LabelingFunction:
    """One rule.

    when   a regular expression that is searched in the lower-cased text, or a function of the text: true where it fires
    label  the class it then votes for, 0..K-1
    text   what it says, as a sentence for a prompt ("It offers a prize."); None: made from the pattern
    fast   search with Python's own engine.  It is some seventy times as fast, but an unlucky or hostile pattern can
           keep it busy for hours; without, what the linear engine cannot do (backreferences, lookahead) is refused
    """

    name: str
    when: str | Callable[[str], object]
    label: int
    text: str | None = None
    fast: bool = False
    _fires: Callable[[str], object] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.label < 0:
            raise ValueError(f'rule "{self.name}": label must be a class, 0 or more, got {self.label}')
        if callable(self.when):
            fires: Callable[[str], object] = self.when
        elif self.fast:
            try:
                fires = _lowered(re.compile(self.when).search)
            except re.error as error:
                raise ConstraintError(f'rule "{self.name}": not a regular expression: {error}') from None
        else:
            try:
                fires = _lowered(LinearRegex(self.when).search)
            except ConstraintError as error:
                raise ConstraintError(f'rule "{self.name}": {error}') from None
        object.__setattr__(self, "_fires", fires)

    def vote(self, text: str) -> int:
        """The rule's class, or -1 where it does not fire."""
        return self.label if self._fires(text) else ABSTAIN

    @property
    def sentence(self) -> str:
        """What the rule says, for a prompt."""
        if self.text is not None:
            return self.text
        return described(self.when) if isinstance(self.when, str) else f"It passes the test {self.name}."


def _lowered(search: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: search(text.lower())


def described(pattern: str) -> str:
    """A sentence from the words of a pattern: its groups of plain alternatives, in order.

    '( |^)(call|ring)[^\\w]* ([^\\s]+ )*(free)' gives 'It has "call" or "ring", then "free".'
    """
    if re.fullmatch(r"[\w ]+", pattern):
        return f'It has "{pattern.strip()}".'
    words = []
    for group in _LITERALS.findall(pattern):
        plain = [re.sub(r"\\(.)", r"\1", word).strip().rstrip(".!?,") for word in group.split("|")]
        words.append(" or ".join(f'"{word}"' for word in dict.fromkeys(plain) if word not in ("", "^", "$")))
    return f"It has {', then '.join(w for w in words if w)}." if any(words) else f"It matches {pattern}."


def read_rules(path: str | Path, classes: Sequence[str], *, fast: bool = False) -> list[LabelingFunction]:
    """Rules of a JSONL file (.gz, too), one per line: {"label": "spam", "pattern": "...", "name", "text", "exemplar"}.

    label is one of `classes`; name (default: the line) and text (see LabelingFunction) may be left out, exemplar (a
    text that the rule was written from) is not read.  DataError names the line that is wrong.
    """
    rules: list[LabelingFunction] = []

    def check(line: Line) -> None:
        where = f"{path}:{line.number}"
        record = line.record
        for name in record:
            if name not in FIELDS:
                raise DataError(f'{where}: unknown field "{name}"{nearest(name, FIELDS)}')
        for name in ("label", "pattern"):
            if not isinstance(record.get(name), str):
                raise DataError(f'{where}: field "{name}" must be a text')
        for name in ("name", "text"):
            if not isinstance(record.get(name, ""), str):
                raise DataError(f'{where}: field "{name}" must be a text where it is given')
        if record["label"] not in classes:
            raise DataError(f'{where}: "{record["label"]}" is no class (allowed: {", ".join(classes)})')
        name = record.get("name", f"rule {line.number}")
        try:
            label = list(classes).index(record["label"])
            rules.append(LabelingFunction(name, record["pattern"], label, record.get("text"), fast))
        except ConstraintError as error:
            raise DataError(f"{where}: {error}") from None

    read_checked(path, check)
    if not rules:
        raise DataError(f'{path} holds no rules: lines like {{"label": "{classes[0]}", "pattern": "..."}} are expected')
    return rules


@dataclass(frozen=True)
class Votes:
    """What M sources say of N texts.

    matrix   (N, M) classes, -1 where a source abstains
    names    of the sources, in the order of the columns;  classes: their names, K of them
    """

    matrix: Ints
    names: tuple[str, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        matrix = check_votes(self.matrix, len(self.classes))
        if matrix.shape[1] != len(self.names):
            raise ValueError(f"votes have {matrix.shape[1]} columns, {len(self.names)} names were given")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def of(cls, rules: Sequence[LabelingFunction], texts: Sequence[str], classes: Sequence[str]) -> Votes:
        """Every rule on every text."""
        matrix = np.array([[rule.vote(text) for rule in rules] for text in texts], np.int64)
        return cls(matrix.reshape(len(texts), len(rules)), tuple(rule.name for rule in rules), tuple(classes))

    def with_answers(self, answers: Any, name: str = "model") -> Votes:
        """The same with a source in front: the classes that a model answered, -1 where it did not."""
        column = np.asarray(answers)
        if column.shape != (len(self.matrix),):
            raise ValueError(f"answers must be ({len(self.matrix)},), one per row of the votes, got {column.shape}")
        return Votes(np.column_stack([column, self.matrix]), (name, *self.names), self.classes)

    @property
    def coverage(self) -> Floats:
        """(M,) share of the texts that a source votes on."""
        return (self.matrix >= 0).mean(axis=0)

    def shares(self) -> Floats:
        """(N, K) share of a text's votes that each class has; 1/K where nobody votes."""
        k = len(self.classes)
        counts = np.stack([(self.matrix == c).sum(axis=1) for c in range(k)], axis=1).astype(np.float64)
        total = counts.sum(axis=1, keepdims=True)
        return np.where(total > 0, counts / np.maximum(total, 1), 1 / k)


def check_votes(votes: Any, classes: int) -> Ints:
    """(N, M) int64, N and M at least 1, values -1..K-1; ValueError names the first row that is wrong."""
    array = np.asarray(votes)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"votes must be (N, M) with at least one row and one source, got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array.astype(np.float64)).all():
        raise ValueError(f"votes must be whole numbers in -1..{classes - 1}")
    bad = ((array != np.floor(array)) | (array < ABSTAIN) | (array >= classes)).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"votes: row {row} is {array[row].tolist()}: whole numbers in -1..{classes - 1} are allowed")
    return array.astype(np.int64)
