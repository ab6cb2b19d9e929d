"""How well a score puts right answers before wrong ones: any finite numbers, higher is more certain; only order counts.

Rows of one score have no order.  Everything here is the mean over all orders of tied rows, in closed form.

Shapes: N rows.  The risk at i is the share of errors among the i most certain rows; their coverage is i/N.
Functions that end in `_of` take a `Tally` with any leading axes and give NaN where the metric is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from likely.metrics.bootstrap import interval
from likely.metrics.checks import Floats, check_correct, check_score
from likely.metrics.tally import Tally, tally


def auroc(score: Any, correct: Any) -> float:
    """P(score of a right row > score of a wrong row) + ½ P(equal), 0.5 for a score that knows nothing.

    score (N,), correct (N,) of 0 and 1.  ValueError if all rows are right, or all wrong: there is no such pair.
    The Mann-Whitney statistic, Hanley & McNeil 1982.
    """
    counted = _checked(score, correct)
    _both_classes(counted, "AUROC")
    return float(auroc_of(counted))


def aurc(score: Any, correct: Any) -> float:
    """Area under the risk-coverage curve: the mean over i = 1..N of the risk at i, 0 to 1.

    Geifman, Uziel & El-Yaniv 2019, arXiv:1805.08206, section 3.
    """
    return float(area_of(_checked(score, correct)))


def e_aurc(score: Any, correct: Any) -> float:
    """`aurc` less that of a perfect order with as many errors; 0 is best.

    The perfect area is summed exactly; Geifman et al. 2019, equation 5, approximate it by r + (1 − r) log(1 − r).
    """
    counted = _checked(score, correct)
    return float(area_of(counted) - perfect_area(counted))


def prr(score: Any, correct: Any, *, max_rejection: float = 1.0) -> float:
    """Prediction-rejection ratio: (A_random − A) / (A_random − A_perfect), A the mean risk over all rejection rates.

    1: as good as a perfect order;  0: as a random one;  negative: worse.
    max_rejection  in (0, 1]: rates above it do not count (the floor(max_rejection · N) greatest coverages do)
    ValueError if all rows are right, or all wrong, or so few may be rejected that all orders are equal.
    Malinin & Gales 2021, arXiv:2002.07650, appendix B.
    """
    if not 0 < max_rejection <= 1:
        raise ValueError(f"max_rejection must be above 0 and at most 1, got {max_rejection!r}")
    counted = _checked(score, correct)
    _both_classes(counted, "PRR")
    value = float(prr_of(counted, max_rejection))
    if np.isnan(value):
        raise ValueError(
            f"PRR undefined: with max_rejection {max_rejection:g} of {counted.rows} rows a perfect order is as good as "
            f"a random one"
        )
    return value


def risk_at_coverage(score: Any, correct: Any, coverage: float) -> float:
    """Share of errors among the ⌈coverage · N⌉ most certain rows.  coverage in (0, 1]."""
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be above 0 and at most 1, got {coverage!r}")
    curve = risk_curve(score, correct)
    # 0.07 * 100 is 7.000000000000001 in floating point
    return float(curve[int(np.ceil(coverage * len(curve) - 1e-9)) - 1])


def coverage_at_risk(score: Any, correct: Any, risk: float) -> float:
    """The greatest coverage whose risk is at most `risk`, 0 if there is none.  risk in [0, 1].

    It describes these rows and promises nothing for the next ones: for that see `selective.certified_threshold`.
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk must lie in 0..1, got {risk!r}")
    curve = risk_curve(score, correct)
    fits = np.flatnonzero(curve <= risk + 1e-12)
    return float((fits[-1] + 1) / len(curve)) if len(fits) else 0.0


def risk_curve(score: Any, correct: Any) -> Floats:
    """(N,): at index i − 1 the risk among the i most certain rows."""
    counted = _checked(score, correct)
    n, errors = counted.n[::-1], (counted.n - counted.right)[::-1]
    each = np.repeat(errors / n, n.astype(np.int64))  # every row of a tied group has the group's mean error
    return np.cumsum(each) / np.arange(1, counted.rows + 1)


def _checked(score: Any, correct: Any) -> Tally:
    values = check_score(score)
    return tally(values, check_correct(correct, len(values)))


def _both_classes(counted: Tally, name: str) -> None:
    right = counted.right.sum()
    if right in (0, counted.rows):
        raise ValueError(f"{name} undefined: all {counted.rows} rows are {'right' if right else 'wrong'}")


def auroc_of(counted: Tally) -> Floats:
    wrong_before = counted.n_before - counted.right_before
    won = (counted.right * (wrong_before[..., :-1] + wrong_before[..., 1:])).sum(axis=-1) / 2
    pairs = counted.right_before[..., -1] * wrong_before[..., -1]
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)


def area_of(counted: Tally, above: int = 0) -> Floats:
    """Mean of the risk at i over i = above + 1..N.

    A tied group after s rows with E errors, of mean error r, has the risk (E + (i − s) r) / i = r + (E − s r) / i at
    each i inside it: sums of 1/i are differences of harmonic numbers.
    """
    wrong_before = counted.n_before - counted.right_before
    starts = counted.rows - counted.n_before[..., 1:]  # the most certain are the last values
    ends = starts + counted.n
    errors_before = wrong_before[..., -1:] - wrong_before[..., 1:]
    mean = (counted.n - counted.right) / np.maximum(counted.n, 1)
    first = np.maximum(starts, above)
    harmonic = _harmonic(counted.rows)
    reciprocals = harmonic[ends.astype(np.int64)] - harmonic[np.minimum(first, ends).astype(np.int64)]
    inside = mean * np.maximum(ends - first, 0) + (errors_before - starts * mean) * reciprocals
    return inside.sum(axis=-1) / (counted.rows - above)


def perfect_area(counted: Tally, above: int = 0) -> Floats:
    """`area_of` an order with all errors last: the risk at i is max(0, i − right) / i."""
    right = counted.right_before[..., -1]
    first = np.maximum(right, above)
    harmonic = _harmonic(counted.rows)
    reciprocals = harmonic[counted.rows] - harmonic[first.astype(np.int64)]
    return (counted.rows - first - right * reciprocals) / (counted.rows - above)


def _harmonic(n: int) -> Floats:
    """Σ_{i <= k} 1/i for k = 0..n, (n + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])


def prr_of(counted: Tally, max_rejection: float = 1.0) -> Floats:
    above = counted.rows - int(max_rejection * counted.rows + 1e-9)
    if above == counted.rows:
        return np.full(counted.n.shape[:-1], np.nan)
    return gained(counted, area_of(counted, above), perfect_area(counted, above))


def gained(counted: Tally, area: Floats, perfect: Floats) -> Floats:
    """(random − area) / (random − perfect): the share of what an order can gain."""
    random = 1 - counted.right_before[..., -1] / counted.rows
    most = random - perfect
    return np.where(most > 1e-12, (random - area) / np.maximum(most, 1e-12), np.nan)


def discrimination(
    values: Sequence[float | None],
    correct: Sequence[int],
    *,
    higher_is: Literal["more_certain", "less_certain"],
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
    certainty = (numbers if higher_is == "more_certain" else -numbers)[known]
    right = np.asarray(correct, np.int64)[known]
    for name, metric in (("auroc", auroc), ("prr", prr)):
        try:
            out[name] = metric(certainty, right)
        except ValueError as error:
            return {**out, **undefined, "why_not": str(error)}
        out[f"{name}_interval"] = list(interval(metric, certainty, right, resamples=resamples, seed=seed))
    return out
