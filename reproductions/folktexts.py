"""folktexts: do a language model's risk scores rank rows, and do they mean what they say?

(a) The abstract's claims, from the authors' own table of 21 models, by paired tests over models.  (b) Two small models
on census records: letters in both orders and what the order does, answers in words, a number, words after four worked
rows; beside them logistic regression and gradient boosting trained on other rows.  (c) What 200 labels mend.

  python reproductions/folktexts.py           400 rows for SmolLM2, 60 for Gemma 3, 20 of them after worked rows
  python reproductions/folktexts.py --full    1,000 rows a model, 200 of them after worked rows
  python reproductions/folktexts.py --quick   20 rows of one model; writes no result

What a model answered is kept in build/folktexts/, so that a run that was stopped goes on, and --full builds on the
shorter run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from folktexts_published import FILE, published
from folktexts_rows import asked_together, asked_with_examples, kept_answers, risks_of
from numpy.typing import NDArray
from study import arguments, conclude, data_sources, figure_with, model_source, run_script, run_study

import likely
from likely.data import load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.evidence.results import read_result
from likely.io.jsonl import Line, line_digest
from likely.metrics.bins import ece_floor
from likely.metrics.bootstrap import interval
from likely.prompting.risk.report import BINS, METRICS, RESAMPLES, risk_report
from likely.prompting.risk.scorer import RiskScorer, outcome_labels
from likely.prompting.risk.task import TableTask, load_task
from likely.prompting.risk.text import TableRow

Floats = NDArray[np.float64]
TRAINED, POOL, LABELS, SHOTS = 2000, 64, 200, 4
SIZES = {"smollm2": 400, "gemma3": 60}
CENSUS = ("adult-census", "adult.csv.gz")
COLUMNS = {"auc": "AUC", "ece_positive": "ECE", "ece_top": "ECE (likelier class)", "brier": "Brier", "mean": "mean",
           "std": "std"}  # fmt: skip
STYLES = {"mc first": "letters, below first", "mc second": "letters, above first", "mc": "letters, both orders",
          "word": "words", "numeric": "number"}  # fmt: skip


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """train: for the supervised models;  shots: worked in front of the question;  scored: numbered, by the models."""

    train: Sequence[TableRow]
    shots: Sequence[TableRow]
    scored: Sequence[Line]

    @property
    def records(self) -> list[TableRow]:
        return [line.record for line in self.scored]


def split(rows: Sequence[TableRow], task: TableTask, *, scored: int, train: int = TRAINED, pool: int = POOL) -> Rows:
    """Disjoint rows in a fixed random order; as many worked rows of each outcome, outcomes in turn."""
    order = np.random.default_rng(0).permutation(len(rows))
    if len(rows) < train + pool + scored:
        raise ValueError(f"{train + pool + scored} rows are needed, there are {len(rows)}")
    candidates = [rows[i] for i in order[train : train + pool]]
    by_outcome = [[row for row in candidates if task.outcome(row) == k] for k in range(len(task.choices))]
    shots = [row for turn in zip(*by_outcome, strict=False) for row in turn][:SHOTS]
    chosen = [int(i) for i in order[train + pool : train + pool + scored]]
    lines = [Line(n, dict(rows[i]), line_digest(repr(rows[i]).encode())) for n, i in enumerate(chosen, 1)]
    return Rows([rows[i] for i in order[:train]], shots, lines)


def supervised(rows: Rows, task: TableTask) -> dict[str, Floats]:
    """Risks of the scored rows by models that were trained on the others, from the same columns."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(row: TableRow) -> dict[str, Any]:
        """A column with a text per code is a category, the others are numbers."""
        return {name: row[name] if column.values else float(row[name]) for name, column in task.columns.items()}

    vectors = DictVectorizer(sparse=False)
    x = vectors.fit_transform([features(row) for row in rows.train])
    asked = vectors.transform([features(row) for row in rows.records])
    y = outcome_labels(rows.train, task)
    models = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "gradient boosting": HistGradientBoostingClassifier(random_state=0),
    }
    return {name: model.fit(x, y).predict_proba(asked)[:, 1] for name, model in models.items()}


# --- numbers ----------------------------------------------------------------------------------------------------------


def reported(subject: str, risk: Floats, y: Floats) -> list[Figure]:
    """One row of the table."""
    found = risk_report(risk, y)
    return [
        figure(subject, title, found[name], found[f"{name}_interval"], len(y)) for name, title in COLUMNS.items()
        if found[name] is not None
    ]  # fmt: skip


def figure(subject: str, quantity: str, value: float, ends: Sequence[float], n: int) -> Figure:
    return figure_with(subject, quantity, value, (ends[0], ends[1]), unit="score", n=n, of="rows")


def more_ece(risk: Floats, other: Floats, y: Floats) -> tuple[float, float]:
    """95 % interval of ECE(risk) − ECE(other) on the same rows."""

    def difference(one: Floats, two: Floats, labels: Any) -> float:
        return METRICS["ece_positive"](one, labels) - METRICS["ece_positive"](two, labels)

    return interval(difference, risk, other, y.astype(int), resamples=RESAMPLES)


def mended(risk: Floats, y: Floats, method: str) -> Floats:
    """Recalibrated risks: rows in folds of 200, each mapped as the labels of the fold before it teach (of the last, for
    the first), so that every risk comes from a map of 200 other labels."""
    folds = np.array_split(np.arange(len(y)), len(y) // LABELS)
    out = np.empty(len(y))
    for at, fold in enumerate(folds):
        scorer = RiskScorer(None, load_task("adult"), method=method).fit_scores(risk[folds[at - 1]], y[folds[at - 1]])
        out[fold] = scorer.recalibrated(risk[fold])
    return out


@dataclass(frozen=True)
class Judged:
    figures: list[Figure]
    checks: list[Check]
    said: str


def judged(name: str, risks: Mapping[str, Any], few: Floats, y: Floats, trained: Mapping[str, Floats]) -> Judged:
    """All figures and checks of one model; few: risks of the first rows after worked ones."""
    figures = [f for style, title in STYLES.items() for f in reported(f"{name}: {title}", risks[style], y)]
    figures += reported(f"{name}: words after {SHOTS} worked rows", few, y[: len(few)])
    for style, title in (("mc", "letters, both orders"), ("word", "words")):
        bias = risks["bias"][style]
        for quantity, value in (("order bias", bias.order_bias), ("first choice gets", bias.first)):
            figures.append(
                Figure(subject=f"{name}: {title}", quantity=quantity, value=value, unit="score", n=len(y), of="rows",
                       note="order bias and the first choice's share are means over rows that hardly differ")
            )  # fmt: skip
    words, n = risks["word"], len(y)
    auc = interval(METRICS["auc"], words, y.astype(int), resamples=RESAMPLES)
    above = more_ece(words, trained["logistic regression"], y)
    best_spread = float(trained["gradient boosting"].std())
    off = abs(float(words.mean() - y.mean()))
    checks = [
        Check(statement=f"{name}: words rank better than chance (0.5 − the lower end of the AUC)", value=0.5 - auc[0],
              bound=0.0, unit="AUC"),
        Check(statement=f"{name}: words are worse calibrated than logistic regression (the lower end of the difference "
              "of ECE, negated)", value=-above[0], bound=0.0, unit="ECE"),
        Check(statement=f"{name}: words overestimate the uncertainty of outcomes (their std, of gradient boosting's)",
              value=float(words.std()) / best_spread, bound=0.5, unit="share of std"),
    ]  # fmt: skip
    said = (
        f"{name}: words AUC {METRICS['auc'](words, y.astype(int)):.2f} [{auc[0]:.2f}, {auc[1]:.2f}], "
        f"ECE {METRICS['ece_positive'](words, y.astype(int)):.2f}, mean {off:.2f} from the base rate, std "
        f"{words.std():.3f}; letters differ by {risks['bias']['mc'].order_bias:.2f} between the orders"
    )
    if n >= 2 * LABELS:
        more = after_labels(name, words, y)
        return Judged([*figures, *more.figures], [*checks, *more.checks], f"{said}; {more.said}")
    return Judged(figures, checks, said)


def after_labels(name: str, words: Floats, y: Floats) -> Judged:
    """What 200 labels do to calibration and to the ranking."""
    platt, isotonic = mended(words, y, "platt"), mended(words, y, "isotonic")
    figures = [
        *reported(f"{name}: words, Platt on {LABELS} labels", platt, y),
        *reported(f"{name}: words, isotonic on {LABELS} labels", isotonic, y),
        Figure(subject=f"{name}: words, Platt on {LABELS} labels", quantity="ECE if exact",
               value=ece_floor(platt, y, bins=BINS).floor, unit="score", n=len(y), of="rows",
               note="ECE if exact: the mean ECE that exact risks would show on as many rows"),
    ]  # fmt: skip
    ece = METRICS["ece_positive"](platt, y.astype(int))
    # over all rows: within a fold a rising map moves no rank, but the folds' maps differ, and one may fall
    lost = METRICS["auc"](words, y.astype(int)) - METRICS["auc"](platt, y.astype(int))
    checks = [
        Check(statement=f"{name}: {LABELS} labels mend the calibration of words (ECE after Platt)", value=ece,
              bound=0.05, unit="ECE"),
        Check(statement=f"{name}: and cost little of the ranking (AUC over all folds, before − after)", value=lost,
              bound=0.02, unit="AUC"),
    ]  # fmt: skip
    return Judged(figures, checks, f"after Platt on {LABELS} labels ECE {ece:.3f}")


def letters_check(name: str, risks: Mapping[str, Any]) -> list[Check]:
    """The pure liking for a letter that the order correction reveals."""
    bias = risks["bias"]["mc"]
    return [
        Check(statement=f"{name}: the order of the options moves the risk (order bias, negated)",
              value=-bias.order_bias, bound=-0.5, unit="score"),
        Check(statement=f"{name}: and the two orders mirror each other (|mean + mean − 1|)", value=bias.mirrored,
              bound=0.1, unit="score"),
    ]  # fmt: skip


# --- together ---------------------------------------------------------------------------------------------------------


def study(
    models: Mapping[str, tuple[int, Callable[[], Any]]], few: int, rows: Rows, task: TableTask,
    table: Sequence[Mapping[str, Any]], *,
    sources: Sequence[Source], kept: Path, full: bool, letters: str | None = None, data: Sequence[Source] = (),
    report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    """models: name -> (how many rows it scores, what opens it);  few: how many of them after worked rows, too.

    letters  the model of which the letters' bias is checked (the first)
    """
    started = time.perf_counter()
    figures, checks, said = published(table)
    y = outcome_labels(rows.records, task)
    trained = supervised(rows, task)
    for name, risk in trained.items():
        figures += reported(f"{name}, {len(rows.train)} other rows", risk, y)
    asking = 0.0
    lines = [said]
    hashes = {source.name: source.sha256 for source in sources}
    kept.mkdir(parents=True, exist_ok=True)
    for name, (count, opened) in models.items():
        header = {"kind": "folktexts", "model": name, "hashes": hashes, "task": task.digest(), "shots": SHOTS}
        scored = rows.scored[:count]
        with opened() as lm:
            records = kept_answers(
                partial(asked_together, lm, task), scored, kept=kept / f"{name}.jsonl", header=header, report=report
            )
            worked = kept_answers(
                partial(asked_with_examples, lm, task, shots=rows.shots), scored[:few],
                kept=kept / f"{name}.few.jsonl", header=header, report=report,
            )  # fmt: skip
        asking += sum(record["seconds"] for record in (*records, *worked))
        risks = risks_of(records, task)
        after = np.array([record["few"][1] for record in worked])
        own = {supervisor: risk[:count] for supervisor, risk in trained.items()}
        found = judged(name, risks, after, y[:count], own)
        figures += found.figures
        checks += found.checks
        if name == (letters or next(iter(models))):
            checks += letters_check(name, risks)
        lines.append(found.said)
        report(found.said)
    return conclude(
        "folktexts",
        title="folktexts: language models as risk scores",
        claim=(
            "Zero-shot risk scores of language models carry signal but are widely miscalibrated: base models "
            "overestimate the uncertainty of outcomes, instruction-tuned ones underestimate it and polarise; asking "
            "for a number in words calibrates instruction-tuned models better than lettered options."
        ),
        paper_figure=(
            "17 models on five tasks of census data; in the authors' table letters have a mean ECE of .199 (base) and "
            ".284 (instruction-tuned), a number .141 (instruction-tuned); gradient boosting .008"
        ),
        ours="; ".join(lines),
        figures=figures,
        checks=checks,
        samples=f"{len(table)} rows of the authors' table; census records: "
        + ", ".join(f"{count} for {name}" for name, (count, _) in models.items())
        + f", the first {few} after {SHOTS} worked ones, too, {len(rows.train)} others to train on",
        intervals=f"95 %, percentile bootstrap over rows ({RESAMPLES} resamples, as the authors') or over models, "
        "fixed seed; that of an ECE may begin at its value, since resampling only adds to it; tests over models by "
        "enumerating all signs",
        full=full,
        models=sources,
        data=data,
        seconds=max(time.perf_counter() - started, asking),
        not_shown=[
            "Base against instruction-tuned on one model: both small models differ in more than that; it needs a pair "
            "of a billion parameters or more.",
            "The authors' own data (ACS, 2018): the small models answer about UCI Adult, census records of 1994.",
            "A number asked for in a chat, and reasoned answers: models of this size write no usable ones.",
            "The authors' table holds no base rates: they are read from the model whose scores differ least, and the "
            "spread of exact probabilities of an AUC is that of two normal classes.",
            f"What {LABELS} labels mend is measured where a model scored {2 * LABELS} rows or more; on so few even "
            "exact risks show an ECE, which the table holds.",
        ],
    )


def refreshed(earlier: Evidence, table: Sequence[Mapping[str, Any]]) -> Evidence:
    """An earlier result with the authors' table tested anew; what models answered stays as it was measured."""
    figures, checks, said = published(table)

    def others(some: Sequence[Any], text: Callable[[Any], str]) -> list[Any]:
        return [one for one in some if not text(one).startswith("authors' table:")]

    lines = earlier.ours.split("; ")
    first = next(i for i, line in enumerate(lines) if any(line.startswith(f"{name}:") for name in SIZES))
    return earlier.model_copy(
        update={
            "figures": [*figures, *others(earlier.figures, lambda f: f.subject)],
            "checks": [*checks, *others(earlier.checks, lambda c: c.statement)],
            "ours": "; ".join([said, *lines[first:]]),
        }
    )


def measure(options: argparse.Namespace) -> Evidence:
    if options.table_only:
        return refreshed(read_result(options.out / "folktexts.json"), list(load_records(*FILE)))
    task = load_task("adult")
    census = list(load_records(*CENSUS))
    names = ["smollm2"] if options.quick else ["smollm2", "gemma3"]
    sizes = {"smollm2": 20} if options.quick else dict.fromkeys(names, 1000) if options.full else SIZES
    opened = {name: (sizes[name], partial(likely.load, name, runtime="llamacpp", threads=1)) for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        return study(
            opened, 10 if options.quick else 200 if options.full else 20,
            split(census, task, scored=max(sizes.values())), task, list(load_records(*FILE)),
            sources=[model_source(name) for name in names], data=data_sources([CENSUS, FILE]), full=options.full,
            kept=Path(scratch) if options.quick else options.kept,
        )  # fmt: skip


def main() -> None:
    parser = arguments(full="1,000 rows a model", quick="20 rows of one model")
    kept = Path(__file__).parents[1] / "build" / "folktexts"
    table_only = "test the authors' table anew, keep what models answered in the result that is there"
    parser.add_argument("--table-only", action="store_true", help=table_only)
    parser.add_argument("--kept", type=Path, default=kept, help="folder of the answers")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
