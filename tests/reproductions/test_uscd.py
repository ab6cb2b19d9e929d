"""The study of USCD on a tiny model: its numbers against a slow reading, and what does not count as support."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.audit.code.benchmarks import humaneval_problem, mbpp_problem
from likely.evidence import Source
from likely.guided.contrast import root_collision
from likely.runtimes.protocol import Want, Work
from likely.runtimes.rows import log_softmax

HUMAN = [
    humaneval_problem(
        {
            "task_id": f"Mine/{i}",
            "prompt": f'def f{i}(x):\n    """The {word}.\n    >>> f{i}(1)\n    2\n    """\n',
            "entry_point": f"f{i}",
            "canonical_solution": f"    return x + {i}\n",
            "test": "",
        }
    )
    for i, word in enumerate(["sun", "cat", "mat"])
]
MBPP = [
    mbpp_problem(
        {
            "task_id": i,
            "text": f"Add {i}.",
            "code": f"def f(x): return x + {i}",
            "test_list": [f"assert f(1) == {i + 1}"],
        }
    )
    for i in range(3)
]


@pytest.fixture(scope="module")
def study():
    return script("uscd")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("uscd") / "tiny.gguf", context=1024)
    with likely.load(str(path), runtime="llamacpp") as model:
        yield model


def test_the_study_runs(study, lm):
    found = study.study(
        lm, {"HumanEval": HUMAN, "MBPP": MBPP}, full=False, models=[Source(name="tiny", sha256="0" * 64)],
        written=2, tokens=8, report=lambda line: None,
    )  # fmt: skip
    assert len(found.checks) == 8 and found.id == "uscd"
    assert all(figure.low <= figure.value <= figure.high for figure in found.figures)
    assert any(figure.quantity == "gate open" for figure in found.figures)


def test_what_is_read_is_what_a_slow_reading_finds(study, lm):
    problem = HUMAN[0]
    found = study.read(lm, problem, (0.5,), (0.3,))
    answer = lm.tokenizer.encode(problem.reference)
    assert len(found.js) == len(answer) > 5
    for at, token in enumerate(answer):
        laws = []
        for prompt in (problem.prompt, problem.lame):
            sequence = lm.runtime.open()
            tokens = np.array([*lm.encode_prompt(prompt), *answer[:at]])
            row = lm.runtime.forward([Work(sequence, tokens, want=Want.LAST)])[0].logits[-1]
            lm.runtime.close(sequence)
            laws.append(log_softmax(row).astype(np.float64))
        p = np.exp(laws[0])
        assert found.collision[at] == pytest.approx(root_collision(p), abs=1e-3)
        assert abs(found.ranks[study.PLAIN, 0.0, 0.0][at] - (laws[0] > laws[0][token]).sum()) <= 1
        scores = np.where(p >= 0.1 * p.max(), laws[0] - 0.3 * laws[1], -np.inf)
        expected = (scores > scores[token]).sum()
        assert abs(found.ranks[study.ALWAYS, 0.0, 0.3][at] - expected) <= 1
        selective = found.ranks[study.USCD, 0.5, 0.3][at]
        same = study.ALWAYS, 0.0, 0.3
        assert selective == found.ranks[same if found.collision[at] <= 0.5 else (study.PLAIN, 0.0, 0.0)][at]


def made(study, plain, uscd, always, certain):
    """A Read with these ranks; certain: whether the gate is shut."""
    n = len(plain)
    tau, eta = study.PRESETS["uscd"].gate.tau, study.PRESETS["uscd"].eta
    ranks = {(study.PLAIN, 0.0, 0.0): plain, (study.LAME, 0.0, 0.0): plain, (study.ALWAYS, 0.0, eta): always}
    ranks[study.USCD, tau, eta] = uscd
    ranks[study.USCD, *study.FIXED], ranks[study.ALWAYS, 0.0, study.FIXED[1]] = uscd, always
    arrays = {key: np.array(value) for key, value in ranks.items()}
    return study.Read(np.where(certain, 0.99, 0.1), np.linspace(0.5, 0.1, n), arrays)


def test_a_gain_is_support_and_a_tie_is_not(study):
    tau, eta = study.PRESETS["uscd"].gate.tau, study.PRESETS["uscd"].eta
    shut = np.array([False, False, True, True])
    better = [made(study, [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 3, 3], shut)] * 8
    figures, checks, said = study.mechanism("X", better, (tau,), (eta,))
    assert all(check.holds for check in checks) and "+100.0%" in said
    tied = [made(study, [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], shut)] * 8
    assert not any(check.holds for check in study.mechanism("X", tied, (tau,), (eta,))[1])
    worse = [made(study, [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], shut)] * 8
    assert not study.mechanism("X", worse, (tau,), (eta,))[1][0].holds
    by = {(f.subject, f.quantity): f.value for f in figures}
    assert by["X: gate", "open"] == 0.5 and by["X: the model", "top-1, gate open"] == 0
    assert by["X: USCD", "top-1, everywhere"] == 1 and by["X: always contrasted", "top-1, everywhere"] == 0.5


def test_the_relation_sees_its_sign(study):
    n = 200
    falling = study.Read(np.linspace(0, 1, n), np.linspace(0.9, 0.1, n), {})
    rising = study.Read(np.linspace(0, 1, n), np.linspace(0.1, 0.9, n), {})
    assert study.relation("X", [falling])[1][0].holds and not study.relation("X", [rising])[1][0].holds


def test_pass_at_k_asks_before_it_runs_code(study, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["uscd.py", "--passk"])
    with pytest.raises(likely.errors.LikelyError, match="--run-untrusted-code"):
        study.main()


def test_problems_that_the_setting_was_chosen_on_are_left_out(study, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    every, few = study.tasks_of(None), study.tasks_of(48)
    for name, some in every.items():
        old = {p.id for p in some[:: len(some) // study.CHOSEN_ON][: study.CHOSEN_ON]}
        assert len(old) == 24 and len(few[name]) == 48 and not old & {p.id for p in few[name]}
