"""Does the calibration set matter?  Effect sizes of a study's table beside what draws of one text do, and advice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.integrate import trapezoid

from likely.compression.calibration_set import NONSENSE
from likely.compression.study.grid import StudyRow

LEVEL = 0.05  # of the F test: above it the sets differ no more than draws of one set do
SMALL = 0.1  # a sensitivity that is worth a choice


@dataclass(frozen=True)
class VarianceSplit:
    """Values (C sets, S draws) split into what the set and what the draw explains.

    Draws are nested in sets: the second draw of one text has nothing in common with the second of another.

    set_sd, draw_sd  standard deviations of the two: σ²_draw = MS within, σ²_set = max(0, (MS between - MS within) / S)
    f, p             MS between / MS within, and how often draws alone give as much (one-way analysis of variance)
    draw_sd, f and p are None with a single draw, set_sd is then the deviation of the values themselves.
    """

    set_sd: float
    draw_sd: float | None
    f: float | None
    p: float | None


def split_variance(values: ArrayLike) -> VarianceSplit:
    """Of values (C, S), C >= 2."""
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or len(table) < 2:
        raise ValueError(f"a split needs values (sets, draws) of at least 2 sets, got shape {table.shape}")
    sets, draws = table.shape
    between = draws * float(table.mean(axis=1).var(ddof=1))
    if draws == 1:
        return VarianceSplit(float(between**0.5), None, None, None)
    within = float(table.var(axis=1, ddof=1).mean())
    ratio = between / within if within > 0 else (np.inf if between > 0 else 1.0)
    p = float(stats.f.sf(ratio, sets - 1, sets * (draws - 1)))
    return VarianceSplit(float(max(0.0, (between - within) / draws) ** 0.5), within**0.5, float(ratio), p)


def expected_range(count: int) -> float:
    """E[max - min] of `count` independent standard normals: ∫ 1 - Φ(x)ⁿ - (1 - Φ(x))ⁿ dx."""
    x = np.linspace(-9, 9, 4001)
    low = stats.norm.cdf(x)
    return float(trapezoid(1 - low**count - (1 - low) ** count, x))


@dataclass(frozen=True)
class SetEffect:
    """What the choice of the calibration set does to one number of one method on one evaluation.

    means        of each set, over its draws
    sensitivity  (max - min) / mean over sets of real text
    by_chance    the sensitivity to expect if all these sets were one text: draws differ, too; None with one draw
    split        of the values of real texts; None where there is only one
    nonsense     the worst set of `NONSENSE` over the best real text; None without one
    control      the number of "rtn" with the same scheme, which looks at no text; None where it was not measured
    """

    model: str
    method: str
    evaluation: str
    number: str
    means: dict[str, float]
    sensitivity: float | None
    by_chance: float | None
    split: VarianceSplit | None
    nonsense: float | None
    control: float | None

    @property
    def texts(self) -> dict[str, float]:
        """Means of sets of real text."""
        return {name: mean for name, mean in self.means.items() if not is_nonsense(name)}

    @property
    def matters(self) -> bool | None:
        """Whether sets of real text differ by more than draws do; None where that cannot be told."""
        return None if self.split is None or self.split.p is None else self.split.p < LEVEL

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: an infinite F, where draws agree exactly, is None."""
        record = {**asdict(self), "matters": self.matters}
        if self.split is not None and self.split.f is not None and not np.isfinite(self.split.f):
            record["split"]["f"] = None
        return record


def is_nonsense(name: str) -> bool:
    return name in NONSENSE


def set_effects(rows: Iterable[StudyRow], number: str = "kl") -> list[SetEffect]:
    """For each model, method that reads text, and evaluation of a study whose evaluations give this number."""
    cells: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    control: dict[tuple[str, str, str], float] = {}
    for row in rows:
        value = row.numbers.get(number)
        if value is None:
            continue
        if row.calibration is None:
            control[row.model, row.method, row.evaluation] = value
            continue
        by_set = cells.setdefault((row.model, row.method, row.evaluation), {})
        by_set.setdefault(row.calibration, []).append(value)
    found = []
    for (model, method, evaluation), by_set in cells.items():
        means = {name: float(np.mean(values)) for name, values in by_set.items()}
        real = np.array([values for name, values in by_set.items() if not is_nonsense(name)])
        sensitivity, by_chance, split = _spread(real) if len(real) > 1 else (None, None, None)
        worst = max((mean for name, mean in means.items() if is_nonsense(name)), default=None)
        best = float(real.mean(axis=1).min()) if len(real) else None
        found.append(
            SetEffect(
                model, method, evaluation, number, means, sensitivity, by_chance, split,
                nonsense=worst / best if worst is not None and best else None,
                control=control.get((model, f"rtn:{method.partition(':')[2]}", evaluation)),
            )
        )  # fmt: skip
    return found


def _spread(values: NDArray[np.float64]) -> tuple[float, float | None, VarianceSplit]:
    """Sensitivity, that by chance and the split of values (C, S)."""
    means, split = values.mean(axis=1), split_variance(values)
    if split.draw_sd is None:
        return float(np.ptp(means) / means.mean()), None, split
    by_chance = expected_range(len(means)) * split.draw_sd / values.shape[1] ** 0.5 / means.mean()
    return float(np.ptp(means) / means.mean()), float(by_chance), split


def recommendation(effects: Sequence[SetEffect]) -> str:
    """One sentence for each model and evaluation: which text to calibrate on, by method, and what a wrong one costs."""
    sentences = []
    for model, evaluation in dict.fromkeys((e.model, e.evaluation) for e in effects):
        chosen = [e for e in effects if (e.model, e.evaluation) == (model, evaluation)]
        sentences.append(f"{model}, judged on {evaluation}: {'; '.join(map(_advice, chosen))}.")
    return "\n".join(sentences)


def _advice(effect: SetEffect) -> str:
    said = f"{effect.method}: {_choice(effect)}"
    if effect.nonsense is not None and effect.nonsense > 1 + SMALL:
        said += f", not nonsense (up to {effect.nonsense:.2g} times the {effect.number})"
    worse = [name for name, mean in effect.means.items() if effect.control is not None and mean > effect.control]
    if worse:
        said += f"; on {', '.join(worse)} worse than rtn, which reads no text ({effect.control:.3g})"
    return said


def _choice(effect: SetEffect) -> str:
    texts = effect.texts
    if effect.sensitivity is None:
        return f"only {', '.join(texts) or 'nonsense'} was tried"
    best, worst = min(texts, key=lambda name: texts[name]), max(texts, key=lambda name: texts[name])
    cost = f"{worst} costs {texts[worst] / texts[best] - 1:.0%} more"
    if effect.matters is None:
        return f"{best} was best ({cost}), but one draw of each text cannot tell sets from draws"
    if not effect.matters:
        return f"any of these texts (they differ by {effect.sensitivity:.0%}, draws alone give {effect.by_chance:.0%})"
    if effect.sensitivity < SMALL:
        return f"any of these texts (the choice moves the {effect.number} by {effect.sensitivity:.0%} only)"
    return f"calibrate on {best} ({cost}; draws alone give {effect.by_chance:.0%})"
