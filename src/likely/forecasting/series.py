"""Time series: rows of numbers with increasing time stamps, read from CSV files, cut by time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.data.datasets import read_rows
from likely.errors import DataError, nearest
from likely.metrics.checks import Floats, Ints

DATES = ("date", "Date", "datetime", "timestamp", "time", "ds")  # names under which time stamps are looked for
MONTH = 30 * 24  # rows of a month in ETTh's splits
# train, validation, test: shares of the rows, or ETT's official months of 30 days
SPLITS: dict[str, tuple[float, float, float]] = {
    "60/20/20": (0.6, 0.2, 0.2),
    "70/10/20": (0.7, 0.1, 0.2),
    "etth": (12 * MONTH, 4 * MONTH, 4 * MONTH),
    "ettm": (48 * MONTH, 16 * MONTH, 16 * MONTH),
}


@dataclass(frozen=True)
class TimeSeries:
    """One row of numbers for each time.

    times   (T,) datetime64[s], strictly increasing
    values  (T, C) finite
    names   of the C columns
    """

    times: NDArray[np.datetime64]
    values: Floats
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        times = np.asarray(self.times, "datetime64[s]")
        values = np.asarray(self.values, np.float64)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or times.shape != values.shape[:1] or values.shape[1] != len(self.names):
            raise ValueError(
                f"a series needs T times, (T, C) values and C names, got {times.shape}, {values.shape} and "
                f"{len(self.names)} names"
            )
        if not len(times):
            raise DataError("the series is empty: at least one row is needed")
        bad = ~np.isfinite(values)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            value = values[row, column]
            raise DataError(f'column "{self.names[column]}", row {row + 1}: {value} is not a finite number')
        back = np.flatnonzero(np.diff(times) <= np.timedelta64(0, "s"))
        if len(back):
            row = int(back[0]) + 1
            raise DataError(
                f"row {row + 1}: time {times[row]} does not come after {times[row - 1]}: sort the rows by time, one "
                f"for each second at most, and write times with their zone where clocks were set back"
            )
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "names", tuple(self.names))

    @classmethod
    def of(
        cls, values: Any, names: Sequence[str] = ("y",), *, start: str = "2000-01-01", step_s: int = 3600
    ) -> TimeSeries:
        """A series of equal steps, from numbers alone."""
        array = np.asarray(values, np.float64)
        times = np.datetime64(start, "s") + np.arange(len(array)) * np.timedelta64(step_s, "s")
        return cls(times, array, tuple(names))

    def __len__(self) -> int:
        return len(self.times)

    def column(self, name: str) -> TimeSeries:
        """The series of one column."""
        return TimeSeries(self.times, self.values[:, [self._place(name)]], (name,))

    def rows(self, start: int, stop: int | None = None) -> TimeSeries:
        return TimeSeries(self.times[start:stop], self.values[start:stop], self.names)

    @property
    def step_s(self) -> float:
        """The usual step: the median of the differences, in seconds."""
        if len(self) < 2:
            raise DataError("a series of one row has no step: at least two are needed")
        return float(np.median(np.diff(self.times).astype(np.int64)))

    @property
    def odd_steps(self) -> Ints:
        """Rows that do not come one usual step after the row before; steps of as many months are alike."""
        if len(self) < 3 or _months(self.times):
            return np.empty(0, np.int64)
        return np.flatnonzero(np.diff(self.times).astype(np.int64) != self.step_s) + 1

    def later(self, count: int) -> NDArray[np.datetime64]:
        """(count,) the times that follow: months or years where the rows are such, else the usual step."""
        months = _months(self.times)
        if months:
            within = self.times[-1] - self.times[-1].astype("datetime64[M]").astype("datetime64[s]")
            after = self.times[-1].astype("datetime64[M]") + months * np.arange(1, count + 1)
            return after.astype("datetime64[s]") + within
        return self.times[-1] + (np.arange(1, count + 1) * self.step_s).astype("timedelta64[s]")

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise DataError(f'no column is called "{name}"{nearest(name, self.names)} (found: {", ".join(self.names)})')
        return self.names.index(name)


def _months(times: NDArray[np.datetime64]) -> int:
    """How many calendar months every step takes; 0 where steps are no months."""
    if len(times) < 3:
        return 0
    starts = times.astype("datetime64[M]")
    within = times - starts.astype("datetime64[s]")
    steps = np.diff(starts.astype(np.int64))
    return int(steps[0]) if steps[0] > 0 and (steps == steps[0]).all() and (within == within[0]).all() else 0


def read_time_series(path: str | Path, columns: Sequence[str] | None = None, *, date: str | None = None) -> TimeSeries:
    """Columns of a .csv or .tsv file (also .gz) with a header, one column of which holds ISO 8601 time stamps.

    columns  default: all but that of the time stamps
    date     name of the column of time stamps; default: the first of "date", "datetime", "timestamp", "time", "ds"
    Time stamps with a zone become UTC.  DataError, in one line, for a missing column, a missing or infinite value,
    times that do not increase, and times of which some have a zone.
    """
    path = Path(path)
    rows = list(read_rows(path))
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    header = list(rows[0])
    stamp = next((name for name in DATES if name in header), None) if date is None else date
    if stamp is None or stamp not in header:
        asked = f'no column is called "{date}"' if date else f"no column holds time stamps ({', '.join(DATES)})"
        raise DataError(f"{path}: {asked} (found: {', '.join(header)}): name it")
    wanted = list(dict.fromkeys(columns)) if columns is not None else [name for name in header if name != stamp]
    for name in wanted:
        if name not in header or name == stamp:
            others = [other for other in header if other != stamp]
            raise DataError(f'{path}: no column of numbers is called "{name}"{nearest(name, others)} '
                            f"(found: {', '.join(others)})")  # fmt: skip
    stamps = [_time(row[stamp], f"{path}, row {i}") for i, row in enumerate(rows, 1)]
    for i, (_, zoned) in enumerate(stamps, 1):
        if zoned != stamps[0][1]:
            has, had = ("a zone", "none") if zoned else ("no zone", "one")
            raise DataError(
                f'{path}, row {i}: time "{rows[i - 1][stamp].strip()[:40]}" has {has}, row 1 has {had}: write all '
                f"times with their zone, or none of them"
            )
    values = [[_number(row[name], f'{path}, row {i}, column "{name}"') for name in wanted]
              for i, row in enumerate(rows, 1)]  # fmt: skip
    times = np.array([time for time, _ in stamps], "datetime64[s]")
    try:
        return TimeSeries(times, np.array(values, np.float64), tuple(wanted))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _time(text: str, where: str) -> tuple[np.datetime64, bool]:
    """A time stamp, in UTC if it has a zone, and whether it has one."""
    given = text.strip()
    try:
        found = datetime.fromisoformat(given)
    except ValueError:
        try:
            if not re.fullmatch(r"\d{4}(-\d\d)?", given):  # numpy takes seconds since 1970 as a year
                raise ValueError
            return np.datetime64(given, "s"), False
        except ValueError:
            raise DataError(f'{where}: time "{given[:40]}" is not ISO 8601, as in 2017-01-31 23:30:00') from None
    zoned = found.tzinfo is not None
    return np.datetime64(found.astimezone(UTC).replace(tzinfo=None) if zoned else found, "s"), zoned


def _number(text: str, where: str) -> float:
    given = text.strip()
    if not given:
        raise DataError(f"{where}: the value is missing: fill the gap or leave the rows before it out")
    try:
        if "_" in given:  # which Python leaves out
            raise ValueError
        value = float(given)
    except ValueError:
        raise DataError(f'{where}: "{given[:40]}" is not a number') from None
    if not np.isfinite(value):
        raise DataError(f"{where}: {given[:40]} is not a finite number: fill the gap or leave the rows before it out")
    return value


def split_series(
    series: TimeSeries, lookback: int, split: str = "60/20/20"
) -> tuple[TimeSeries, TimeSeries, TimeSeries]:
    """(train, validation, test) by time; the last two begin with the `lookback` rows before them, which they look at.

    split  a name of SPLITS: shares of all rows, or the months of ETTh and ETTm (rows behind them are left out)
    """
    if split not in SPLITS:
        raise ValueError(f'unknown split "{split}"{nearest(split, SPLITS)} (allowed: {", ".join(SPLITS)})')
    parts, total = SPLITS[split], len(series)
    if parts[0] < 1:
        sizes = [int(total * parts[0]), 0, int(total * parts[2])]
        sizes[1] = total - sizes[0] - sizes[2]
    else:
        sizes = [int(part) for part in parts]
    if sum(sizes) > total:
        raise DataError(f"the split {split} needs {sum(sizes)} rows, the series has {total}")
    if min(sizes) < 1:
        raise DataError(f"too short: {total} rows split {split} leave {', '.join(map(str, sizes))}, each needs one row")
    first, second = sizes[0], sizes[0] + sizes[1]
    if lookback >= first:
        raise DataError(f"too short: the lookback of {lookback} rows needs more than the {first} rows to train on")
    return (
        series.rows(0, first), series.rows(first - lookback, second), series.rows(second - lookback, second + sizes[2]),
    )  # fmt: skip
