"""Does an estimator tell right answers from wrong ones?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from likely.calibration.bootstrap import interval
from likely.calibration.ranking import auroc, prr


def discrimination(
    values: Sequence[float | None],
    correct: Sequence[int],
    *,
    sure_is: Literal["high", "low"],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC and prediction-rejection ratio of N values with 95 % bootstrap intervals over the answers.

    values   None or NaN: missing, left out and counted
    Returns n, missing, auroc, auroc_interval, prr, prr_interval; where they are undefined (all right, all wrong, all
    missing) these are None and `why_not` says so.
    """
    numbers = np.array([np.nan if v is None else v for v in values], np.float64)
    if len(numbers) != len(correct):
        raise ValueError(f"{len(numbers)} values for {len(correct)} graded answers")
    known = ~np.isnan(numbers)
    out: dict[str, Any] = {"n": int(known.sum()), "missing": int((~known).sum())}
    undefined = dict.fromkeys(("auroc", "auroc_interval", "prr", "prr_interval"))
    if not out["n"]:
        return {**out, **undefined, "why_not": "no answer has a value"}
    sure = (numbers if sure_is == "high" else -numbers)[known]
    right = np.asarray(correct, np.int64)[known]
    for name, metric in (("auroc", auroc), ("prr", prr)):
        try:
            out[name] = metric(sure, right)
        except ValueError as error:
            return {**out, **undefined, "why_not": str(error)}
        out[f"{name}_interval"] = list(interval(metric, sure, right, resamples=resamples, seed=seed))
    return out
