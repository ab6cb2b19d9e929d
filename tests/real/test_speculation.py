"""Drafted text is plain text on the real models: pairwise over drafters, runtimes, ways of choosing, batch sizes."""

from __future__ import annotations

import numpy as np
import pytest

import likely
from likely.bench.speculation import NEAR

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

PROMPTS = [
    "The ferry leaves at seven. The ferry leaves at noon. The ferry leaves at",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return",
    "Once upon a time",
    "INSERT INTO towns VALUES ('Lisbon', 545000);\nINSERT INTO towns VALUES ('Porto', 232000);\nINSERT INTO",
    "1 2 3 4 1 2 3 4 1 2",
    "Question: What is 2 + 2?\nAnswer: 4\n\nQuestion: What is 3 + 3?\nAnswer:",
    "A",
    "red green blue red green blue red",
]
GREEDY = {"temperature": 0.0}
TOKENS = 12
KEYED = {"temperature": 0.8, "top_p": 0.9, "seed": 3}
# every drafter, every way of choosing and every number of requests meet at least once
PAIRS = [
    ("lookup", GREEDY, 8), ("lookup", KEYED, 1), ("copy", GREEDY, 3), ("copy", KEYED, 8), ("suffix", GREEDY, 8),
    ("suffix", KEYED, 3), ("trigram", GREEDY, 1), ("trigram", KEYED, 8), ("ngram", GREEDY, 3), ("ngram", KEYED, 1),
    ("auto", GREEDY, 3), ("auto", KEYED, 3), ("copy+ngram", GREEDY, 1),
]  # fmt: skip


def texts(lm, count, drafter, settings, **more):
    return lm.generate(PROMPTS[:count], max_tokens=TOKENS, drafter=drafter, **settings, **more)


@pytest.fixture(scope="module")
def plain(oracle):
    """All prompts without a drafter, greedy and sampled."""
    return {settings["temperature"]: texts(oracle, len(PROMPTS), None, settings) for settings in (GREEDY, KEYED)}


@pytest.mark.parametrize(("number", "drafter", "settings", "count"), [(i, *pair) for i, pair in enumerate(PAIRS)])
def test_torch_fp32_is_identical(oracle, plain, number, drafter, settings, count):
    budget = "auto" if number % 2 else 6
    drafted = texts(oracle, count, drafter, settings, draft_budget=budget)
    for expected, found in zip(plain[settings["temperature"]][:count], drafted, strict=True):
        assert found.token_ids == expected.token_ids and found.text == expected.text
        np.testing.assert_allclose(found.token_logprobs, expected.token_logprobs, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("drafter", "settings", "count"), PAIRS)
def test_llamacpp_is_identical_in_its_invariant_mode(packaged, drafter, settings, count):
    plain = texts(packaged, count, None, settings)
    for expected, found in zip(plain, texts(packaged, count, drafter, settings, draft_budget=6), strict=True):
        assert found.token_ids == expected.token_ids
        assert found.token_logprobs == expected.token_logprobs


def test_the_target_drafting_for_itself_keeps_everything(oracle, plain):
    """A perfect draft model: each call gives the whole chain and one more."""
    from likely.decoding.drafting.model.drafter import DraftModel

    source = DraftModel(oracle.runtime)
    found = oracle.generate(PROMPTS[0], max_tokens=TOKENS, drafter=source, draft_budget=5, **GREEDY)
    assert found.token_ids == plain[0.0][0].token_ids and found.accepted == found.proposed
    assert found.tokens_per_call >= 4


def test_gemma_differs_at_near_ties_only(gemma3_path):
    """K-quants are not invariant: a difference is allowed where two tokens are nearly tied, and nowhere else."""
    from likely.bench.speculation import Task, compare

    with likely.load("gemma3", runtime="llamacpp", context=512) as lm:
        rows = compare(lm, [Task("mixed", PROMPTS[:4])], ["lookup", "suffix"], max_tokens=12, rounds=2)
    for row in rows:
        assert row.unexplained == 0 and all(gap <= NEAR for gap in row.gaps)
