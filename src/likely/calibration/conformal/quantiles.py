"""The quantile that conformal prediction rests on: one for all rows, or one per class or group."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from likely.calibration.recalibrators.protocol import Parameters
from likely.errors import DataError
from likely.metrics.checks import Floats, Ints, check_share


def check_alpha(alpha: float) -> float:
    check_share(alpha=alpha)
    return alpha


def rank_of(n: int, alpha: float) -> int:
    """ceil((n+1)(1−alpha)), the rank of the quantile among n scores; n + 1 stands for infinity."""
    # (1 − 0.7)·10 is 3.0000000000000004 in floating point, and 4 would be the wrong rank
    return math.ceil((n + 1) * (1 - check_alpha(alpha)) - 1e-9)


def fewest_rows(alpha: float) -> int:
    """The least n for which the quantile is finite: n >= (1 − alpha) / alpha."""
    return math.ceil((1 - check_alpha(alpha)) / alpha - 1e-9)


def conformal_quantile(scores: Any, alpha: float) -> float:
    """The ceil((n+1)(1−alpha))-th smallest of n scores; +inf if there is none of that rank (n < (1−alpha)/alpha).

    Vovk et al. 2005; Angelopoulos & Bates 2021, arXiv:2107.07511, section 1.
    """
    values = np.asarray(scores, np.float64)
    rank = rank_of(len(values), alpha)
    return math.inf if rank > len(values) else float(np.partition(values, rank - 1)[rank - 1])


class GroupQuantiles(Parameters):
    """What conformal sets and intervals share: a dataclass of settings, and learned quantiles, to and from JSON.

    groups_     what the quantiles belong to; empty where one serves all rows
    quantiles_  (G,) one each, +inf where there were too few rows;  rows_ (G,): how many rows each rests on
    """

    name: ClassVar[str]
    alpha: float
    by: str | None
    groups_: list[Any]
    quantiles_: Floats
    rows_: Ints

    def set_quantiles(self, scores: Floats, of: Sequence[Any] | None, keys: list[Any] | None = None) -> None:
        """Learn the quantile of all scores (by=None) or of each group's; keys: the groups there are, seen or not."""
        self.groups_ = []
        parts = [scores]
        if self.by is None:
            self._refuse(of)
        else:
            members = _members(of, len(scores))
            self.groups_ = sorted(set(members), key=lambda g: (str(type(g)), g)) if keys is None else keys
            place = {group: i for i, group in enumerate(self.groups_)}
            at = np.array([place[m] for m in members])
            parts = [scores[at == i] for i in range(len(self.groups_))]
        self.quantiles_ = np.array([conformal_quantile(part, self.alpha) for part in parts])
        self.rows_ = np.array([len(part) for part in parts], np.int64)
        if np.isinf(self.quantiles_).any():
            short = [str(self.groups_[i]) for i in np.flatnonzero(np.isinf(self.quantiles_))] if self.groups_ else []
            what = f" of {self.by} {', '.join(short[:5])}{' ...' if len(short) > 5 else ''}" if short else ""
            warnings.warn(
                f"alpha={self.alpha:g} needs at least {fewest_rows(self.alpha)} rows: "
                f"the quantile{what} is infinite and holds everything",
                stacklevel=3,
            )

    def quantile_of_rows(self, of: Sequence[Any] | None, n: int) -> Floats:
        """(N,) the quantile that each row is held against."""
        if self.by is None:
            self._refuse(of)
            return np.full(n, self.quantiles_[0])
        place = {group: i for i, group in enumerate(self.groups_)}
        members = _members(of, n)
        for row, member in enumerate(members):
            if member not in place:
                seen = ", ".join(map(str, self.groups_[:8]))
                raise ValueError(f"groups: row {row} is of group {member!r}, which fit has not seen (seen: {seen})")
        return self.quantiles_[[place[member] for member in members]]

    def _refuse(self, of: Sequence[Any] | None) -> None:
        if of is not None:
            raise ValueError('groups were given, but by is not "group"')

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: {"method", "params", "learned"}; an infinite quantile is null, since JSON has no infinity."""
        self.check_fitted("quantiles_")
        learned = {
            "groups_": self.groups_,
            "quantiles_": [float(q) if math.isfinite(q) else None for q in self.quantiles_],
            "rows_": self.rows_.tolist(),
        }
        return {"method": self.name, "params": self.get_params(deep=False), "learned": learned}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """What `to_dict` gave; DataError says what is wrong with it."""
        try:
            fitted, learned = cls(**record["params"]), record["learned"]
            fitted.groups_ = list(learned["groups_"])
            fitted.quantiles_ = np.array([math.inf if q is None else q for q in learned["quantiles_"]], np.float64)
            fitted.rows_ = np.array(learned["rows_"], np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no saved {cls.name}: {error}") from None
        if record.get("method") != cls.name:
            raise DataError(f'this is a saved "{record.get("method")}", not {cls.name}')
        if len(fitted.quantiles_) != (len(fitted.groups_) or 1) or len(fitted.rows_) != len(fitted.quantiles_):
            raise DataError(f"this is no saved {cls.name}: it needs one quantile and one count of rows per group")
        if np.isnan(fitted.quantiles_).any():
            place = int(np.isnan(fitted.quantiles_).argmax())
            raise DataError(f"this is no saved {cls.name}: quantiles_[{place}] is NaN; a number or null is allowed")
        return fitted


def _members(of: Sequence[Any] | None, n: int) -> list[Any]:
    if of is None:
        raise ValueError('by="group" needs groups, one per row')
    members = [m.item() if isinstance(m, np.generic) else m for m in of]
    if len(members) != n:
        raise ValueError(f"groups has {len(members)} rows, the predictions have {n}")
    for row, member in enumerate(members):
        if not isinstance(member, str | int):
            raise ValueError(f"groups: row {row} is {member!r}: strings or whole numbers are allowed")
    return members
