"""Results of re-measured claims: what results/NAME.json holds, and how it is written and read.

Every number stands with its unit, sample size and interval; the paper's figure and ours stand apart; what could not be
shown is part of the record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from likely.errors import DataError
from likely.evidence.papers import index
from likely.io.checkout import find_checkout
from likely.io.whole_file import read_text, write_whole_file

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NonEmpty = Annotated[str, Field(min_length=1)]
Verdict = Literal["reproduced", "partly reproduced", "not reproduced"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Record):
    """One number.

    subject   what was measured (a runtime, a method); figures of one subject make one row of a table
    quantity  what about it, e.g. "p99"
    n         sample size, in units of `of` (say "tokens")
    low, high a 95 % interval, both or neither; without one, `note` says why
    """

    subject: NonEmpty
    quantity: NonEmpty
    value: float
    unit: NonEmpty
    n: int = Field(ge=1)
    of: NonEmpty
    low: float | None = None
    high: float | None = None
    note: str = ""

    @model_validator(mode="after")
    def _interval_holds_value(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both ends")
        if self.low is None and not self.note:
            raise ValueError("a figure without an interval needs a note that says why")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"the value {self.value} lies outside its interval [{self.low}, {self.high}]")
        return self


class Source(_Record):
    """A model file or data file that the numbers depend on."""

    name: NonEmpty
    sha256: Sha256
    licence: str = ""


class Check(_Record):
    """One part of the claim as an inequality: `value` must be at most `bound`."""

    statement: NonEmpty
    value: float
    bound: float
    unit: NonEmpty

    @property
    def holds(self) -> bool:
        return self.value <= self.bound


class MachineRecord(_Record):
    cpu: NonEmpty
    cores: int = Field(ge=1)
    flags: list[str]
    platform: NonEmpty


class Evidence(_Record):
    """One re-measured claim.

    paper_figure  the paper's headline figure; None for our own study
    ours          our figure in one sentence
    figures       the numbers behind it
    checks        of the headline claim, and secondary ones: the paper's entry in papers.toml says which is which
    models        files of the models that were used; empty where there is none (what is fitted, the script fits)
    not_shown     what this does not show; at least one line, since nothing shows everything
    """

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    title: NonEmpty
    claim: NonEmpty
    paper_figure: NonEmpty | None
    ours: NonEmpty
    figures: list[Figure] = Field(min_length=1)
    checks: list[Check] = Field(min_length=1)
    samples: NonEmpty
    intervals: NonEmpty
    mode: Literal["quick", "full"]
    models: list[Source]
    data: list[Source]
    command: NonEmpty
    machine: MachineRecord
    threads: int = Field(ge=1)
    versions: dict[str, str]
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    seconds: float = Field(ge=0)
    not_shown: list[NonEmpty] = Field(min_length=1)

    @property
    def headline(self) -> list[Check]:
        """The checks of the headline claim; all, where papers.toml does not tell them apart."""
        entry = next((entry for entry in index() if entry.id == self.id), None)
        return [check for check in self.checks if entry is None or entry.in_headline(check.statement)]

    @property
    def secondary(self) -> list[Check]:
        """The other checks."""
        headline = self.headline
        return [check for check in self.checks if check not in headline]

    @property
    def verdict(self) -> Verdict:
        """Whether the headline claim was reproduced."""
        return verdict_of(self.headline)

    @property
    def secondary_held(self) -> str:
        """How many of them hold, "3 of 4"; empty without secondary checks."""
        held = sum(check.holds for check in self.secondary)
        return f"{held} of {len(self.secondary)}" if self.secondary else ""


def verdict_of(checks: list[Check]) -> Verdict:
    """All hold, some, or none."""
    held = sum(check.holds for check in checks)
    return "reproduced" if held == len(checks) else "partly reproduced" if held else "not reproduced"


def results_dir() -> Path | None:
    """results/ of the checkout; None for an installed package."""
    root = find_checkout()
    return root / "results" if root else None


def write_result(evidence: Evidence, folder: Path) -> Path:
    """Write folder/ID.json, whole or not at all; returns where the result is now.

    A quick run never replaces a full one: it then goes to ID.quick.json, which no table is made from.
    """
    target = folder / f"{evidence.id}.json"
    if evidence.mode == "quick" and target.exists() and read_result(target).mode == "full":
        target = folder / f"{evidence.id}.quick.json"
    text = json.dumps(evidence.model_dump(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole_file(target, text.encode())
    return target


def read_result(path: Path) -> Evidence:
    """One result; DataError names the file and the first field that is wrong."""
    try:
        return Evidence.model_validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise DataError(f"{path}: {where}: {first['msg']}") from None


def read_results(folder: Path | None) -> dict[str, Evidence]:
    """All results of a folder by id; none for None or a folder that is not there."""
    if folder is None or not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".quick.json"):
            continue
        evidence = read_result(path)
        if path.stem != evidence.id:
            raise DataError(f'{path}: id is "{evidence.id}", expected "{path.stem}"')
        found[evidence.id] = evidence
    return found
