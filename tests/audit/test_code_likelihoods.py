"""Mutants are one edit away, and their likelihoods are those of scoring them from scratch."""

from __future__ import annotations

import ast
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.audit.code.benchmarks import mbpp_problem
from likely.audit.code.likelihoods import CodeEvaluation, CodeTask, adjusted_p, code_tasks, read_task
from likely.audit.code.mutants import NEGATED, mutants, one_of_each_kind
from likely.compression.study.grid import StudyRow
from likely.metrics.paired import benjamini_hochberg
from likely.scoring.likelihood import joint_item, score_items

PROGRAM = '''\
def f(a, b):  # "a < b" 1 and 2
    """1 < 2"""
    total = 10
    while not a:
        total += b // 2
    if a <= b and (a) == 3:
        return "é", f"{a + 1}", [x for x in b if x]
    return -1 if total not in (0, 7) else a ** 2
'''


def edits(kind):
    return [m for m in mutants(PROGRAM) if m.kind == kind]


def test_every_mutant_is_one_edit_of_one_line():
    lines = PROGRAM.splitlines()
    for mutant in mutants(PROGRAM):
        changed = mutant.code.splitlines()
        assert len(changed) == len(lines)
        assert [i + 1 for i, (a, b) in enumerate(zip(lines, changed, strict=True)) if a != b] == [mutant.line]
        assert ast.dump(ast.parse(mutant.code)) != ast.dump(ast.parse(PROGRAM))


def test_kinds_of_edits():
    said = {kind: [m.code.splitlines()[m.line - 1].strip() for m in edits(kind)] for kind in
            ("operator", "constant", "condition")}  # fmt: skip
    assert said["operator"] == [
        "total -= b // 2", "total += b / 2", "if a < b and (a) == 3:", "if a <= b or (a) == 3:",
        "if a <= b and (a) != 3:", "return -1 if total not in (0, 7) else a * 2",
    ]  # fmt: skip
    assert said["constant"] == [
        "total = 11", "total = 9", "total += b // 3", "total += b // 1", "if a <= b and (a) == 4:",
        "if a <= b and (a) == 2:", "return -2 if total not in (0, 7) else a ** 2",
        "return -0 if total not in (0, 7) else a ** 2", "return -1 if total not in (1, 7) else a ** 2",
        "return -1 if total not in (0, 8) else a ** 2", "return -1 if total not in (0, 6) else a ** 2",
        "return -1 if total not in (0, 7) else a ** 3", "return -1 if total not in (0, 7) else a ** 1",
    ]  # fmt: skip
    assert said["condition"] == [
        "while a:", "if not (a <= b and (a) == 3):", 'return "é", f"{a + 1}", [x for x in b if not x]',
        "return -1 if total in (0, 7) else a ** 2",
    ]  # fmt: skip


def test_a_negated_comparison_is_its_opposite():
    for symbol, opposite in NEGATED.items():
        if symbol not in ("==", "!=", "<", "<=", ">", ">=", "in", "not in", "is", "is not"):
            continue
        found = mutants(f"if x {symbol} y:\n    pass\n")
        assert f"if x {opposite} y:\n    pass\n" in [m.code for m in found]


def test_comments_between_operands_and_broken_programs():
    assert not mutants("x = (1.5 +  # a + b\n     y)")
    with pytest.raises(SyntaxError):
        mutants("def f(:")


@given(st.integers(0, 99), st.integers(0, 1000))
def test_one_mutant_of_each_kind(value, seed):
    found = mutants(f"if x > {value}:\n    y = x + {value}\n")
    chosen = one_of_each_kind(found, seed)
    assert len({m.kind for m in chosen}) == len(chosen) == 3 and set(chosen) <= set(found)


# --- likelihoods ------------------------------------------------------------------------------------------------------


@dataclass
class Opened:
    runtime: object
    tokenizer: object


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    pytest.importorskip("torch")
    from tiny_gguf import write_tiny_llama

    from likely.models.load import load_local

    folder = tmp_path_factory.mktemp("code")
    found = []
    for seed in (0, 1):
        loaded = load_local(write_tiny_llama(folder / f"{seed}.gguf", seed=seed), runtime="torch", dtype="float32")
        found.append(Opened(loaded.runtime, loaded.tokenizer))
    return found


@pytest.fixture(scope="module")
def tasks():
    codes = ("def f(a, b):\n    if a > b:\n        return a + 1\n    return b", "def f(x):\n    return x * 2")
    records = [{"task_id": i, "text": "the cat", "code": code, "test_list": []} for i, code in enumerate(codes)]
    return [CodeTask(mbpp_problem(r), tuple(one_of_each_kind(mutants(r["code"])))) for r in records]


def test_only_what_follows_the_edit_is_run_and_sums_are_those_of_whole_programs(models, tasks):
    model = models[0]
    for task in tasks:
        reading = read_task(model.runtime, model.tokenizer, task)
        codes = [task.problem.reference, *(m.code for m in task.mutants)]
        items = [joint_item(model.tokenizer, task.problem.prompt, code)[0] for code in codes]
        expected = [sum(scores.logprobs) for scores in score_items(model.runtime, items)]
        np.testing.assert_allclose([reading.solution, *reading.mutants], expected, atol=2e-3)
        assert reading.discriminates == (expected[0] > max(expected[1:]))
        assert len(reading.rows) == len(items[0].tokens) - items[0].start


def test_a_model_against_itself_and_against_another(models, tasks):
    evaluation = CodeEvaluation(tasks)
    same = evaluation.measure(models[0], models[0])
    assert same["kl"] == pytest.approx(0, abs=1e-9) and same["nll"] == same["original_nll"]
    assert same["lost"] == same["gained"] == 0 and same["p"] == 1
    other = evaluation.compare(models[0], models[1])
    numbers = other.numbers()
    assert numbers["kl"] > 0.01 and numbers["original_nll"] == same["nll"] != numbers["nll"]
    assert numbers["kl"] == pytest.approx(other.totals("kl").sum() / other.tokens.sum())
    back = evaluation.measure(models[1], models[0])  # another original: its rows are read anew
    assert back["original_nll"] == pytest.approx(numbers["nll"]) and back["nll"] == pytest.approx(same["nll"])
    assert evaluation.key(models[0]) != CodeEvaluation(tasks[:1]).key(models[0])
    evaluation.close()
    evaluation.close()


def test_tasks_from_mbpp(data_dir):
    found = code_tasks(limit=5, data_dir=data_dir)
    assert len(found) == 5 and all(1 <= len(task.mutants) <= 3 for task in found)
    assert all("[DONE]" not in task.problem.prompt for task in found)
    failing = code_tasks(limit=1, run_mutants=True, data_dir=data_dir)
    assert failing[0].problem.id == found[0].problem.id


def test_p_values_are_adjusted_over_the_methods_of_one_set_and_draw():
    def row(method, calibration, draw, p, evaluation="code"):
        return StudyRow("m", method, calibration, draw, evaluation, {"p": p})

    rows = [row("a", "x", 0, 0.01), row("b", "x", 0, 0.04), row("a", "y", 0, 0.02), row("c", None, None, 0.5)]
    found = adjusted_p([*rows, row("a", "x", 0, None, "text")])
    np.testing.assert_allclose(found, [*benjamini_hochberg([0.01, 0.04]), 0.02, 0.5])
