"""Problems, programs, verdicts and pass@k."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from likely.audit.code import benchmarks as code_eval
from likely.audit.code.benchmarks import (
    check,
    check_all,
    evaluate,
    humaneval_problem,
    mbpp_problem,
    pass_at_k,
    problems,
)

ADD = humaneval_problem(
    {
        "task_id": "Mine/0",
        "prompt": 'from typing import List\n\ndef add(xs: List[int]):\n    """\n    >>> add([1, 2])\n    3\n    """\n',
        "entry_point": "add",
        "canonical_solution": "    return sum(xs)\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    }
)
TWICE = mbpp_problem(
    {
        "task_id": 7,
        "text": "Double a number.",
        "code": "def twice(x):\n    return 2 * x",
        "test_list": ["assert twice(1) == 2", "assert twice(base) == 10"],
        "test_setup_code": "base = 5",
    }
)


# --- pass@k -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        samples = [i < c for i in range(n)]
        subsets = [any(s) for s in itertools.combinations(samples, k)]
        assert pass_at_k(n, c, k) == pytest.approx(np.mean(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased():
    """Over binomial c its mean is 1 - (1 - p)^k, which the naive 1 - (1 - c / n)^k misses."""
    from scipy.stats import binom

    n, k, p = 8, 3, 0.3
    weights = binom.pmf(np.arange(n + 1), n, p)
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(weights)) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    naive = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights))
    assert abs(naive - (1 - (1 - p) ** k)) > 0.01


@pytest.mark.parametrize(("n", "c", "k"), [(0, 0, 1), (3, 4, 1), (3, 1, 4), (3, 1, 0), (3, -1, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


# --- programs and verdicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("continuation", "passed", "why"),
    [
        ("    return sum(xs)\n", True, ""),
        ("    return max(xs, default=0)\n", False, "AssertionError"),
        ("    return sum(xs\n", False, "SyntaxError: '(' was never closed"),
        ("    raise SystemExit(0)\n", False, "ended before its tests"),
        ("    return 3\n\nimport os\nos._exit(0)\n", False, "ended before its tests"),
        ("    return undefined\n", False, "NameError: name 'undefined' is not defined"),
    ],
)
def test_verdicts(continuation, passed, why):
    found = check(ADD.program(continuation))
    assert (found.passed, found.why) == (passed, why)


def test_an_endless_answer_is_a_timeout():
    from likely.audit.code.sandbox import SandboxLimits

    found = check(ADD.program("    while True: pass\n"), SandboxLimits(wall_s=1))
    assert (found.passed, found.why) == (False, "timeout")


def test_verdicts_come_in_order():
    programs = [ADD.program("    return sum(xs)\n" if i % 3 else "    return 1\n") for i in range(7)]
    assert [v.passed for v in check_all(programs, workers=3)] == [bool(i % 3) for i in range(7)]


def test_setup_of_mbpp_and_its_prompt():
    assert check(TWICE.program(TWICE.reference)).passed
    assert not check(TWICE.program("def twice(x): return 2")).passed
    assert TWICE.prompt.endswith("assert twice(base) == 10\n[BEGIN]\n") and TWICE.name == "twice"
    assert "assert" not in TWICE.lame and "assert" not in TWICE.lame_question and "Double" in TWICE.lame_question


@pytest.mark.parametrize(
    "answer",
    [
        "Sure!\n```python\ndef add(xs):\n    return sum(xs)\n```\nIt sums. ```python\nbad(\n```",
        "```\ndef add(xs: List[int]):\n    return sum(xs)\n",
        "```py\n    return sum(xs)\n```",
        "    return sum(xs)\n",
    ],
)
def test_code_in_a_chat_answer_is_found(answer):
    assert check(ADD.program_of_answer(answer)).passed


def test_prose_alone_does_not_pass():
    assert not check(ADD.program_of_answer("I would add the numbers.")).passed


# --- a whole evaluation -----------------------------------------------------------------------------------------------


@dataclass
class Text:
    text: str


class Scripted:
    """Its i-th sample of a problem is right if i < right[prompt]."""

    def __init__(self, right):
        self.right, self.asked = right, []

    def generate(self, prompt, **options):
        self.asked.append((prompt, options))
        single = isinstance(prompt, str)
        out = []
        for p in [prompt] if single else prompt:
            good = ADD.reference if p == ADD.prompt else TWICE.reference
            texts = [Text(good if i < self.right[p] else "    pass\n") for i in range(options.get("n", 1))]
            out.append(texts if options.get("n", 1) > 1 else texts[0])
        return out[0] if single else out


def test_report_counts_what_passed():
    model = Scripted({ADD.prompt: 1, TWICE.prompt: 3})
    report = evaluate(model, [ADD, TWICE], n=4, temperature=0.8, seed=1)
    assert [s.passed for s in report.solved] == [1, 3]
    value, low, high = report.pass_at(1)
    assert value == pytest.approx(0.5) and low <= value <= high
    assert report.pass_at(2)[0] == pytest.approx((pass_at_k(4, 1, 2) + pass_at_k(4, 3, 2)) / 2)
    assert model.asked[0][1]["temperature"] == 0.8 and report.contrasted == 0


def test_a_contrast_is_made_with_each_lame_prompt():
    model = Scripted({ADD.prompt: 1, TWICE.prompt: 1})
    report = evaluate(model, [ADD, TWICE], contrast=lambda lame: ("not", lame))
    assert [options["contrast"] for _, options in model.asked] == [("not", ADD.lame), ("not", TWICE.lame)]
    assert report.contrasted == 2 and [s.passed for s in report.solved] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["humaneval", "mbpp"])
def test_reference_solutions_pass_and_others_do_not(benchmark, data_dir):
    found = problems(benchmark, limit=25, data_dir=data_dir)
    assert all(v.passed for v in check_all([p.program(p.reference) for p in found]))
    empty = {"humaneval": "    pass\n", "mbpp": "pass\n"}[benchmark]
    assert not any(v.passed for v in check_all([p.program(empty) for p in found[:8]]))


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match="humaneval or mbpp"):
        code_eval.problems("swe")
