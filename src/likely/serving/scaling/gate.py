"""Which drafts the target takes over: conformal p-values of their log-probabilities, and the rate that comes of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from likely.calibration.conformal.pvalues import OnlineConformal, conformal_pvalue, rate_spread
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.jsonl import read_lines
from likely.io.whole_file import write_whole_file
from likely.metrics.intervals import wilson

KIND = "atts_calibration"  # of a saved calibration


class RejectionGate:
    """Rejects a draft whose conformal p-value is above alpha = 1 - reject_rate.

    The p-value is near 1 where most calibration scores are higher: for a draft that the target finds unlikely.  For a
    draft that is exchangeable with the calibration the rejection rate is `reject_rate`, on average over calibrations.

    by_round  one array of scores per round: later rounds are not exchangeable with the first.  A round that was not
              calibrated (all calibration chains had ended) is held against the last one that was
    window    scores that are decided on join the array of their round, and only the newest so many count; None: fixed
    """

    def __init__(self, reject_rate: float, *, by_round: bool = False, window: int | None = None):
        if not 0 < reject_rate < 1:
            raise ValueError(f"reject_rate must lie between 0 and 1, got {reject_rate}")
        self.reject_rate, self.by_round, self.window = reject_rate, by_round, window
        self.scores = OnlineConformal(side="greater", ties="random", window=window)

    @property
    def alpha(self) -> float:
        return 1 - self.reject_rate

    def add(self, scores: Iterable[float], round_number: int = 1) -> None:
        """Calibration scores (mean log-probabilities, nats per token) of a round, from 1."""
        self.scores.add(list(scores), round_number)

    def group(self, round_number: int) -> int:
        """The round whose scores this one is held against."""
        known = [int(str(g)) for g in self.scores.groups]
        if not known:
            raise ValueError("the gate has no calibration scores: calibrate it first")
        earlier = [g for g in known if g <= round_number]
        return max(earlier) if self.by_round and earlier else min(known)

    def decide(self, score: float, round_number: int, rng: np.random.Generator) -> tuple[float, bool]:
        """(p-value, whether the draft is rejected)"""
        group = self.group(round_number)
        p = self.scores.pvalue(score, group, rng=rng)
        if self.window is not None:
            self.scores.add(score, group)
        return p, p > self.alpha

    def count(self, round_number: int = 1) -> int:
        """Calibration scores that a draft of this round is held against."""
        return len(self.scores.scores(self.group(round_number)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "reject_rate": self.reject_rate, "by_round": self.by_round, "window": self.window,
            "scores": self.scores.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """What `to_dict` gave; DataError says what is wrong with it."""
        try:
            found = cls(record["reject_rate"], by_round=record["by_round"], window=record["window"])
            scores = record["scores"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no saved calibration of ATTS: {error}") from None
        found.scores = OnlineConformal.from_dict(scores)
        if not found.scores.groups or not all(isinstance(g, int) for g in found.scores.groups):
            raise DataError("this is no saved calibration of ATTS: it needs scores of at least one round")
        return found

    @property
    def fingerprint(self) -> str:
        """Of everything that decides."""
        return fingerprint(self.to_dict())


def leave_one_out(scores: Sequence[float], alpha: float, rng: np.random.Generator) -> list[bool]:
    """Whether each of several scores is rejected beside the others; a single one is kept.

    How calibration chains go on to their next round: nearly the law of chains that are held against all of the scores.
    """
    values = np.asarray(scores, np.float64)
    if len(values) < 2:
        return [False] * len(values)
    return [conformal_pvalue(float(s), np.delete(values, i), rng=rng) > alpha for i, s in enumerate(values)]


@dataclass(frozen=True)
class RoundRate:
    """Rejections of the drafts of one round, or of all from round 2 on.

    low, high  of the rate: Wilson's 95 % interval, as if drafts were independent
    expected_low, expected_high  where the rate lies for 95 % of calibration sets of that size; None: sizes differ
    """

    rounds: str
    nominal: float
    drafts: int
    rejected: int
    rate: float
    low: float
    high: float
    calibration_scores: int | None
    expected_low: float | None
    expected_high: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def round_rates(decisions: Iterable[tuple[int, bool]], reject_rate: float, calibration: int | None) -> list[RoundRate]:
    """The first round and all later ones apart, from (round, rejected) of every draft.

    calibration  scores that each was held against; None where they differ
    """
    listed = list(decisions)
    found = []
    for name, chosen in (("1", [r for n, r in listed if n == 1]), ("2 and later", [r for n, r in listed if n > 1])):
        if chosen:
            rejected = sum(chosen)
            low, high = wilson(rejected, len(chosen))
            spread = rate_spread(calibration, reject_rate) if calibration else (None, None)
            found.append(
                RoundRate(
                    name, reject_rate, len(chosen), rejected, rejected / len(chosen), low, high, calibration, *spread
                )
            )
    return found


def write_gate(path: Path, gate: RejectionGate, made_with: Mapping[str, Any]) -> None:
    """Save a calibration; made_with: models and settings, without which it would mean nothing."""
    record = {"kind": KIND, "made_with": dict(made_with), "gate": gate.to_dict()}
    write_whole_file(path, json.dumps(record, allow_nan=False).encode() + b"\n")


def read_gate(path: Path, made_with: Mapping[str, Any]) -> RejectionGate:
    """A saved calibration; DataError for one that was made with other models or settings."""
    [line, *_] = [*read_lines(path), None]
    if line is None or line.record.get("kind") != KIND:
        raise DataError(f"{path} is no calibration of likely scale: choose another file or --overwrite")
    found, wanted = line.record.get("made_with", {}), json.loads(json.dumps(dict(made_with)))
    for name in wanted.keys() | found.keys():
        if found.get(name) != wanted.get(name):
            raise DataError(
                f"{path} was calibrated with another {name} ({found.get(name)}, now {wanted.get(name)}): choose "
                f"another file or --overwrite"
            )
    return RejectionGate.from_dict(line.record.get("gate", {}))
