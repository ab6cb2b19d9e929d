"""The ADED study on a handful of invented texts: all its parts run, and a table that knows nothing is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_trigrams import START, check_drafts, every_path, paths_of, table
from scripts import script

from likely.decoding.drafting.trigram.drafter import TrigramMemory
from likely.decoding.drafting.trigram.table import pair_of
from likely.evidence import Source


@pytest.fixture(scope="module")
def aded():
    return script("aded")


@pytest.fixture(scope="module")
def searches():
    return script("aded_search")


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


# --- the weaker searches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_full_and_greedy_by_enumeration(searches, seed):
    look = table(seed)
    everything = every_path(look, 3)
    assert set(paths_of(searches.full(look, START, budget=10_000, depth=2))) == set(everything)
    wide = paths_of(searches.full(look, START, budget=9, depth=2))
    assert [len(p) for p in wide] == sorted(len(p) for p in wide) and len(wide) == min(9, len(everything))
    chain = paths_of(searches.greedy(look, START, budget=50, depth=2))
    path: tuple[int, ...] = ()
    for got in chain:
        path = (*path, look(pair_of(*(0, 1, *path)[-2:]))[0][0])
        assert got == path
    assert len(chain) == 3 or not look(pair_of(*(0, 1, *path)[-2:]))[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000), budget=st.integers(1, 40), depth=st.integers(1, 5),
    search=st.sampled_from(["full", "greedy"]),
)  # fmt: skip
def test_every_node_is_a_trigram_and_every_prefix_a_draft(searches, seed, budget, depth, search):
    check_drafts(getattr(searches, search), seed, budget, depth)


@pytest.mark.parametrize("search", ["full", "greedy"])
def test_an_unknown_pair_gives_no_draft_and_one_successor_each_a_chain(searches, search):
    function = getattr(searches, search)
    assert function(lambda pair: ((), ()), START, budget=5, depth=4) == ([], [], [])
    chain = TrigramMemory.from_texts([list(range(10))]).table
    assert function(chain.successors, pair_of(0, 1), budget=4, depth=4)[0] == [2, 3, 4, 5]


def test_full_shows_both_successors_the_likelier_first(searches):
    def look(pair):
        return ((2, 3), (0.9, 0.1)) if pair == START else ((), ())

    assert searches.full(look, START, budget=2, depth=4)[0] == [2, 3]
