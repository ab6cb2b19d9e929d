"""Conformal sets: the exact law of their coverage, known answers, other libraries on fixed numbers, bad input."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from likely.calibration.conformal.classification import (
    ConformalSets,
    aps_scores,
    row_uniforms,
    set_report,
)
from likely.calibration.conformal.quantiles import conformal_quantile, fewest_rows, rank_of
from likely.errors import DataError

FALSE_ALARM = 1e-7
SPLITS = 2000


def drawn(rng, n, classes=4, sharp=1.5):
    """(logits, labels) with labels drawn from softmax(z)."""
    z = sharp * rng.standard_normal((n, classes))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return z, p, (p.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1)


def slow_sets(probs, q, u, penalty, k_reg):
    """One label at a time, from the definition."""
    sets = np.zeros(probs.shape, bool)
    for i, row in enumerate(probs):
        order = sorted(range(len(row)), key=lambda k: (-row[k], k))
        before = 0.0
        for rank, k in enumerate(order, start=1):
            sets[i, k] = before + u[i] * row[k] + penalty * max(0, rank - k_reg) <= q
            before += row[k]
    return sets


# --- the quantile -----------------------------------------------------------------------------------------------------


def test_quantile_is_the_sorted_score_at_its_rank():
    scores = np.random.default_rng(0).permutation(np.arange(1, 20.0))
    for alpha in (0.05, 0.1, 0.5, 0.95):
        rank = math.ceil(round(20 * (1 - alpha), 9))
        assert conformal_quantile(scores, alpha) == sorted(scores)[rank - 1] == rank


def test_too_few_rows_give_an_infinite_quantile_and_say_so():
    assert fewest_rows(0.1) == 9 and fewest_rows(0.05) == 19
    assert conformal_quantile(np.zeros(8), 0.1) == math.inf and conformal_quantile(np.zeros(9), 0.1) == 0
    with pytest.warns(UserWarning, match="needs at least 9 rows: the quantile is infinite and holds everything"):
        found = ConformalSets(alpha=0.1).fit([[0.9, 0.1]] * 8, [0] * 8)
    assert found.predict([[1.0, 0.0]]).all()


def test_rounding_of_one_minus_alpha_does_not_cost_a_rank():
    assert (1 - 0.7) * 10 > 3 and rank_of(9, 0.7) == 3
    for n in range(1, 400):
        for percent in range(1, 100):
            assert rank_of(n, percent / 100) == -((n + 1) * (percent - 100) // 100)


# --- the law of coverage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_coverage_follows_the_beta_binomial_law(score):
    """Scores without ties: of m new rows BetaBinomial(m, k, n+1−k) are covered, k = ceil((n+1)(1−alpha))."""
    rng, n, m, alpha = np.random.default_rng(11), 37, 20, 0.2
    k, counts = rank_of(n, alpha), np.zeros(m + 1)
    _, probs, labels = drawn(rng, SPLITS * (n + m))
    values = ConformalSets(score=score).scores(probs)[np.arange(len(labels)), labels].reshape(SPLITS, n + m)
    covered = (values[:, n:] <= np.sort(values[:, :n], axis=1)[:, k - 1 : k]).sum(axis=1)
    np.add.at(counts, covered, 1)
    expected = SPLITS * stats.betabinom(m, k, n + 1 - k).pmf(np.arange(m + 1))
    few = expected < 8
    observed = np.append(counts[~few], counts[few].sum())
    p = stats.chisquare(observed, np.append(expected[~few], expected[few].sum())).pvalue
    assert p > FALSE_ALARM
    mean, error = covered.mean() / m, covered.std() / m / math.sqrt(SPLITS)
    assert 1 - alpha - 3 * error <= mean <= 1 - alpha + 1 / (n + 1) + 3 * error


@pytest.mark.parametrize("options", [{"score": "lac"}, {"score": "aps"}, {"score": "aps", "randomised": False},
                                     {"score": "raps", "penalty": 0.1, "k_reg": 1}])  # fmt: skip
def test_sets_cover_over_random_splits_of_one_pool(options):
    rng, n, alpha = np.random.default_rng(5), 50, 0.1
    _, probs, labels = drawn(rng, 400)
    held = []
    for _ in range(150):
        order = rng.permutation(400)
        fitted = ConformalSets(alpha=alpha, **options).fit(probs[order[:n]], labels[order[:n]])
        held.append(fitted.predict(probs[order[n:]])[np.arange(350), labels[order[n:]]].mean())
    mean, error = np.mean(held), np.std(held) / math.sqrt(len(held))
    assert mean >= 1 - alpha - 4 * error
    if options.get("randomised", True):
        assert mean <= 1 - alpha + 1 / (n + 1) + 4 * error


def test_a_rank_one_lower_is_caught():
    """Negative control of the law: the plain (1−alpha)-quantile of n scores covers too little."""
    rng, n, alpha = np.random.default_rng(3), 9, 0.1
    scores = rng.random((SPLITS, n + 1))
    naive = np.sort(scores[:, :n], axis=1)[:, math.ceil(n * (1 - alpha)) - 2]
    right = np.sort(scores[:, :n], axis=1)[:, rank_of(n, alpha) - 1]
    assert stats.binom.cdf((scores[:, n] <= naive).sum(), SPLITS, 1 - alpha) < FALSE_ALARM
    assert stats.binom.cdf((scores[:, n] <= right).sum(), SPLITS, 1 - alpha) > FALSE_ALARM


def test_class_conditional_sets_cover_every_class_where_plain_ones_do_not():
    rng, alpha = np.random.default_rng(2), 0.1
    z, _, labels = drawn(rng, 24_000, classes=3)
    z[:, 2] -= 2  # the model hardly believes in class 2
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    plain = ConformalSets(alpha=alpha).fit(probs[:12_000], labels[:12_000]).predict(probs[12_000:])
    by_class = ConformalSets(alpha=alpha, by="class").fit(probs[:12_000], labels[:12_000]).predict(probs[12_000:])
    new = labels[12_000:]
    assert plain[new == 2, 2].mean() < 0.8
    for k in range(3):
        assert by_class[new == k, k].mean() == pytest.approx(1 - alpha, abs=0.02)


def test_group_conditional_sets_cover_every_group():
    rng, alpha = np.random.default_rng(4), 0.1
    z, _, labels = drawn(rng, 16_000)
    groups = np.where(rng.random(16_000) < 0.2, "hard", "easy")
    labels = np.where((groups == "hard") & (rng.random(16_000) < 0.5), rng.integers(0, 4, 16_000), labels)
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    one, two = slice(8000), slice(8000, None)
    plain = ConformalSets(alpha=alpha).fit(probs[one], labels[one]).predict(probs[two])
    fitted = ConformalSets(alpha=alpha, by="group").fit(probs[one], labels[one], groups[one])
    grouped = fitted.predict(probs[two], groups[two])
    held = lambda sets, g: sets[np.arange(8000), labels[two]][groups[two] == g].mean()  # noqa: E731
    assert held(plain, "hard") < 0.87
    for g in ("easy", "hard"):
        assert held(grouped, g) == pytest.approx(1 - alpha, abs=0.025)
    assert fitted.groups_ == ["easy", "hard"] and fitted.rows_.sum() == 8000


# --- scores -----------------------------------------------------------------------------------------------------------


def test_known_answers():
    probs = np.array([[0.2, 0.5, 0.3]])
    assert aps_scores(probs) == pytest.approx(np.array([[1.0, 0.5, 0.8]]))
    assert aps_scores(probs, np.array([0.5])) == pytest.approx(np.array([[0.9, 0.25, 0.65]]))
    assert aps_scores(probs, penalty=0.1, k_reg=1) == pytest.approx(np.array([[1.2, 0.5, 0.9]]))


def test_ties_put_the_lower_class_first():
    assert aps_scores(np.array([[0.25] * 4])) == pytest.approx(np.array([[0.25, 0.5, 0.75, 1.0]]))


def test_sets_are_the_slow_ones():
    rng = np.random.default_rng(1)
    _, probs, labels = drawn(rng, 300, classes=6)
    for options in ({"randomised": True}, {"randomised": False}):
        fitted = ConformalSets(score="raps", penalty=0.05, k_reg=2, **options).fit(probs[:100], labels[:100])
        u = (
            row_uniforms(probs[100:] / probs[100:].sum(axis=1, keepdims=True), 0)
            if options["randomised"]
            else np.zeros(200)
        )
        q = fitted.quantiles_[0] + 1e-12
        assert (fitted.predict(probs[100:]) == slow_sets(probs[100:], q, u, 0.05, 2)).all()


def test_row_numbers_are_uniform_and_the_same_in_every_batch():
    rows = np.random.default_rng(0).random((20_000, 3))
    u = row_uniforms(rows, 7)
    assert stats.kstest(u, "uniform").pvalue > FALSE_ALARM
    assert (row_uniforms(rows[500:501], 7) == u[500]).all() and (row_uniforms(rows[:50], 8) != u[:50]).all()
    _, probs, labels = drawn(np.random.default_rng(1), 200)
    fitted = ConformalSets(score="aps").fit(probs[:100], labels[:100])
    assert (np.vstack([fitted.predict(probs[i : i + 1]) for i in range(100, 200)]) == fitted.predict(probs[100:])).all()


def test_empty_sets_only_where_they_are_allowed():
    probs = np.array([[0.98, 0.02]] * 30 + [[0.6, 0.4]])
    allowed = ConformalSets(alpha=0.1).fit(probs[:30], [0] * 30).predict(probs[30:])
    forbidden = ConformalSets(alpha=0.1, allow_empty=False).fit(probs[:30], [0] * 30).predict(probs[30:])
    assert allowed.tolist() == [[False, False]] and forbidden.tolist() == [[True, False]]


def test_without_a_random_number_sets_hold_the_likeliest_class_and_are_no_larger():
    """A class is held where those before it have less than the quantile: also where the first has nearly everything."""
    z, _, labels = drawn(np.random.default_rng(0), 3000, classes=10)
    probs = softmax(4 * z, axis=1)  # overconfident
    assert (probs.max(axis=1) > 0.9999).mean() > 0.02
    sizes = {}
    for randomised in (True, False):
        fitted = ConformalSets(score="aps", randomised=randomised).fit(probs[:1500], labels[:1500])
        sets = fitted.predict(probs[1500:])
        sizes[randomised] = sets.sum(axis=1).mean()
        assert set_report(sets, labels[1500:]).coverage > 0.87
    assert sets[np.arange(1500), probs[1500:].argmax(axis=1)].all()
    assert sizes[False] < 1.05 * sizes[True]


# --- other libraries --------------------------------------------------------------------------------------------------


def test_agrees_with_crepes():
    crepes = pytest.importorskip("crepes")
    _, probs, labels = drawn(np.random.default_rng(8), 300)
    one, two = slice(200), slice(200, None)
    wrapped = crepes.ConformalClassifier()
    alphas = 1 - probs
    wrapped.fit(alphas[one][np.arange(200), labels[one]], seed=0)
    theirs = wrapped.predict_set(alphas[two], confidence=0.9, smoothing=False)
    assert (ConformalSets(alpha=0.1).fit(probs[one], labels[one]).predict(probs[two]) == theirs.astype(bool)).all()
    classes = crepes.ConformalClassifier()
    classes.fit(alphas[one][np.arange(200), labels[one]], bins=labels[one], seed=0)
    by_class = ConformalSets(alpha=0.1, by="class").fit(probs[one], labels[one]).predict(probs[two])
    for k in range(4):  # their bins are given per row: one column of ours at a time
        held = classes.predict_set(alphas[two], bins=np.full(100, k), confidence=0.9, smoothing=False)
        assert (by_class[:, k] == held[:, k].astype(bool)).all()


class Given:
    """A scikit-learn classifier that answers with the probabilities it is shown."""

    def __init__(self, classes):
        self.classes_ = np.arange(classes)

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_agrees_with_mapie(score):
    classification = pytest.importorskip("mapie.classification")
    base = pytest.importorskip("sklearn.base")
    estimator = type("Shown", (Given, base.ClassifierMixin, base.BaseEstimator), {})(4)
    _, probs, labels = drawn(np.random.default_rng(8), 300)
    probs /= probs.sum(axis=1, keepdims=True)
    theirs = classification.SplitConformalClassifier(
        estimator, confidence_level=0.9, conformity_score=score, prefit=True, random_state=0
    ).conformalize(probs[:200], labels[:200])
    sets = theirs.predict_set(probs[200:])[1][:, :, 0]
    if score == "lac":
        assert (ConformalSets(alpha=0.1).fit(probs[:200], labels[:200]).predict(probs[200:]) == sets).all()
        return
    # theirs is randomised on the labelled rows (numbers from its seed) and holds the label that crosses the quantile
    u = 1 - np.random.RandomState(0).uniform(size=200)
    q = conformal_quantile(aps_scores(probs[:200], u)[np.arange(200), labels[:200]], 0.1)
    assert ((aps_scores(probs[200:], 0.0) < q) == sets).all()


def test_agrees_with_torchcp():
    scores = pytest.importorskip("torchcp.classification.score")
    torch = pytest.importorskip("torch")
    _, probs, _ = drawn(np.random.default_rng(8), 50, classes=6)
    given = torch.tensor(probs)
    theirs = scores.RAPS(score_type="identity", randomized=False, penalty=0.05, kreg=2)(given).numpy()
    assert aps_scores(probs, penalty=0.05, k_reg=2) == pytest.approx(theirs, abs=1e-9)


# --- files, reports, bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [None, "class", "group"])
def test_comes_back_from_json(by):
    _, probs, labels = drawn(np.random.default_rng(0), 60)
    groups = (["a", "b", "b"] * 20) if by == "group" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = ConformalSets(score="aps", alpha=0.05, by=by).fit(probs, labels, groups)
    again = ConformalSets.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert again == fitted and (again.predict(probs, groups) == fitted.predict(probs, groups)).all()
    assert (again.quantiles_ == fitted.quantiles_).all()


def test_a_damaged_record_is_refused():
    good = ConformalSets().fit([[0.9, 0.1]] * 20, [0] * 20).to_dict()
    for damage in ({"method": "temperature"}, {"params": {"alpa": 0.1}}, {"learned": {"groups_": []}},
                   {"learned": {**good["learned"], "quantiles_": [0.1, 0.2]}}):  # fmt: skip
        with pytest.raises(DataError):
            ConformalSets.from_dict({**good, **damage})


def test_report_counts():
    sets = np.array([[True, False], [True, True], [False, False], [False, True]])
    found = set_report(sets, [0, 0, 1, 0])
    assert (found.n, found.coverage, found.mean_size, found.empty, found.single) == (4, 0.5, 1.0, 0.25, 0.5)
    assert found.low < 0.5 < found.high and found.worst_class is None
    assert found.high == pytest.approx(stats.binomtest(2, 4).proportion_ci(0.95, "exact").high)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ConformalSets(alpha=1.5).fit([[0.5, 0.5]], [0]), "alpha must lie between 0 and 1, got 1.5"),
        (lambda: ConformalSets(score="apps").fit([[0.5, 0.5]], [0]), 'score must be "lac", "aps" or "raps"'),
        (lambda: ConformalSets(by="row").fit([[0.5, 0.5]], [0]), 'by must be None, "class" or "group"'),
        (lambda: ConformalSets(by="group").fit([[0.5, 0.5]], [0]), 'by="group" needs groups'),
        (lambda: ConformalSets().fit([[0.5, 0.5]], [0], ["a"]), "groups were given"),
        (lambda: ConformalSets().fit([[0.5, 0.6]], [0]), "row 0 sums to 1.1"),
        (lambda: ConformalSets().fit([[0.5, 0.5]], [2]), "labels: row 0 is 2"),
        (lambda: ConformalSets().fit([[1.0]], [0]), "at least 2 classes"),
        (lambda: ConformalSets().predict([[0.5, 0.5]]), "not fitted: call fit first"),
        (lambda: ConformalSets().set_params(alhpa=0.2), 'did you mean "alpha"'),
    ],
)  # fmt: skip
def test_bad_input_says_what_and_where(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_unknown_groups_and_other_class_counts_are_refused():
    probs = [[0.5, 0.5]] * 40
    grouped = ConformalSets(by="group").fit(probs, [0] * 40, ["a"] * 40)
    with pytest.raises(ValueError, match="row 1 is of group 'c', which fit has not seen"):
        grouped.predict(probs[:2], ["a", "c"])
    with pytest.warns(UserWarning, match="of class 1 is infinite"):
        by_class = ConformalSets(by="class").fit(probs, [0] * 40)
    with pytest.raises(ValueError, match="probs has 3 classes, fit saw 2"):
        by_class.predict([[0.2, 0.3, 0.5]])
