from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from helpers_for_loops import run, toy_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of_draws import chi_square_p

from likely.decoding.accept import sampled_walk
from likely.decoding.drafting.ngram.counts import CorpusCounts, TextCounts
from likely.decoding.drafting.ngram.drafter import FLOOR, TEXT_WEIGHT, NgramModel
from likely.decoding.drafting.protocol import DraftDistribution, SamplingContext
from likely.decoding.drafting.trees.growth import grow_with
from likely.decoding.drafting.trees.shapes import Chain, ConstantBranching, StochasticBeam
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling, processed_logprobs
from likely.errors import DataError, ModelError

V = 5
TEXT = st.lists(st.integers(0, V - 1), min_size=1, max_size=30)
CORPUS = st.lists(st.lists(st.integers(0, V - 1), max_size=12), max_size=4)
GREEDY, KEYED = SamplingContext(), SamplingContext(Sampling(temperature=0.8, top_k=4, seed=5), 2)
DRAWN = SamplingContext(Sampling(temperature=0.8, seed=5), verification="rejection")


def grams(texts, n):
    return Counter(tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1))


def slow_q(corpus, text, order, discount):
    """The recursion as it is written, over lists."""

    def count(gram):
        return grams(corpus, len(gram))[gram] + TEXT_WEIGHT * grams([text], len(gram))[gram]

    def q(w, context):
        lower = 1 / V if context is None else q(w, context[1:] if context else None)
        if context is None:
            return lower
        follows = [count((*context, x)) for x in range(V)]
        if not sum(follows):
            return lower
        kept = max(follows[w] - discount, 0) / sum(follows)
        return kept + discount * sum(c > 0 for c in follows) / sum(follows) * lower

    return np.array([q(w, tuple(text[max(0, len(text) - order + 1) :] if order > 1 else ())) for w in range(V)])


@given(corpus=CORPUS, text=TEXT, path=st.lists(st.integers(0, V - 1), max_size=3), order=st.integers(1, 4))
@settings(deadline=None, max_examples=80)
def test_q_is_the_recursion_and_a_law(corpus, text, path, order):
    drafter = NgramModel.from_texts(corpus, vocab_size=V, order=order, discount=0.6).begin(text, GREEDY)
    q = np.exp(drafter.log_q().astype(np.float64))
    np.testing.assert_allclose(q, slow_q(corpus, text, order, 0.6), rtol=1e-5)
    assert abs(q.sum() - 1) < 1e-5 and (q > 0).all()
    ids, quick = drafter.likely_next(path)
    whole = np.exp(drafter.log_q(path).astype(np.float64))
    assert (np.diff(ids) > 0).all()
    np.testing.assert_allclose(quick, whole[ids], rtol=1e-5)
    assert quick.max() >= whole.max() * (1 - 1e-6)  # rows are short here: nothing is left out


def test_long_rows_keep_their_frequent_tokens():
    rng = np.random.default_rng(0)
    corpus = [rng.zipf(1.3, 3000).clip(1, 400) - 1]
    drafter = NgramModel.from_texts(corpus, vocab_size=400).begin(corpus[0][:50].tolist(), GREEDY)
    for token in corpus[0][50:90].tolist():
        ids, quick = drafter.likely_next()
        whole = np.exp(drafter.log_q().astype(np.float64))
        np.testing.assert_allclose(quick, whole[ids], rtol=1e-4)
        assert len(ids) < 100 and quick.max() >= whole.max() * (1 - 1e-6)
        drafter.observe([token])


@given(texts=CORPUS, order=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_corpus_counts_are_counts(texts, order):
    counts = CorpusCounts.of(texts, order=order, vocab_size=V)
    for n in range(1, order + 1):
        expected = grams(texts, n)
        for context in {g[:-1] for g in expected} | {(V - 1,) * (n - 1)}:
            row = counts.after(context)
            assert dict(zip(row.tokens.tolist(), row.counts.tolist(), strict=True)) == {
                g[-1]: c for g, c in expected.items() if g[:-1] == context
            }


@given(text=TEXT, more=TEXT, other=TEXT, corpus=CORPUS)
@settings(deadline=None, max_examples=60)
def test_rollback_undoes_observe_and_forks_are_apart(text, more, other, corpus):
    model = NgramModel.from_texts(corpus, vocab_size=V)

    def state(drafter):
        return drafter._text.tokens, drafter._text._follows, drafter._unseen, drafter._commonest

    drafter = model.begin(text, GREEDY)
    fork = drafter.fork(GREEDY)
    drafter.observe(more)
    assert state(drafter) == state(model.begin([*text, *more], GREEDY))
    drafter.rollback(len(more))
    assert state(drafter) == state(fork)
    fork.observe(other)
    assert state(drafter) == state(model.begin(text, GREEDY))


@pytest.mark.parametrize("draw", [GREEDY, KEYED], ids=["greedy", "sampled"])
@given(text=TEXT, budget=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_a_keyed_draft_is_a_tree_of_known_continuations_likeliest_first(draw, text, budget):
    drafter = NgramModel(V).begin(text, draw)
    draft = drafter.propose(budget)
    draft.check(budget=budget, vocab_size=V, name="ngram")
    assert draft.distribution is DraftDistribution.FIXED
    if draw is not GREEDY or not len(draft):
        return
    chances, paths = [], []
    for token, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True):
        path = paths[parent] if parent >= 0 else ()
        before = chances[parent] if parent >= 0 else 1.0
        chances.append(before * float(np.exp(drafter.log_q(path)[token])))
        paths.append((*path, token))
    assert (np.diff(chances) < 1e-6).all() and min(chances) >= FLOOR * 0.999
    assert draft.expected == pytest.approx(sum(chances), rel=1e-4)
    assert drafter.propose(1).tokens[0] == draft.tokens[0]
    assert chances[0] == pytest.approx(float(np.exp(drafter.log_q().max())), rel=1e-4)


def test_a_sampled_draft_follows_the_target_s_noise_and_truncation():
    text = [0, 1, 0, 2, 0, 3, 0]
    firsts = Counter(
        NgramModel(V).begin(text, SamplingContext(Sampling(), noise=noise)).propose(1).tokens[0].item()
        for noise in range(60)
    )
    assert set(firsts) >= {1, 2, 3}  # not always the same guess
    top = SamplingContext(Sampling(temperature=1.0, top_k=1, seed=3))
    assert NgramModel(V, order=2).begin([*text, 1, 0], top).propose(1).tokens.tolist() == [1]


# --- drawn drafts -----------------------------------------------------------------------------------------------------

SHAPES = [
    Chain(3),
    ConstantBranching((2, 2)),
    StochasticBeam(width=2, depth=2),
    ConstantBranching((2, 2), independent=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: type(s).__name__)
def test_every_node_is_drawn_from_the_law_after_its_path(shape):
    model = NgramModel(V, shape=shape)
    drafter = model.begin([0, 1, 2, 0, 1, 3, 0], DRAWN)
    draft = drafter.propose(6)
    draft.check(budget=6, vocab_size=V, name="ngram")
    assert (
        draft.distribution in model.distributions and draft.distribution is not DraftDistribution.FIXED and len(draft)
    )
    paths = {-1: ()}
    for node, (token, parent) in enumerate(zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True)):
        paths[node] = (*paths[parent], token)
    for node, row in draft.log_q.items():
        np.testing.assert_array_equal(row, processed_logprobs(drafter.log_q(paths[node]), DRAWN.sampling))
    fixed = NgramModel(V, shape=shape).begin([0, 1, 2, 0, 1, 3, 0], KEYED).propose(6)
    assert fixed.distribution is DraftDistribution.FIXED


def test_a_growth_without_room_is_no_draft():
    assert len(grow_with(Chain(3).grow(DRAWN, 5, 0), lambda path: np.zeros(V, np.float32))) == 0


P = {(): np.array([0.5, 0.3, 0.2, 0.0, 0.0])} | {(t,): np.random.default_rng(t).dirichlet(np.ones(V)) for t in range(V)}


def emitted_pairs(shape, lie=False, n=1500):
    """Two tokens of a target of law P, by rejection of the model's drafts; `lie` states a wrong q."""
    rng = np.random.default_rng(1)
    drafter = NgramModel(V, shape=shape).begin([0, 1, 2, 0, 1, 3, 0], DRAWN)
    for sample in range(n):
        draft = drafter.fork(SamplingContext(DRAWN.sampling, sample, "rejection")).propose(3).cut(1)
        if lie:
            draft.log_q[-1] = np.full(V, -np.log(V), np.float32)  # type: ignore[index]
        _, tokens = sampled_walk(draft, lambda node, path: P[path], rng.random)
        yield (*tokens, *(rng.choice(V, p=P[tuple(tokens)]) for _ in range(2 - len(tokens))))


PAIRS = {(a, b): P[()][a] * P[(a,)][b] for a in range(V) for b in range(V)}


@pytest.mark.parametrize("shape", [None, StochasticBeam(width=2, depth=1)], ids=["chain", "beam"])
def test_rejection_emits_the_target_s_law(shape):
    assert chi_square_p(emitted_pairs(shape), PAIRS) > 1e-6


def test_a_wrong_q_is_noticed():
    assert chi_square_p(emitted_pairs(None, lie=True), PAIRS) < 1e-6


@pytest.mark.parametrize("verification", ["keyed", "rejection"])
def test_the_loop_takes_it(verification):
    model = NgramModel.from_texts([[0, 1, 2, 0, 1, 2]], vocab_size=6)
    settings_ = Sampling(temperature=0.9, seed=4)
    drafted = run(toy_loop(), Request((0, 1), settings_, max_tokens=30, drafter=model, verification=verification))
    again = run(toy_loop(), Request((0, 1), settings_, max_tokens=30, drafter=model, verification=verification))
    assert drafted[0][0].tokens == again[0][0].tokens
    if verification == "keyed":
        assert run(toy_loop(), Request((0, 1), settings_, max_tokens=30))[0][0].tokens == drafted[0][0].tokens


# --- files and bad input ----------------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same_model(tmp_path):
    texts = [np.random.default_rng(i).integers(0, V, 40).tolist() for i in range(3)]
    model = NgramModel.from_texts(texts, vocab_size=V, order=3, discount=0.5)
    model.save(tmp_path / "m.ngram", tokenizer="abc")
    again = NgramModel.load(tmp_path / "m.ngram", tokenizer="abc", vocab_size=V)
    one, two = (m.begin([0, 1], GREEDY).log_q() for m in (model, again))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(DataError, match="another tokenizer"):
        NgramModel.load(tmp_path / "m.ngram", tokenizer="other", vocab_size=V)
    with pytest.raises(DataError, match=r"outside 0\.\.2"):
        NgramModel.load(tmp_path / "m.ngram", tokenizer="abc", vocab_size=3)


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("places1", np.array([0, 1]), "does not divide"),
        ("places1", np.array([1, 0, 5]), "does not divide"),
        ("counts0", np.array([0, 2]), "below 1"),
        ("tokens0", np.array([1, 0]), "not sorted"),
        ("tokens1", None, "missing"),
    ],
)
def test_damaged_files_are_refused(tmp_path, array, value, message):
    from likely.decoding.drafting.memory_file import save_memory

    counts = CorpusCounts.of([[0, 1, 0, 1, 1, 0]], order=2, vocab_size=V)
    names = [(name, k) for k in (0, 1) for name in ("tokens", "counts", "places")]
    arrays = {f"{name}{k}": getattr(counts, name)[k].astype(np.int32) for name, k in names}
    arrays[array] = value
    arrays = {name: a for name, a in arrays.items() if a is not None}
    good = {"order": "2", "discount": "0.75"}
    save_memory(tmp_path / "m", "ngram", arrays, tokenizer="abc", settings=good)
    with pytest.raises(DataError, match=message):
        NgramModel.load(tmp_path / "m", tokenizer="abc", vocab_size=V)
    save_memory(tmp_path / "m", "ngram", arrays, tokenizer="abc", settings=good | {"order": "two"})
    with pytest.raises(DataError, match="settings"):
        NgramModel.load(tmp_path / "m", tokenizer="abc", vocab_size=V)


def test_bad_input():
    for bad, word in (({"order": 0}, "order"), ({"discount": 1.0}, "discount")):
        with pytest.raises(ValueError, match=word):
            NgramModel(V, **bad)
    with pytest.raises(ValueError, match="vocab_size"):
        NgramModel(0)
    with pytest.raises(ValueError, match="order"):
        NgramModel(V, corpus=CorpusCounts.of([], order=2, vocab_size=V))
    with pytest.raises(ValueError, match=r"0\.\.4"):
        NgramModel.from_texts([[0, 7]], vocab_size=V)
    with pytest.raises(ModelError, match="token 9"):
        NgramModel(V).begin([9], GREEDY)


def test_edges():
    drafter = NgramModel(V).begin([], GREEDY)
    assert len(drafter.propose(3)) == 0
    np.testing.assert_allclose(np.exp(drafter.log_q()), 1 / V, rtol=1e-6)
    drafter.observe([2])
    assert drafter.propose(3).tokens[0] == 2 and len(drafter.propose(0)) == 0
    drafter.end()
    drafter.end()
    counts = TextCounts(2)
    counts.add(1)
    assert counts.remove() == 1 and counts._follows == {}
