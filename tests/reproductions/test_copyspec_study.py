"""The study of CopySpec on small conversations whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script

from likely.decoding.drafting.replay import Rounds
from likely.evidence import Source

SOURCE = Source(name="none", sha256="0" * 64)


@pytest.fixture(scope="module")
def copyspec():
    return script("copyspec", named="copyspec_study")


def render(messages):
    return [ord(c) for m in messages for c in f"<{m['content']}>"]


def encode(text):
    return [ord(c) for c in text]


def pairs(*, repeats):
    """Per question: a first answer of its own, and second answers that repeat half of it, or all of it."""
    rng = np.random.default_rng(0)
    rows = []
    for model in ("qwen2.5-7b", "qwen2.5-32b"):
        for number in range(6):
            first, other = ("".join(map(chr, rng.permutation(np.arange(200, 500))[:60])) for _ in range(2))
            for name, second in (("mt-bench", first[:20] + other[:40]), ("mt-redundant", first if repeats else other)):
                rows.append(
                    {"model": model, "set": name, "question_id": number, "category": "abc"[number % 3],
                     "turns": ["ask", "again"], "answers": [first, second]}
                )  # fmt: skip
    return rows


def programs():
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(6):
        code = "".join(map(chr, rng.permutation(np.arange(200, 500))[:80]))
        rows.append({"question": "q", "rounds": [code, code[:40] + "no fault", code + "<|im_end|>"]})
    return rows


def study(copyspec, *, repeats=True):
    turn_traces = copyspec.turns(pairs(repeats=repeats), render, encode)
    round_traces = copyspec.corrections(programs(), render, encode)
    return copyspec.study(
        turn_traces, round_traces, 1000, full=False, models=[SOURCE], data=[], report=lambda line: None
    )


def test_known_answers(copyspec):
    found = study(copyspec)
    value = {(f.subject, f.quantity): f.value for f in found.figures}
    for name in ("Qwen2.5-7B", "Qwen2.5-32B"):
        # 60 letters of which no three come twice: one per call.  Repeated, three come singly and then eleven per call
        assert value[f"{name}, {copyspec.FIRST}", "tokens per call"] == 1.0
        assert value[f"{name}, {copyspec.REDUNDANT}", "tokens per call"] == 60 / 9
    assert value["self-correction, round 1", "tokens per call"] == 1.0
    assert value["self-correction, round 3", "tokens per call"] == 80 / 10
    assert {f.n for f in found.figures if "first turn" in f.subject} == {6, 12}
    held = {check.statement: check.holds for check in found.checks}
    assert all(holds for text, holds in held.items() if "second turn, MT-Bench minus" in text)
    assert found.mode == "quick" and found.not_shown


def test_answers_that_repeat_nothing_do_not_pass(copyspec):
    failed = [check.statement for check in study(copyspec, repeats=False).checks if not check.holds]
    assert any("second turn, MT-Bench minus second turn, MT-Redundant" in text for text in failed)
    assert any(text.startswith("2.5 minus the best category") for text in failed)


def test_quarters_hold_every_token_and_call_once(copyspec):
    rounds = [Rounds([0, 3, 3], [0, 3, 2], 8, 0.0), Rounds([0] * 4, [0] * 4, 4, 0.0)]
    found = copyspec.quarters(rounds)
    np.testing.assert_array_equal(found.sum(axis=0), copyspec.sums(rounds))
    np.testing.assert_array_equal(found[:, :, 0], [[5, 2], [0, 0], [3, 1], [0, 0]])


def test_the_paired_difference_has_its_sign_and_its_pairs(copyspec):
    one, other = np.array([[10.0, 40.0], [5.0, 10.0]]), np.array([[5.0, 20.0], [5.0, 10.0]])
    value, low, high = copyspec.difference(one, other)
    assert value == pytest.approx(50 / 15 - 25 / 15) and (low, high) == pytest.approx((1.0, 2.0))
