"""People judge items, blind and each alone: a queue of items and votes in one file, and how far the people agree.

The file is JSON lines: the codebook, the items, then one line per vote, written the moment it is given.  A vote is
never changed; whoever votes again on an item adds a line, and the last one counts.  A frozen queue takes no votes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from likely.errors import DataError, nearest
from likely.io.hashes import fingerprint
from likely.io.jsonl import open_alone, parse_line
from likely.io.whole_file import write_for_user
from likely.metrics.paired import cohen_kappa, krippendorff_alpha


@dataclass(frozen=True)
class Criterion:
    """One thing to judge: the question that annotators read, the scale, and the least rating that passes."""

    name: str
    question: str
    scale: tuple[int, ...] = (1, 2, 3)
    passes_from: int = 2

    def check(self, rating: Any) -> int:
        """The rating as a number of the scale; DataError for any other."""
        text = str(rating).strip()
        if text.lstrip("-").isdecimal() and int(text) in self.scale:
            return int(text)
        allowed = ", ".join(map(str, self.scale))
        raise DataError(f"{self.name}: a rating must be one of {allowed}, got {rating!r}")


@dataclass(frozen=True)
class ReviewItem:
    """What is judged.

    shown   what annotators see, name -> text
    origin  where it comes from (which model made it, say), which they do not see
    """

    id: str
    shown: Mapping[str, str]
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReviewVote:
    """One annotator's ratings of one item."""

    annotator: str
    item: str
    ratings: Mapping[str, int]
    reason: str = ""


@dataclass(frozen=True)
class RaterAgreement:
    """Agreement on one criterion: Cohen's kappa for two raters of the same items, else Krippendorff's alpha (ordinal).

    value   None where it is not defined, as where all ratings are alike
    passed  share of the judged items that the majority lets pass (a tie does not)
    """

    criterion: str
    measure: str
    value: float | None
    raters: int
    items: int
    passed: float


class ReviewQueue:
    """Items and votes in one file; `create` begins one, `open` goes on with it."""

    def __init__(self, path: Path, criteria: Sequence[Criterion], items: Sequence[ReviewItem], *, seed: int = 0):
        self.path, self.criteria, self.seed = path, tuple(criteria), seed
        self.items = {item.id: item for item in items}
        self.votes: list[ReviewVote] = []
        self.frozen = False

    @classmethod
    def create(
        cls, path: str | Path, criteria: Sequence[Criterion], items: Sequence[ReviewItem], *, seed: int = 0
    ) -> ReviewQueue:
        """Write a queue without votes; a file that is there is not replaced."""
        path = Path(path)
        if path.exists():
            raise DataError(f"{path} exists, and may hold votes: choose another file")
        if len({item.id for item in items}) != len(items) or not items:
            raise DataError("a queue needs items, each with an id of its own")
        if not criteria:
            raise ValueError("a queue needs criteria to judge by")
        queue = cls(path, criteria, items, seed=seed)
        head = {"kind": "queue", "codebook": [asdict(c) for c in criteria], "seed": seed}
        lines = [head, *({"kind": "item", **asdict(item)} for item in items)]
        write_for_user(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        return queue

    @classmethod
    def open(cls, path: str | Path) -> ReviewQueue:
        """Read a queue; a last line that a kill cut is left out."""
        path = Path(path)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        lines = raw.split(b"\n")[:-1]
        records = [parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
        try:
            head, *others = records
            criteria = [Criterion(**{**c, "scale": tuple(c["scale"])}) for c in head["codebook"]]
            items = [ReviewItem(r["id"], r["shown"], r["origin"]) for r in others if r["kind"] == "item"]
            queue = cls(path, criteria, items, seed=head["seed"])
            for record in others:
                if record["kind"] == "vote":
                    queue.votes.append(queue._checked(ReviewVote(*(record[f] for f in _VOTE_FIELDS))))
            queue.frozen = any(r["kind"] == "frozen" for r in others)
        except KeyError as error:
            raise DataError(f'{path} is no review queue: field "{error.args[0]}" is missing') from None
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} is no review queue ({error})") from None
        return queue

    @property
    def codebook_digest(self) -> str:
        """Of the criteria: votes are comparable where it is the same."""
        return fingerprint([asdict(c) for c in self.criteria])

    def pending(self, annotator: str) -> list[ReviewItem]:
        """Items without a vote of this annotator, in an order of the annotator's own; nothing of others' votes."""
        _check_annotator(annotator)
        done = {vote.item for vote in self.votes if vote.annotator == annotator}
        rng = np.random.default_rng([self.seed, zlib.crc32(annotator.encode())])
        order = rng.permutation(len(self.items))
        listed = list(self.items.values())
        return [listed[i] for i in order if listed[i].id not in done]

    def vote(self, annotator: str, item: str, ratings: Mapping[str, Any], reason: str = "") -> ReviewVote:
        """Add a vote; it is on the disk before this returns."""
        return self._add([ReviewVote(annotator, item, dict(ratings), reason)])[0]

    def import_votes(self, text: str) -> int:
        """Votes of a CSV text with the columns annotator, item, one per criterion, and reason (optional): all or none.

        Returns how many there were.
        """
        rows = csv.DictReader(io.StringIO(text), strict=True)
        names = ["annotator", "item", *(c.name for c in self.criteria)]
        missing = [name for name in names if name not in (rows.fieldnames or ())]
        if missing:
            raise DataError(f'votes need the columns {", ".join(names)}: "{missing[0]}" is missing')
        votes = []
        for number, row in enumerate(rows, 2):
            try:
                ratings: dict[str, Any] = {c.name: row[c.name] for c in self.criteria}
                votes.append(self._checked(ReviewVote(row["annotator"], row["item"], ratings, row.get("reason") or "")))
            except DataError as error:
                raise DataError(f"line {number} of the votes: {error}") from None
        self._add(votes)
        return len(votes)

    def freeze(self) -> None:
        """Take no votes from now on."""
        if not self.frozen:
            self._append([{"kind": "frozen", "votes": len(self.votes)}])
            self.frozen = True

    def _add(self, votes: Sequence[ReviewVote]) -> list[ReviewVote]:
        if self.frozen:
            raise DataError(f"{self.path} is frozen and takes no votes: begin a new queue")
        checked = [self._checked(vote) for vote in votes]
        self._append([{"kind": "vote", **asdict(vote)} for vote in checked])
        self.votes += checked
        return checked

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        raw = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        with open_alone(self.path) as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a kill cut the last line, which is no vote
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())

    def _checked(self, vote: ReviewVote) -> ReviewVote:
        _check_annotator(vote.annotator)
        if vote.item not in self.items:
            raise DataError(f'there is no item "{vote.item}"{nearest(vote.item, self.items)}')
        names = [c.name for c in self.criteria]
        if sorted(vote.ratings) != sorted(names):
            raise DataError(f"a vote rates {', '.join(names)}, got {', '.join(vote.ratings) or 'nothing'}")
        return ReviewVote(vote.annotator, vote.item, {c.name: c.check(vote.ratings[c.name]) for c in self.criteria},
                    str(vote.reason))  # fmt: skip

    # --- what the votes say ---

    def ratings(self, criterion: str) -> dict[str, dict[str, int]]:
        """annotator -> {item: the last rating}."""
        found: dict[str, dict[str, int]] = {}
        for vote in self.votes:
            found.setdefault(vote.annotator, {})[vote.item] = vote.ratings[criterion]
        return found

    def passing(self, item: str) -> bool | None:
        """Whether a majority of the annotators lets an item pass on every criterion; None: nobody judged it."""
        latest = {vote.annotator: vote for vote in self.votes if vote.item == item}
        if not latest:
            return None
        ok = [all(vote.ratings[c.name] >= c.passes_from for c in self.criteria) for vote in latest.values()]
        return 2 * sum(ok) > len(ok)

    @property
    def pass_rate(self) -> float | None:
        """Share of the judged items that pass; None: nothing was judged."""
        judged = [p for p in map(self.passing, self.items) if p is not None]
        return sum(judged) / len(judged) if judged else None

    def agreement(self) -> list[RaterAgreement]:
        """How far the annotators agree on each criterion; at least two are needed."""
        return [self._agreement(criterion) for criterion in self.criteria]

    def _agreement(self, criterion: Criterion) -> RaterAgreement:
        by = self.ratings(criterion.name)
        if len(by) < 2:
            raise DataError(f"agreement needs the votes of two annotators at least, {self.path} has {len(by)}")
        rows = [[ratings.get(item) for item in self.items] for ratings in by.values()]
        shared = [column for column in zip(*rows, strict=True) if sum(r is not None for r in column) > 1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an undefined value is told as None
            if not shared:
                measure, value = "none", math.nan
            elif len(rows) == 2:
                measure, value = "kappa", cohen_kappa(*zip(*shared, strict=True))
            else:
                measure, value = "alpha", krippendorff_alpha(rows, distance="ordinal")
        passed = [
            2 * sum(r >= criterion.passes_from for r in given) > len(given)
            for given in ([r for r in column if r is not None] for column in zip(*rows, strict=True))
            if given
        ]
        return RaterAgreement(
            criterion.name, measure, None if math.isnan(value) else value, len(rows), len(shared),
            sum(passed) / len(passed),
        )  # fmt: skip


_VOTE_FIELDS = ("annotator", "item", "ratings", "reason")


def _check_annotator(name: Any) -> None:
    if not (isinstance(name, str) and name.strip()):
        raise DataError(f"an annotator needs a name, got {name!r}")
