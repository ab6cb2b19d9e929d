"""The study of risk scores: its parts against RiskScorer, scikit-learn and closed forms, and on a tiny model."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.data import load_records
from likely.evidence import Source
from likely.prompting.risk.scorer import RiskScorer
from likely.prompting.risk.task import load_task

pytest.importorskip("sklearn")
FEW_COLUMNS = ("age", "sex", "hours-per-week")


@pytest.fixture(scope="module")
def study():
    """Under a name of its own: the authors' package has the script's."""
    return script("folktexts", named="folktexts_study")


@pytest.fixture(scope="module")
def task():
    whole = load_task("adult")
    return whole.without(*(name for name in whole.columns if name not in FEW_COLUMNS))


@pytest.fixture(scope="module")
def rows(study, task, data_dir):
    census = list(load_records("adult-census", data_dir=data_dir))
    return study.split(census, task, scored=24, train=100, pool=20)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("folktexts") / "tiny.gguf", context=4096)


def test_rows_are_disjoint_and_the_worked_ones_are_even(study, task, rows):
    parts = [[id(r) for r in rows.train], [id(r) for r in rows.shots]]
    assert not set(parts[0]) & set(parts[1]) and len(rows.train) == 100 and len(rows.scored) == 24
    assert [task.outcome(row) for row in rows.shots] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="rows are needed"):
        study.split(rows.train, task, scored=90)


@pytest.mark.filterwarnings("ignore::likely.scoring.letters.LowAnswerMass")
def test_asked_together_is_asked_apart(study, task, rows, path):
    some = rows.records[:4]
    with likely.load(str(path), runtime="llamacpp", threads=1) as lm:
        risks = study.risks_of(study.asked_together(lm, task, some), task)
        for style in ("mc", "word", "numeric"):
            apart = RiskScorer(lm, task, style=style).score(some)
            assert risks[style] == pytest.approx(apart.risk, abs=1e-4), style
        assert np.stack([risks["mc first"], risks["mc second"]], 1) == pytest.approx(
            RiskScorer(lm, task, style="mc").score(some).per_order, abs=1e-4
        )
        few = [record["few"][1] for record in study.asked_with_examples(lm, task, some, rows.shots)]
        shown = RiskScorer(lm, task, few_shot=4, examples=rows.shots, order_correction=False, balanced=False)
        shown._shots = lambda: list(rows.shots)  # in this order
        assert few == pytest.approx(shown.score(some).risk, abs=1e-4)


def test_the_study_runs_and_takes_up_what_was_kept(study, task, rows, path, data_dir, tmp_path):
    table = list(load_records("folktexts-results", data_dir=data_dir))
    opened = []

    def open_tiny():
        opened.append(likely.load(str(path), runtime="llamacpp", threads=1))
        return opened[-1]

    def run(report):
        return study.study(
            {"tiny": (24, open_tiny)}, 2, rows, task, table, sources=[Source(name="tiny", sha256="0" * 64)],
            kept=tmp_path, full=False, report=report,
        )  # fmt: skip

    lines: list[str] = []
    found = run(lines.append)
    assert found.id == "folktexts" and len(found.checks) == 20 and sum("parts" in line for line in lines) == 3
    again: list[str] = []
    same = run(again.append)
    assert same.figures == found.figures and not any("parts" in line for line in again)


# --- the authors' table -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(study, data_dir):
    return list(load_records("folktexts-results", data_dir=data_dir))


@pytest.fixture(scope="module")
def tests_of(study):
    return sys.modules["folktexts_published"]


def test_signs_are_enumerated(tests_of):
    rng = np.random.default_rng(0)
    for n in (1, 3, 8):
        d = rng.normal(size=n)
        slow = np.mean([np.dot(s, np.abs(d)) >= d.sum() - 1e-12 for s in itertools.product((-1, 1), repeat=n)])
        assert tests_of.sign_flip_p(d) == slow
    assert tests_of.sign_flip_p([1.0] * 5) == 2**-5 and tests_of.sign_flip_p([-1.0] * 5) == 1
    with pytest.raises(ValueError, match="1 to 22"):
        tests_of.sign_flip_p([])


def test_spread_of_exact_probabilities(tests_of):
    """Against draws from two normal classes: their posterior's spread, and the AUC that it has."""
    rng, auc, rate = np.random.default_rng(1), 0.75, 0.3
    distance = np.sqrt(2) * 0.6744897501960817  # Φ⁻¹(0.75)
    y = rng.random(200_000) < rate
    x = rng.normal(size=len(y)) + distance * y
    odds = rate / (1 - rate) * np.exp(distance * x - distance**2 / 2)
    assert tests_of.calibrated_spread(auc, rate) == pytest.approx((odds / (1 + odds)).std(), abs=0.003)
    assert np.mean(x[y][:50_000] > x[~y][:50_000]) == pytest.approx(auc, abs=0.012)
    assert tests_of.calibrated_spread(0.5, 0.3) == tests_of.calibrated_spread(0.4, 0.3) == 0
    assert tests_of.calibrated_spread(1 - 1e-12, 0.3) == pytest.approx(np.sqrt(0.21), abs=1e-3)


def test_what_the_table_says(tests_of, table):
    figures, checks, _ = tests_of.published(table)
    by = {(f.subject, f.quantity): f.value for f in figures}
    for subject, ece, std in (("base, letters", 0.199, 0.073), ("instruction-tuned, letters", 0.284, 0.234)):
        assert by[f"authors' table: {subject}", "ECE (likelier class)"] == pytest.approx(ece, abs=5e-4)
        assert by[f"authors' table: {subject}", "std"] == pytest.approx(std, abs=5e-4)
    assert by["authors' table: instruction-tuned, number", "ECE (likelier class)"] == pytest.approx(0.141, abs=5e-4)
    rates = tests_of.Table(table).base_rates
    assert rates["ACSIncome"] == pytest.approx(0.3679, abs=1e-4) and all(0.2 < rate < 0.5 for rate in rates.values())
    holds = [check.holds for check in checks]
    assert holds[::3] == [True, True, True, False, True] and all(holds[1::3]) and all(holds[2::3])


def test_swapped_models_support_nothing(tests_of, table):
    """Base rows under the names of instruction-tuned models, and the other way round."""
    back = {after: before for before, after in tests_of.PAIRS.items()}
    swap = {**tests_of.PAIRS, **back}
    rows = [{**row, "config_model_name": swap.get(row["config_model_name"], row["config_model_name"])} for row in table]
    tuned = {row["config_model_name"]: row["is_inst"] for row in table}
    rows = [{**row, "is_inst": tuned[row["config_model_name"]]} for row in rows]
    _, checks, _ = tests_of.published(rows)
    assert all(not check.holds and check.value > 0.95 for check in checks[3:6])


def test_the_table_alone_is_tested_anew(study, table):
    """What models answered stays; the authors' part is that of the table that is there now."""
    from scripts import ROOT

    from likely.evidence.results import read_result

    earlier = read_result(ROOT / "results" / "folktexts.json")
    rounded = [json.loads(one.model_dump_json(), parse_float=lambda digits: round(float(digits), 12))
               for one in (study.refreshed(earlier, table), earlier)]  # fmt: skip
    assert rounded[0] == rounded[1]
    fewer = [row for row in table if row["config_task_name"] != "ACSIncome"]
    changed = study.refreshed(earlier, fewer)
    for part in ("figures", "checks"):
        old, new = getattr(earlier, part), getattr(changed, part)
        assert len(old) == len(new) and [a for a, b in zip(old, new, strict=True) if a == b]
        assert all("authors' table" in str(a) for a, b in zip(old, new, strict=True) if a != b)
    assert changed.ours.split("smollm2:")[1] == earlier.ours.split("smollm2:")[1] and changed.ours != earlier.ours


def test_ranks_and_signs_by_hand(tests_of):
    """Five of five positive; four of five with the largest negative: ranks 1 to 4 of 15."""
    assert tests_of.sign_test_p([1, 2, 3, 4, 5, 0]) == tests_of.wilcoxon_p([1, 2, 3, 4, 5]) == 2**-5
    assert tests_of.sign_test_p([1, 2, 3, 4, -50]) == 6 / 32
    slow = [sum(r for r, s in zip(range(1, 6), signs, strict=True) if s) >= 10
            for signs in itertools.product((0, 1), repeat=5)]  # fmt: skip
    assert tests_of.wilcoxon_p([1, 2, 3, 4, -50]) == np.mean(slow)
    assert tests_of.sign_test_p([0.0]) == 1.0


# --- what labels mend -------------------------------------------------------------------------------------------------


def test_labels_mend_calibration_and_a_leak_would_show(study):
    rng = np.random.default_rng(0)
    truth = rng.random(1000)
    y = (rng.random(1000) < truth).astype(float)
    squeezed = 0.6 + 0.1 * truth
    mended = study.mended(squeezed, y, "platt")
    ece = study.METRICS["ece_positive"]
    assert ece(mended, y.astype(int)) < 0.06 < ece(squeezed, y.astype(int))
    other = y.copy()
    other[200:400] = 1 - other[200:400]  # a fold's own labels teach its own map nothing
    assert np.array_equal(study.mended(squeezed, other, "platt")[200:400], mended[200:400])
    assert not np.array_equal(study.mended(squeezed, other, "platt")[400:600], mended[400:600])


@pytest.mark.filterwarnings("ignore:isotonic was fitted")
def test_the_ranking_after_labels_can_fail(study):
    """Labels of folds that are alike cost no ranks; where folds differ in level, each map has that of another fold."""
    rng = np.random.default_rng(0)
    truth = rng.random(1000)
    y = (rng.random(1000) < truth).astype(float)
    kept = study.after_labels("X", 0.6 + 0.1 * truth, y).checks[1]
    assert "ranking" in kept.statement and kept.holds
    outcomes = np.concatenate([rng.random(200) < (0.9 if at % 2 else 0.1) for at in range(5)]).astype(float)
    lost = study.after_labels("X", (0.3 * outcomes + rng.random(1000)) / 1.3, outcomes).checks[1]
    assert not lost.holds and lost.value > 0.1
