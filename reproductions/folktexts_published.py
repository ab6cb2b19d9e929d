"""The abstract's claims from the authors' own table (21 models, 5 tasks, two ways of asking), by paired tests."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.stats import binomtest, wilcoxon
from study import ratio_figure

from likely.evidence import Check, Figure

Floats = NDArray[np.float64]
FILE = ("folktexts-results", "results_2024-08.csv.gz")
# each base model and what became of it by instruction tuning
PAIRS = {
    "gemma-2b": "gemma-1.1-2b-it",
    "gemma-7b": "gemma-1.1-7b-it",
    "gemma-2-9b": "gemma-2-9b-it",
    "gemma-2-27b": "gemma-2-27b-it",
    "Meta-Llama-3-8B": "Meta-Llama-3-8B-Instruct",
    "Meta-Llama-3-70B": "Meta-Llama-3-70B-Instruct",
    "Mistral-7B-v0.1": "Mistral-7B-Instruct-v0.2",
    "Mixtral-8x7B-v0.1": "Mixtral-8x7B-Instruct-v0.1",
    "Mixtral-8x22B-v0.1": "Mixtral-8x22B-Instruct-v0.1",
    "Yi-34B": "Yi-34B-Chat",
}
LETTERS, NUMBER = False, True
ALPHA = 0.05


def sign_flip_p(differences: Sequence[float]) -> float:
    """P(a mean at least as large | the sign of each difference is a fair coin), by enumeration of all 2^n signs."""
    d = np.asarray(differences, np.float64)
    if not 1 <= len(d) <= 22:
        raise ValueError(f"signs of 1 to 22 differences can be enumerated, got {len(d)}")
    sums = np.zeros(1)
    for value in np.abs(d):
        sums = np.concatenate([sums + value, sums - value])
    return float((sums >= d.sum() - 1e-12).mean())


def sign_test_p(differences: Sequence[float]) -> float:
    """P(as many positive differences or more | each sign is a fair coin), zeros left out: Binomial(n, 1/2)."""
    d = np.asarray(differences, np.float64)
    d = d[d != 0]
    return float(binomtest(int((d > 0).sum()), len(d), alternative="greater").pvalue) if len(d) else 1.0


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Wilcoxon's signed-rank test of a median above 0: one outlier counts as one rank."""
    return float(wilcoxon(differences, alternative="greater").pvalue)


# stated beforehand: the mean, which one outlier may decide, and two tests that it cannot
TESTS: dict[str, Callable[[Sequence[float]], float]] = {
    "": sign_flip_p, ", sign test": sign_test_p, ", Wilcoxon": wilcoxon_p,
}  # fmt: skip


def calibrated_spread(auc: float, base_rate: float) -> float:
    """Standard deviation of exact probabilities that rank as well: AUC = Φ(d/√2), two normal classes at distance d.

    0 at an AUC of 0.5 or less.  A score of less spread says that outcomes are less certain than it could know.
    """
    if auc <= 0.5:
        return 0.0
    d = math.sqrt(2) * NormalDist().inv_cdf(auc)
    x = np.linspace(-8, 8 + d, 4001)
    ones, zeros = base_rate * np.exp(-((x - d) ** 2) / 2), (1 - base_rate) * np.exp(-(x**2) / 2)
    density = (ones + zeros) / math.sqrt(2 * math.pi)
    return math.sqrt(max(0.0, float(trapezoid(density * (ones / (ones + zeros) - base_rate) ** 2, x))))


class Table:
    """(model, way of asking) -> a value per task, tasks in one order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self.tasks = sorted({row["config_task_name"] for row in rows})
        self.rows: dict[tuple[str, bool], dict[str, Mapping[str, Any]]] = defaultdict(dict)
        self.tuned: dict[str, bool] = {}
        for row in rows:
            name = row["config_model_name"].removeprefix("penai/")
            self.rows[name, _true(row["config_numeric_risk_prompting"])][row["config_task_name"]] = row
            self.tuned[name] = _true(row["is_inst"])
        self.base_rates = {task: _base_rate([r for r in rows if r["config_task_name"] == task]) for task in self.tasks}

    def values(self, model: str, asked: bool, field: str) -> Floats:
        """(tasks,)"""
        return np.array([float(self.rows[model, asked][task][field]) for task in self.tasks])

    def mean(self, model: str, asked: bool, field: str) -> float:
        return float(self.values(model, asked, field).mean())

    def spread_beyond(self, model: str, asked: bool) -> float:
        """Mean over tasks of the scores' standard deviation less that of exact probabilities of the same AUC."""
        found = zip(self.tasks, self.values(model, asked, "score_stdev"), self.values(model, asked, "roc_auc"),
                    strict=True)  # fmt: skip
        return float(np.mean([std - calibrated_spread(auc, self.base_rates[task]) for task, std, auc in found]))


def _true(text: Any) -> bool:
    return str(text) == "True"


def _base_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """From the model whose scores differ least: all of them lie on one side of 0.5, so its accuracy is that class's."""
    flat = min(rows, key=lambda row: float(row["score_stdev"]))
    accuracy = float(flat["accuracy"])
    return accuracy if float(flat["score_mean"]) >= 0.5 else 1 - accuracy


def published(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Figure], list[Check], str]:
    """Means over models with intervals, one check per claim, and both in words."""
    table = Table(rows)
    base, tuned = list(PAIRS), [name for name, is_tuned in table.tuned.items() if is_tuned]
    figures: list[Figure] = []
    groups = (("base", base), ("instruction-tuned", tuned))
    for (kind, models), (asked, how) in itertools.product(groups, ((LETTERS, "letters"), (NUMBER, "number"))):
        subject = f"authors' table: {kind}, {how}"
        for field, quantity in (("roc_auc", "AUC"), ("ece", "ECE (likelier class)"), ("score_stdev", "std")):
            figures.append(_mean(subject, quantity, [table.mean(m, asked, field) for m in models]))
        figures.append(_mean(subject, "std − calibrated std", [table.spread_beyond(m, asked) for m in models]))
    claims = {
        "letters carry signal (AUC − 0.5, all models)": [
            table.mean(m, LETTERS, "roc_auc") - 0.5 for m in table.tuned
        ],
        "instruction-tuned scores are more spread out than their base model's (std, letters)": [
            table.mean(after, LETTERS, "score_stdev") - table.mean(before, LETTERS, "score_stdev")
            for before, after in PAIRS.items()
        ],
        "a number is better calibrated than letters where instruction-tuned (ECE of letters − of number)": [
            table.mean(m, LETTERS, "ece") - table.mean(m, NUMBER, "ece") for m in tuned
        ],
        "base models overestimate uncertainty (spread of exact probabilities of their AUC − theirs, letters)": [
            -table.spread_beyond(m, LETTERS) for m in base
        ],
        "instruction-tuned models underestimate it (spread − that of exact probabilities of their AUC, letters)": [
            table.spread_beyond(m, LETTERS) for m in tuned
        ],
    }  # fmt: skip
    checks, said = [], []
    for claim, differences in claims.items():
        p = sign_flip_p(differences)
        figures.append(_mean(f"authors' table: {claim}", "paired difference", differences))
        checks += [
            Check(
                statement=f"authors' table: {claim}, {len(differences)} models{name}", value=test(differences),
                bound=ALPHA, unit="p-value",
            )
            for name, test in TESTS.items()
        ]  # fmt: skip
        said.append(
            f"{claim.split(' (')[0]}: {np.mean(differences):+.3f} (p {p:.1g}; {sum(d > 0 for d in differences)} of "
            f"{len(differences)} models)"
        )
    return figures, checks, "in the authors' table " + "; ".join(said)


def _mean(subject: str, quantity: str, values: Sequence[float]) -> Figure:
    return ratio_figure(subject, quantity, values, unit="score", of="models")
