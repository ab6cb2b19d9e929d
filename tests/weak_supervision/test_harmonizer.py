"""The harmonizer against closed forms and scikit-learn, on a model whose errors are known, and on bad input."""

from __future__ import annotations

import json
import warnings
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from likely.calibration.selective import certified_threshold, risk_coverage
from likely.errors import DataError
from likely.weak_supervision.harmonizer import Harmonizer, TfIdf, usable_sources
from likely.weak_supervision.labelling_rules import Votes
from likely.weak_supervision.risk import polar, risk_quality

EXACT = {"encoder": "given", "hidden": 0, "weight_decay": 0.0, "validation": 0.0, "batch": 10**6, "epochs": 400,
         "learning_rate": 0.1}  # fmt: skip
TEXTS = ["free prize call now", "see you at home", "win a free prize", "home by nine ok", "call now win", "ok see you"]


def tabular(votes, classes=2, **how):
    """h of a free table: one feature per text, so that every text has its own minimiser."""
    eye = np.eye(len(votes))
    return Harmonizer(classes, **{**EXACT, **how}).fit(eye, votes).predict_proba(eye)


def test_one_source_and_linear_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    votes = (x @ [1.0, -2.0, 0.5] + rng.logistic(size=300) > 0).astype(int)
    votes[rng.random(300) < 0.2] = -1
    ours = Harmonizer(2, **EXACT, scalarizer="linear").fit(x, votes[:, None]).predict_proba(x)
    seen = votes >= 0
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[seen], votes[seen]).predict_proba(x)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.slow
def test_one_source_and_a_free_table_is_its_vote_frequencies():
    groups = np.repeat([0, 1], 50)
    votes = np.where(np.arange(100) % 50 < np.where(groups == 0, 10, 35), 1, 0)[:, None]
    h = Harmonizer(2, **EXACT, scalarizer="linear").fit(np.eye(2)[groups], votes).predict_proba(np.eye(2))
    np.testing.assert_allclose(h[:, 1], [0.2, 0.7], atol=1e-4)


@pytest.mark.slow
def test_several_sources_linear_and_a_free_table_is_the_vote_share():
    rng = np.random.default_rng(1)
    y = np.arange(40) % 2
    votes = np.column_stack([np.where(rng.random(40) < 0.75, y, 1 - y) for _ in range(3)])
    votes[rng.random(votes.shape) < 0.2] = -1
    votes[:4] = [[0, 1, -1], [0, 0, 1], [-1, -1, 1], [0, 1, 1]]
    votes = votes[(votes >= 0).any(axis=1)]
    found = tabular(votes, scalarizer="linear", deduplicate=False)
    shares = Votes(votes, ("a", "b", "c"), ("0", "1")).shares()
    np.testing.assert_allclose(found, np.clip(shares, 0.02, 0.98), atol=0.021)  # shares of 0 and 1 are never reached
    inner = (shares > 0).all(axis=1)
    np.testing.assert_allclose(found[inner], shares[inner], atol=1e-3)


def test_two_sources_of_equal_accuracy():
    """Of y balanced and sources right with probability a: where they agree, h = their vote; where not, 1/2."""
    rows = np.array(list(product([0, 1], repeat=2)))
    h = tabular(rows, scalarizer="linear")
    np.testing.assert_allclose(h[[1, 2]], 0.5, atol=1e-6)
    assert h[0, 0] > 0.97 and h[3, 1] > 0.97


@pytest.mark.sampled(2)
@pytest.mark.parametrize("scalarizer", ["quadratic", "euclidean", "chebyshev"])
def test_a_free_table_finds_the_minimum_of_each_scalarizer(scalarizer):
    """Two votes for 0, one for 1: the minimum over p by scipy."""
    combine = {
        "quadratic": lambda a, b: (2 * a + b) ** 2,
        "euclidean": lambda a, b: np.sqrt(2 * a * a + b * b),
        "chebyshev": max,
    }[scalarizer]
    best = minimize_scalar(lambda p: combine(-np.log(p), -np.log1p(-p)), bounds=(0.01, 0.99), method="bounded").x
    votes = np.array([[0, 0, 1], [1, 1, 0]])
    h = tabular(votes, scalarizer=scalarizer, deduplicate=False, learning_rate=0.01)
    np.testing.assert_allclose([h[0, 0], h[1, 1]], best, atol=0.01)


def synthetic(seed=0, n=3000):
    """x on 40 places; the model's error rate e(x) runs from 0.02 to 0.6; five rules, right 3 times of 4, on a third."""
    rng = np.random.default_rng(seed)
    place = rng.integers(40, size=n)
    error = np.linspace(0.02, 0.6, 40)[rng.permutation(40)]
    y = (rng.permutation(40) % 2)[place]
    answers = np.where(rng.random(n) < error[place], 1 - y, y)
    rules = [np.where(rng.random(n) < 0.75, y, 1 - y) for _ in range(5)]
    rules = [np.where(rng.random(n) < 1 / 3, rule, -1) for rule in rules]
    return np.eye(40)[place], error[place], y, answers, np.column_stack([answers, *rules])


@pytest.mark.slow
@pytest.mark.parametrize("scalarizer", ["linear", "quadratic", "euclidean", "chebyshev"])
def test_the_risk_follows_the_known_error_rate(scalarizer):
    x, error, y, answers, votes = synthetic()
    made = Harmonizer(2, "given", scalarizer=scalarizer, learning_rate=0.01).fit(x[:2000], votes[:2000])
    zeta = made.polar(x[2000:], answers[2000:])
    assert zeta.kind == "probability" and zeta.higher_is == "less_certain" and not zeta.missing.any()
    assert ((zeta.values >= 0) & (zeta.values <= 1)).all()
    place = x[2000:].argmax(axis=1)
    mean = np.bincount(place, zeta.values) / np.bincount(place)
    rate = np.bincount(place, error[2000:]) / np.bincount(place)
    assert spearmanr(mean, rate).statistic > 0.7
    assert risk_quality(zeta.values, answers[2000:] != y[2000:]).auroc > 0.75


def test_polar_goes_through_selective():
    x, _, y, answers, votes = synthetic(1)
    zeta = Harmonizer(2, "given", learning_rate=0.01).fit(x[:1000], votes[:1000]).polar(x[1000:], answers[1000:])
    right = (answers == y)[1000:]
    found = certified_threshold(zeta.confidence(), right, risk=0.15, delta=0.1, seed=0)
    assert found is not None and found.coverage > 0.2 and found.errors / found.n <= 0.15
    curve = risk_coverage(zeta.certainty, right)
    half = np.searchsorted(curve.coverage, 0.5)
    assert curve.risk[half] < 0.6 * curve.risk[-1]


def test_zeta_is_bounded_exact_and_zero_only_when_all_mass_is_on_the_answer():
    probs = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5], [1 - 1e-15, 1e-15, 0.0], [0.2, 0.3, 0.5]])
    found = polar(probs, [0, 0, 2, 0, -1])
    np.testing.assert_allclose(found.values, [0, 1, 0.5, 1e-15, 0.5], rtol=1e-6)
    assert found.values[0] == 0 and found.values[3] > 0 and "1 of 5 answers missing" in found.note
    rng = np.random.default_rng(0)
    many = rng.dirichlet(np.full(4, 0.05), size=2000)
    values = polar(many, rng.integers(-1, 4, size=2000)).values
    assert ((values >= 0) & (values <= 1)).all()
    with pytest.raises(ValueError, match="row 0"):
        polar(probs, [3, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"answers must be \(5,\)"):
        polar(probs, [0])


def test_risk_quality_by_hand():
    risk = np.repeat(np.linspace(0.05, 0.95, 10), 20)
    exact = np.concatenate([np.arange(20) < round(20 * r) for r in np.linspace(0.05, 0.95, 10)])
    found = risk_quality(risk, exact)
    assert found.ece == pytest.approx(0, abs=1e-12) and found.r2 == pytest.approx(1) and found.top_decile == 0.95
    flat = risk_quality(np.full(20, 0.5), np.arange(20) < 5)
    assert np.isnan(flat.r2) and flat.auroc == 0.5 and flat.top_decile == 0.25  # in whatever order tied items stand
    tied = risk_quality([0.9, *[0.5] * 4, *[0.1] * 15], [0, 1, 1, 0, 0, *[0] * 15])
    assert tied.top_decile == (0 + 0.5) / 2
    assert np.isnan(risk_quality([0.1, 0.2], [0, 0]).auroc)
    backwards = risk_quality(risk, ~exact)
    assert backwards.r2 == pytest.approx(1) and backwards.auroc < 0.5  # r2 has no sign; auroc has


def test_a_constant_source_and_a_twin_are_left_out_with_a_warning():
    votes = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 0, 0], [0, 1, -1, 0, 1], [1, 1, 0, 0, 0]])[:, [0, 2, 0, 3, 4]]
    names = ("model", "a", "copy", "always", "b")
    with pytest.warns(UserWarning) as said:
        assert usable_sources(votes, names).tolist() == [0, 1, 4]
    assert [str(w.message) for w in said] == [
        "left out, one class for every text: always",
        "left out, identical votes: copy (as model)",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_sources(votes[:, [0, 1, 2]], names[:3], deduplicate=False).tolist() == [0, 1, 2]
        assert usable_sources(np.column_stack([votes[:, 0], [-1] * 4]), ("a", "silent")).tolist() == [0]
    with pytest.raises(ValueError, match="every source that votes gives one class"):
        usable_sources(np.zeros((4, 2), int), ("a", "b"))


def test_features_that_are_not_finite_are_refused_at_fit_and_later():
    x, votes = np.eye(4), np.array([[0], [1], [0], [1]])
    fitted = Harmonizer(2, "given", epochs=1).fit(x, votes)
    broken = x.copy()
    broken[2, 1] = np.inf
    for refused in (
        lambda: Harmonizer(2, "given").fit(broken, votes),
        lambda: Harmonizer(2, lambda texts: broken).fit(["a", "b", "c", "d"], votes),
        lambda: fitted.predict_proba(broken),
    ):
        with pytest.raises(ValueError, match="features: row 2 holds a value that is not finite"):
            refused()


@pytest.mark.parametrize(("validation", "epochs"), [(0, None), (0, 1), (0.25, None)])
def test_a_learning_rate_that_leaves_nothing_finite_is_named(validation, epochs):
    x, votes = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40)[:, None] % 2
    with pytest.raises(ValueError, match=r"loss is not finite .* \(learning_rate 1e\+200\): lower"):
        Harmonizer(2, "given", learning_rate=1e200, validation=validation, epochs=epochs).fit(x, votes)


def test_a_rule_of_one_class_that_is_mostly_silent_stays():
    votes = np.column_stack([np.arange(100) % 2, np.where(np.arange(100) < 30, 1, -1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_sources(votes, ("model", "rule")).tolist() == [0, 1]


def test_a_collapsed_harmonizer_warns():
    votes = np.array([[1, -1]] * 30 + [[1, 0]] + [[0, -1]])
    with pytest.warns(UserWarning, match="gives class 1 to every text"):
        Harmonizer(2, "given", validation=0.0, epochs=3).fit(np.ones((32, 1)), votes)


@pytest.mark.slow
def test_duplicates_count_twice_only_if_asked():
    votes = np.array([[0, 0, 1]] * 10 + [[1, 1, 0]] * 10)
    groups = np.repeat(np.eye(2), 10, axis=0)
    with pytest.warns(UserWarning, match="identical votes"):
        once = Harmonizer(2, **EXACT, scalarizer="linear").fit(groups, votes).predict_proba(np.eye(2))
    twice = Harmonizer(2, **EXACT, scalarizer="linear", deduplicate=False).fit(groups, votes).predict_proba(np.eye(2))
    np.testing.assert_allclose([once[0, 0], twice[0, 0]], [1 / 2, 2 / 3], atol=1e-3)


def test_weights_shift_the_share():
    votes = np.array([[0, 1]] * 4 + [[1, 0]] * 4)
    groups = np.repeat(np.eye(2), 4, axis=0)
    h = Harmonizer(2, **EXACT, scalarizer="linear", weights=[3, 1]).fit(groups, votes).predict_proba(np.eye(2))
    np.testing.assert_allclose(h[:, 0], [0.75, 0.25], atol=1e-3)


VOTES = np.array([[1, 1], [0, -1], [1, -1], [0, 0], [1, 1], [-1, 0]])


@pytest.mark.slow
def test_same_seed_same_numbers_and_files_that_come_back(tmp_path):
    made = Harmonizer(("ham", "spam"), validation=0.0).fit(TEXTS, VOTES)
    again = Harmonizer(("ham", "spam"), validation=0.0).fit(TEXTS, VOTES)
    np.testing.assert_array_equal(made.predict_proba(TEXTS), again.predict_proba(TEXTS))
    made.save(tmp_path / "h")
    assert sorted(p.name for p in (tmp_path / "h").iterdir()) == ["harmonizer.json", "harmonizer.safetensors"]
    loaded = Harmonizer.load(tmp_path / "h")
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), made.predict_proba(TEXTS))
    assert loaded.get_params() == {**made.get_params(), "classes": ["ham", "spam"]} and loaded.curve_ == made.curve_
    assert (loaded.predict(["free prize", "see you home"]) == [1, 0]).all()


def test_an_encoder_of_ones_own(tmp_path):
    def lengths(texts):
        return np.array([[len(t), t.count("e")] for t in texts])

    made = Harmonizer(2, lengths, validation=0.0, epochs=5).fit(TEXTS, VOTES)
    made.save(tmp_path)
    np.testing.assert_array_equal(
        Harmonizer.load(tmp_path, encoder=lengths).predict_proba(TEXTS), made.predict_proba(TEXTS)
    )
    with pytest.raises(DataError, match=r"give load\(..., encoder=\)"):
        Harmonizer.load(tmp_path)


def test_broken_files_are_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        Harmonizer.load(tmp_path)
    Harmonizer(2, validation=0.0, epochs=1).fit(TEXTS, VOTES).save(tmp_path)
    record = json.loads((tmp_path / "harmonizer.json").read_text())
    for change in (
        {"version": 9},
        {"terms": record["terms"][1:]},
        {"params": {}},
        {"params": {**record["params"], "x": 1}},
    ):
        (tmp_path / "harmonizer.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(DataError):
            Harmonizer.load(tmp_path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"scalarizer": "quadratik"}, 'unknown scalarizer "quadratik"; did you mean "quadratic"'),
        ({"encoder": "bert"}, 'encoder must be "tfidf", "given" or a function'),
        ({"weights": [1]}, "weights must be 2 numbers"),
        ({"weights": [1, 0]}, "weights must be 2 numbers > 0"),
        ({"validation": 1.0}, "validation must lie in"),
        ({"epochs": 0}, "epochs must be > 0"),
        ({"scalarizer": "chebyshev", "normalize_by_votes": True}, "no meaning for chebyshev"),
    ],
)
def test_wrong_settings(how, said):
    with pytest.raises(ValueError, match=said):
        Harmonizer(2, **how).fit(TEXTS, VOTES)


def test_wrong_data():
    with pytest.raises(ValueError, match="6 texts, but votes of 5"):
        Harmonizer(2).fit(TEXTS, VOTES[:5])
    with pytest.raises(ValueError, match="no source votes"):
        Harmonizer(2).fit(TEXTS, np.full((6, 2), -1))
    with pytest.raises(ValueError, match="not fitted"):
        Harmonizer(2).predict_proba(TEXTS)


def test_tfidf_weighs_as_scikit_learn_does():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [*TEXTS, "Free, free, FREE! win £5?", ""]
    ours = TfIdf(at_least=1).fit(texts)
    theirs = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\w\w+|[^\w\s]", lowercase=True
    ).fit(texts)
    assert ours.terms_ == theirs.get_feature_names_out().tolist()
    np.testing.assert_allclose(ours.transform(texts).toarray(), theirs.transform(texts).toarray(), atol=1e-12)
    few = TfIdf(at_least=2, most=3).fit(texts)
    assert len(few.terms_) == 3 and "free" in few.terms_
    with pytest.raises(ValueError, match="lower at_least"):
        TfIdf(at_least=9).fit(texts)
