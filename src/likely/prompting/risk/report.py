"""How good a risk score is: ranking, calibration, sharpness, the same for each group of rows, and the order's share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.metrics.bins import positive_ece, top_label_ece
from likely.metrics.bootstrap import interval
from likely.metrics.checks import Floats, Ints, check_confidence, check_correct
from likely.metrics.intervals import wilson
from likely.metrics.proper import brier_binary, nll
from likely.metrics.ranking import auroc
from likely.prompting.risk.prompts import choice_orders
from likely.prompting.risk.task import TableTask

BINS = 10  # folktexts'
RESAMPLES = 200  # folktexts'
RiskMetric = Callable[[Floats, Ints], float]


def top_ece(risk: Floats, y: Ints) -> float:
    """ECE of the likelier class's probability: what folktexts reports, since its [1 − s, s] counts as multi-class."""
    return top_label_ece(np.stack([1 - risk, risk], axis=1), y, bins=BINS)


METRICS: dict[str, RiskMetric] = {
    "auc": lambda s, y: auroc(s, y),
    "accuracy": lambda s, y: float(((s >= 0.5) == y).mean()),
    "ece_top": top_ece,
    "ece_positive": lambda s, y: positive_ece(s, y, bins=BINS),
    "ece_quantile": lambda s, y: positive_ece(s, y, bins=BINS, binning="mass"),
    "brier": lambda s, y: brier_binary(s, y),
    "nll": lambda s, y: nll(s, y),
    "mean": lambda s, y: float(s.mean()),
    "std": lambda s, y: float(s.std()),
    "base_rate": lambda s, y: float(y.mean()),
}


def risk_report(
    risk: Any, labels: Any, *, threshold: float | None = None, intervals: bool = True, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Metrics of N risks against N outcomes of 0 and 1; a 95 % bootstrap interval in `<name>_interval` beside each.

    auc           NaN risks (a text without a number) are left out of everything and counted in `parse_rate`
    ece_top       of max(s, 1 − s), 10 bins of equal width: the number that folktexts prints
    ece_positive  of s against the outcome;  ece_quantile: the same in bins of equal counts.  Not the same as ece_top
    std, polarised  spread of the scores, and the share of them outside [0.1, 0.9]
    bias          mean − base_rate: above 0 the scores overestimate the risk
    auc is None, with a `note`, where the rows have one outcome only.
    """
    s = np.asarray(risk, np.float64)
    known = ~np.isnan(s)
    if not known.any():
        raise ValueError("no risk is a number: there is nothing to report")
    kept = check_confidence(s[known], "risk")
    y = check_correct(np.asarray(labels)[known], len(kept))
    found: dict[str, Any] = {"n": len(kept), "parse_rate": float(known.mean())}
    for name, metric in METRICS.items():
        if name == "auc" and len(set(y.tolist())) < 2:
            found["auc"], found["note"] = None, f"every outcome is {int(y[0])}: the AUC is not defined"
            continue
        found[name] = metric(kept, y)
        if intervals:
            found[f"{name}_interval"] = list(interval(metric, kept, y, resamples=resamples))
    found["bias"] = found["mean"] - found["base_rate"]
    found["polarised"] = float(((kept < 0.1) | (kept > 0.9)).mean())
    if threshold is not None:
        right = int(((kept >= threshold) == y).sum())
        found["threshold"], found["accuracy_at_threshold"] = threshold, right / len(kept)
        found["accuracy_at_threshold_interval"] = list(wilson(right, len(kept)))
    return found


def subgroup_report(
    risk: Any, labels: Any, groups: Sequence[object], *, threshold: float = 0.5, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """One line per group, the largest first: n, base rate, mean risk, ECE and AUC with intervals, rates at a threshold.

    selected        share of the group at or above the threshold
    true_positive, false_positive  share selected among those with and without the outcome, with Wilson intervals;
                    None where the group has none such
    """
    s = np.asarray(risk, np.float64)
    known = ~np.isnan(s)
    y_all = np.asarray(labels)
    if not len(s) == len(y_all) == len(groups):
        raise ValueError(f"risk, labels and groups must have as many rows: {len(s)}, {len(y_all)}, {len(groups)}")
    names = np.array([str(g) for g in groups])
    lines = []
    for name in sorted(set(names[known].tolist())):
        mine = known & (names == name)
        kept, y = check_confidence(s[mine], "risk"), check_correct(y_all[mine], int(mine.sum()))
        chosen = kept >= threshold
        line: dict[str, Any] = {"group": name, "n": len(kept)}
        for metric in ("base_rate", "mean", "ece_positive", "auc"):
            if metric == "auc" and len(set(y.tolist())) < 2:
                line["auc"] = line["auc_interval"] = None
                continue
            line[metric] = METRICS[metric](kept, y)
            line[f"{metric}_interval"] = list(interval(METRICS[metric], kept, y, resamples=resamples))
        for rate, among in (
            ("selected", np.ones(len(y), bool)), ("true_positive", y == 1), ("false_positive", y == 0),
        ):  # fmt: skip
            n = int(among.sum())
            line[rate] = float(chosen[among].mean()) if n else None
            line[f"{rate}_interval"] = list(wilson(int(chosen[among].sum()), n)) if n else None
        lines.append(line)
    return sorted(lines, key=lambda line: (-line["n"], line["group"]))


@dataclass(frozen=True)
class OrderBias:
    """How much of an answer is due to the order in which the choices are shown.

    A model that always says "A" gives a choice 0.8 when it stands first and 0.2 when it stands second: the average over
    both orders, 0.5, says what it knows, nothing, and the difference between orders shows why.

    order_bias  mean over rows of the largest difference between two orders' risks, 0 to 1; for two choices
                mean |s₁ − s₂|
    first       mean probability of whatever choice is shown first; 1/K without bias
    mirrored    |mean(s₁) + mean(s₂) − 1| with two choices: near 0 together with a large order_bias, the place decides
                and the content does not; None with more choices
    """

    order_bias: float
    first: float
    mirrored: float | None

    @property
    def line(self) -> str:
        verdict = ""
        if self.mirrored is not None and self.order_bias > 0.5 and self.mirrored < 0.1:
            verdict = ": the place decides, not the row"
        return f"order_bias {self.order_bias:.3f} (the choice shown first gets {self.first:.3f} on average){verdict}"


def order_bias(probs: Floats, orders: Sequence[Sequence[int]], values: Sequence[float]) -> OrderBias | None:
    """The bias of answers given in several orders; None where there was one order only, or no row.

    probs   (N, O, K) probability of each choice (in the task's order) when shown in order o; rows with NaN are left out
    orders  O orders, orders[o][i] is the choice at place i;  values: (K,) of the choices
    """
    probs = np.asarray(probs, np.float64)
    if probs.ndim != 3 or probs.shape[1:] != (len(orders), len(values)):
        raise ValueError(f"probs must be (N, {len(orders)}, {len(values)}), got shape {probs.shape}")
    probs = probs[~np.isnan(probs).any(axis=(1, 2))]
    if len(orders) < 2 or not len(probs):
        return None
    risks = probs @ np.asarray(values, np.float64)  # (N, O)
    shown_first = np.stack([probs[:, o, order[0]] for o, order in enumerate(orders)], axis=1)
    mirrored = abs(float(risks.mean(axis=0).sum()) - 1) if len(values) == 2 else None
    spread = risks.max(axis=1) - risks.min(axis=1)
    return OrderBias(float(spread.mean()), float(shown_first.mean()), mirrored)


def summarise(
    records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], task: TableTask, *,
    subgroup: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What is said of a table that was scored: `risk_report`, what the order of the choices does, and the groups.

    records   of `RiskScores.record`, one for each of `rows`;  subgroup: the column whose values are groups
    Without outcomes of 0 or 1 there are the mean and spread of the risks alone.
    """
    risks = np.array([np.nan if r["risk"] is None else r["risk"] for r in records])
    known = ~np.isnan(risks)
    if not known.any():
        return {"n": 0, "rows": len(risks), "parse_rate": 0.0}
    out: dict[str, Any] = {"rows": len(risks)}
    between = sum(task.label(row) not in (None, 0, 1) for row in rows)
    if between:
        out["outcomes_between"] = between
    scored = [r for r in records if r["risk"] is not None]
    if scored[0]["choice_probs"] is not None and len(scored[0]["per_order"]) > 1:
        probs = np.array([r["choice_probs"] for r in scored])
        bias = order_bias(probs, choice_orders(len(task.choices)), [c.value for c in task.choices])
        if bias is not None:
            out.update(order_bias=bias.order_bias, first_choice=bias.first, order_bias_line=bias.line)
    labelled = np.array([r["label"] is not None for r in records])
    usable = labelled & known
    if not usable.any():
        return {
            **out, "n": int(known.sum()), "parse_rate": float(known.mean()), "mean": float(risks[known].mean()),
            "std": float(risks[known].std()),
        }  # fmt: skip
    y = np.array([r["label"] or 0 for r in records])
    out.update(risk_report(risks[labelled], y[labelled]))
    if subgroup is not None:
        groups = [row.get(subgroup, "") for row, kept in zip(rows, usable, strict=True) if kept]
        out["subgroups"] = subgroup_report(risks[usable], y[usable], groups)
    return out
