"""Pictures: how the log-probabilities in results files are distributed, and what drafters gain.

`read_series` reads what `likely score` and `likely ask` write, and their --json lines.  An answer is correct or wrong
if its line says so: `correct` (true or false, 1 or 0) of the answer or the line, or `label` (the number, or the text,
of the right one among the answers).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.errors import DataError, names_in, needs
from likely.io.jsonl import read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from likely.bench.speculation import DrafterTiming

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, told apart with any colour vision; correct and wrong also differ in the line
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = {"correct": "-", "wrong": "--", "": "-"}


@dataclass
class Series:
    """What one file holds, by group: "correct", "wrong", or "" where the file does not say.

    tokens  logprob of every token;  means  mean logprob of every answer that has tokens;  both in nats
    """

    name: str
    tokens: dict[str, list[float]] = field(default_factory=dict)
    means: dict[str, list[float]] = field(default_factory=dict)
    tokenizer: str | None = None
    odd_labels: int = 0  # labels that name none of their answers

    def add(self, group: str, logprobs: list[float]) -> None:
        if logprobs:
            self.tokens.setdefault(group, []).extend(logprobs)
            self.means.setdefault(group, []).append(sum(logprobs) / len(logprobs))


def read_series(path: str | Path) -> Series:
    """All answers of a results file; DataError names the file and the line."""
    where = "stdin" if str(path) == "-" else str(path)
    series = Series(where if where == "stdin" else Path(path).name)
    seen = False
    for line in read_lines(path):
        record, here = line.record, f"{where}:{line.number}"
        inner = record.get("answers")
        origin = inner if isinstance(inner, dict) else record
        if isinstance(origin.get("tokenizer"), str):
            series.tokenizer = origin["tokenizer"]
        if not seen and _is_header(record):
            seen = True
            continue
        answers = _answers(record, here)
        if answers is None:
            raise DataError(
                f'{here}: field "answers" or "token_logprobs" is missing (found: {names_in(list(record)[:8])}): '
                f"this is not a results file of likely score or likely ask"
            )
        seen = True
        groups, odd = _groups(record, answers)
        series.odd_labels += odd
        for group, answer in zip(groups, answers, strict=True):
            series.add(group, _logprobs(answer, here))
    if not series.tokens:
        raise DataError(f"{where} holds no tokens to plot")
    return series


def _is_header(record: dict[str, Any]) -> bool:
    """The first line of a results file; that of graded answers holds the header of the answers file."""
    return "kind" in record and not ("token_logprobs" in record or isinstance(record.get("answers"), list))


def _answers(record: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    if "answers" in record:
        answers = record["answers"]
        if not isinstance(answers, list) or not all(isinstance(a, dict) for a in answers):
            raise DataError(f'{where}: field "answers" must be a list of scored answers, as likely score writes them')
        return answers
    rows = record.get("token_logprobs")
    if isinstance(rows, list) and rows and all(isinstance(row, list) for row in rows):  # a question with its choices
        return [{"token_logprobs": row} for row in rows]
    return [record] if "token_logprobs" in record else None


def _logprobs(answer: dict[str, Any], where: str) -> list[float]:
    values = answer.get("token_logprobs")
    if not isinstance(values, list):
        found = "nothing" if values is None else type(values).__name__
        raise DataError(f'{where}: field "token_logprobs" must be a list of numbers, found {found}')
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f'{where}: field "token_logprobs" must hold finite numbers, found {str(value)[:40]}')
    return [float(value) for value in values]


def _groups(record: dict[str, Any], answers: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """("correct", "wrong" or "" of each answer, whether a label was there that names none of them)."""
    whole = record.get("correct") if len(answers) == 1 else None  # of several answers it would be the choice's
    marks = [_mark(answer.get("correct", whole)) for answer in answers]
    label = record.get("label")
    if any(marks) or label is None or answers == [record]:
        return marks, False
    if isinstance(label, int) and not isinstance(label, bool):
        right = [i == label for i in range(len(answers))]
    else:
        right = [isinstance(label, str) and str(answer.get("text", "")).strip() == label.strip() for answer in answers]
    if not any(right):
        return [""] * len(answers), True
    return ["correct" if r else "wrong" for r in right], False


def _mark(correct: Any) -> str:
    if not isinstance(correct, int):
        return ""
    return {1: "correct", 0: "wrong"}.get(correct, "")


def draw_histograms(series: Sequence[Series]) -> Figure:
    """Two histograms side by side, all files over each other on the same bins; each area is 1."""
    figure = new_figure((11, 4.5))
    tokens, means = figure.subplots(1, 2)
    _histogram(tokens, "Tokens", "logprob of a token (nats)", [(s.name, s.tokens) for s in series])
    _histogram(means, "Answers", "mean logprob of an answer (nats per token)", [(s.name, s.means) for s in series])
    return figure


def new_figure(figsize: tuple[float, float], *, dpi: int = 120) -> Figure:
    """A figure of matplotlib that no window shows; CapabilityError without matplotlib."""
    with needs("matplotlib", "plots"):
        from matplotlib.figure import Figure
    return Figure(figsize=figsize, dpi=dpi, layout="constrained")


def _histogram(axes: Axes, title: str, label: str, files: list[tuple[str, dict[str, list[float]]]]) -> None:
    samples = [values for _, groups in files for values in groups.values()]
    edges = np.histogram_bin_edges(np.concatenate(samples), bins=bins_for(min(map(len, samples))))
    many = len(files) > 1
    for place, (name, group, values) in enumerate(_entries(files)):
        number = [n for n, _ in files].index(name) if many else place
        axes.hist(
            values,
            bins=edges.tolist(),
            density=True,
            histtype="step",
            linewidth=1.6,
            color=COLOURS[number % len(COLOURS)],
            linestyle=_DASHES[group],
            label=_legend_text(name, group, len(values)),
        )
    axes.set(title=title, xlabel=label, ylabel="density per nat")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", framealpha=0.8, edgecolor="none", fontsize="small")


def bins_for(count: int) -> int:
    """Bins for a sample of that size: few for few values, so that noise does not look like structure."""
    return int(np.clip(round(2 * math.sqrt(count)), 10, 60))


def _entries(files: list[tuple[str, dict[str, list[float]]]]) -> Iterator[tuple[str, str, list[float]]]:
    for name, groups in files:
        for group in sorted(groups):
            yield name, group, groups[group]


def _legend_text(name: str, group: str, count: int) -> str:
    """A label that matplotlib takes as it stands: $ would begin a formula, a leading _ would hide the entry."""
    short = name if len(name) <= 40 else f"{name[:20]}…{name[-18:]}"
    text = f"{short}, {group} (n={count:,})" if group else f"{short} (n={count:,})"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def rename_apart(series: Sequence[Series], paths: Sequence[str]) -> None:
    """Files of the same name are told apart by their paths."""
    names = [s.name for s in series]
    for one, path in zip(series, paths, strict=True):
        if names.count(one.name) > 1:
            one.name = path


def render(figure: Figure, suffix: str) -> bytes:
    """The picture as a file of one of FORMATS."""
    out = io.BytesIO()
    figure.savefig(out, format=suffix.lower().lstrip("."))
    return out.getvalue()


# --- drafters: tokens per call against the draft budget, and times against plain decoding ---

Point = tuple[int, float, float, float]  # budget, tokens per call, its interval's ends
_MARKS = "os^Dv<>P*X"


def budget_bars(curves: Mapping[str, Sequence[Point]], *, width: int = 40) -> list[str]:
    """Lines of text: one bar per drafter and budget, from 1 token per call on."""
    top = max(value for points in curves.values() for _, value, _, _ in points)
    names = max(map(len, curves))
    lines = [f"{'drafter':{names}}  budget  tokens per call"]
    for name, points in curves.items():
        for i, (budget, value, _, _) in enumerate(points):
            length = round(width * (value - 1) / (top - 1)) if top > 1 else 0
            lines.append(f"{'' if i else name:{names}}  {budget:6}  {value:6.2f} {'#' * length}".rstrip())
    return lines


def draw_budgets(curves: Mapping[str, Sequence[Point]], *, title: str = "") -> Figure:
    """One line per drafter with its 95 % band."""
    figure = new_figure((7, 4.5))
    axes = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        budgets, values, low, high = zip(*points, strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(budgets, values, color=colour, marker=_MARKS[i % len(_MARKS)], label=name.replace("$", r"\$"))
        axes.fill_between(budgets, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    ticks = sorted({budget for points in curves.values() for budget, *_ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="drafted tokens per call, at most", ylabel="tokens per call", title=title.replace("$", r"\$"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.8, edgecolor="none", fontsize="small")
    return figure


def draw_ratios(found: Mapping[str, Sequence[DrafterTiming]]) -> Figure:
    """Ratios to plain decoding with their intervals: a panel per runtime, a line per task."""
    tasks = list(dict.fromkeys(row.task for rows in found.values() for row in rows))
    figure = new_figure((5.5 * len(found), 1.5 + 0.6 * len(tasks)), dpi=100)
    for axis, (name, rows) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        drafters = list(dict.fromkeys(row.drafter for row in rows))
        for k, drafter in enumerate(drafters):
            mine = [row for row in rows if row.drafter == drafter]
            height = [tasks.index(row.task) + (k - (len(drafters) - 1) / 2) * 0.7 / len(drafters) for row in mine]
            ends = [[max(row.ratio - row.low, 0) for row in mine], [max(row.high - row.ratio, 0) for row in mine]]
            axis.errorbar([row.ratio for row in mine], height, xerr=ends, fmt="o", capsize=2, label=drafter)
        axis.axvline(1.0, color="grey", linewidth=1)
        axis.set_yticks(range(len(tasks)), tasks)
        axis.invert_yaxis()
        axis.set(xlabel="times as fast as plain decoding", title=name)
        axis.legend()
    return figure
