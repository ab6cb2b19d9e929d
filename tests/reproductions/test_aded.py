"""The ADED study on a handful of invented texts: all its parts run, and a table that knows nothing is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script

from likely.evidence import Source


@pytest.fixture(scope="module")
def aded():
    return script("aded")


def invented(seed: int, count: int, length: int = 30) -> list[list[int]]:
    """Texts of one law: each token follows mostly from the two before it."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        text = rng.integers(0, 12, 2).tolist()
        while len(text) < length:
            a, b = text[-2:]
            text.append(int((3 * a + 5 * b + rng.choice([1, 2, 7], p=[0.7, 0.2, 0.1])) % 12))
        texts.append(text)
    return texts


def study(module, corpus):
    tasks = [(text[:5], text[5:]) for text in invented(1, 8)]
    model = Source(name="none", sha256="0" * 64)
    return module.study(corpus, tasks, orders=3, models=[model], others=(corpus, tasks[:3]), report=lambda line: None)


@pytest.fixture
def short(aded, monkeypatch):
    monkeypatch.setattr(aded, "CURVE", (8, 24))
    monkeypatch.setattr(aded, "RESAMPLES", 100)
    return aded


def value(evidence, subject, quantity):
    return next(f.value for f in evidence.figures if (f.subject, f.quantity) == (subject, quantity))


def test_all_parts_run_on_invented_texts(short):
    found = study(short, invented(0, 12))
    assert len(found.checks) == 6 and found.mode == "quick"
    assert value(found, short.STATIC, "24 nodes") > value(found, short.RESET, "24 nodes") > 1
    assert value(found, "search: best first", "8 nodes") > value(found, "search: greedy chain", "8 nodes")
    assert value(found, "table: 1 successors, pairs seen 1 or more times", "table") < value(
        found, "table: 12 successors, pairs seen 1 or more times", "table"
    )
    assert found.checks[1].holds  # the corpus helps


def test_a_corpus_that_says_nothing_is_noticed(short):
    found = study(short, [[20, 21, 22] * 6])
    assert value(found, short.STATIC, "24 nodes") == 1.0
    assert not found.checks[1].holds and not found.checks[2].holds  # adaptation alone is as good as both
    assert found.verdict != "reproduced"


def test_the_replays_of_a_task_keep_its_place_in_every_order(aded):
    tasks = [([1, 2], [3] * n) for n in (4, 9, 2)]
    found = aded.replays(lambda: aded.TrigramMemory(rate=0.0), tasks, [[0, 1, 2], [2, 0, 1]], 4)
    np.testing.assert_array_equal(found.calls, [[4, 9, 2]] * 2)
    assert found.tau == 1.0 and found.tokens.tolist() == [4, 9, 2]
    np.testing.assert_allclose(aded.resampled(found, found), 1.0)


def test_the_slope_is_that_of_a_rising_line(aded):
    orders = [[2, 0, 1, 3], [3, 1, 2, 0], [0, 1, 2, 3]]
    calls = np.zeros((3, 4))
    for s, order in enumerate(orders):
        calls[s, order] = 1 / (1 + 0.5 * np.arange(4))  # τ = 1 + rank / 2, for answers of one token
    mean, low, high = aded.slope(aded.Replays(np.ones(4, np.int64), calls), orders)
    assert (mean, low, high) == pytest.approx((50.0, 50.0, 50.0))


def test_our_search_keeps_as_much_as_the_authors(aded):
    pytest.importorskip("draftretriever", reason="the authors' search (wheels for CPython 3.11)")
    corpus = invented(0, 40, 60)
    tasks = [(text[:20], text[20:]) for text in invented(1, 40, 60)]
    apart = aded.official(corpus, aded.TrigramMemory.from_texts(corpus).table, tasks, 200)[-1]
    assert apart.quantity == "minus draftretriever" and apart.n == 200
    assert abs(apart.value) <= 2 * (apart.high - apart.value)  # theirs draws without a seed: about 4 standard errors
