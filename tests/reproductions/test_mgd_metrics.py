"""Metrics of completed code: known answers, and score@k against its definition."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location(
    "mgd_metrics", Path(__file__).parents[2] / "reproductions" / "mgd_metrics.py"
)
metrics = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(metrics)


def test_next_identifier():
    assert metrics.next_identifier_match("host, 1)", "host)")
    assert not metrics.next_identifier_match("hostName", "host")
    assert not metrics.next_identifier_match("", "host") and not metrics.next_identifier_match("host", "()")


def test_identifier_sequence_counts_the_common_beginning():
    truth = 'a.b(c, "x.y", d)  # e'
    assert metrics.identifiers(truth) == ["a", "b", "c", "d"]
    assert metrics.identifier_sequence_match("a.b(z, d)", truth) == 0.5
    assert metrics.identifier_sequence_match("a.b(c, d).more", truth) == 1.0
    assert metrics.identifier_sequence_match("z.b(c, d)", truth) == 0.0
    assert metrics.identifier_sequence_match("return a", "return b") == 0.0  # keywords do not count
    assert metrics.identifier_sequence_match("x", "1 + 2") == 1.0


def test_prefix_match_counts_every_token():
    assert metrics.language_prefix_match("f(a, c)", "f(a, b)") == 4 / 6
    assert metrics.language_prefix_match("f ( a,b )", "f(a, b)") == 1.0
    assert metrics.language_tokens("f('open") == ["f", "(", "'", "open"]
    assert metrics.language_tokens("x = [1,\n  2") == ["x", "=", "[", "1", ",", "2"]


def test_score_at_k_is_the_expected_best_of_k():
    scores = [0.2, 0.9, 0.0, 0.9, 0.5]
    for k in range(1, 6):
        slow = [max(chosen) for chosen in itertools.combinations(scores, k)]
        assert math.isclose(metrics.score_at_k(scores, k), sum(slow) / len(slow), rel_tol=1e-12)
    assert math.isclose(metrics.score_at_k(scores, 1), sum(scores) / 5)


@pytest.mark.parametrize("c", range(7))
def test_score_at_k_of_binary_scores_is_pass_at_k(c):
    scores = [1.0] * c + [0.0] * (6 - c)
    for k in range(1, 7):
        assert math.isclose(metrics.score_at_k(scores, k), 1 - math.comb(6 - c, k) / math.comb(6, k), abs_tol=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_score_at_k_refuses_other_k(k):
    with pytest.raises(ValueError, match=r"1\.\.3"):
        metrics.score_at_k([1, 0, 0], k)


def test_compilation_asks_for_new_undefined_members_only():
    def legal(code, at):
        return ["b", "c"] if code[:at].endswith("a.") else None

    assert metrics.compiles("a.b\nz.what", "a.b", legal)
    assert not metrics.compiles("a.nope", "a.b", legal)
    assert metrics.compiles("a.nope", "a.nope", legal)  # the true file has it, too: no new error
    assert not metrics.compiles("a.b(", "a.b", legal)


def test_member_accesses_have_their_places():
    code = "é.b.c(x.\n  d)\n"
    assert metrics.member_accesses(code) == [(2, "b"), (4, "c"), (code.index("d"), "d")]
    assert all(code[at:].startswith(name) for at, name in metrics.member_accesses(code))
