"""What every recalibrator does, whatever its method and input.

scikit-learn's tools are used on them; its `check_estimator` does not apply: it feeds features of any number and any
labels, where these take one column per class (or one number per row) and labels 0..K−1, and refuse the rest.
"""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recalibrator_cases import K, bad_rows, cases, good_row, rows
from scipy.special import expit, softmax
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from likely.calibration.recalibrators.one_vs_rest import OneVsRest
from likely.calibration.recalibrators.sigmoid import Platt
from likely.calibration.recalibrators.table import RECALIBRATORS, from_dict, make
from likely.errors import DataError
from likely.metrics.proper import nll

CASES = cases()
MONOTONE = {"platt", "beta", "isotonic", "venn_abers", "scaling_binning"}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isotonic was fitted on", "ignore:h. a window of", "ignore:.*rows hold probabilities below"
)
every = pytest.mark.parametrize("case", CASES, ids=str)
of_classes = pytest.mark.parametrize("case", [case for case in CASES if case.classes], ids=str)
of_one_number = pytest.mark.parametrize("case", [case for case in CASES if not case.classes], ids=str)


@pytest.fixture(scope="module")
def fitted():
    """Each case fitted once on the same rows."""
    kept = {}

    def of(case):
        if case not in kept:
            kept[case] = case.fit()
        return kept[case]

    return of


def check_probabilities(p, case, n):
    assert p.dtype == np.float64 and np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1
    assert p.shape == ((n, K) if case.classes else (n,))
    if case.classes:
        assert p.sum(axis=1) == pytest.approx(1, abs=1e-12)


# --- what it gives ----------------------------------------------------------------------------------------------------


@every
def test_fit_returns_self_and_predictions_are_probabilities(case):
    made = case.make()
    assert made.fit(*rows(case.input, 400)) is made
    check_probabilities(made.predict_proba(rows(case.input, 50, seed=1)[0]), case, 50)


@every
def test_rows_never_seen_are_predicted_better(case, fitted):
    x, labels = rows(case.input, 1500, seed=2)
    said = {"logits": softmax(x, axis=-1), "score": expit(x)}.get(case.input, x)
    assert nll(fitted(case).predict_proba(x), labels) < nll(said, labels) - 0.03


@every
def test_a_row_is_predicted_as_it_is_alone(case, fitted):
    x = rows(case.input, 20, seed=3)[0]
    alone = np.concatenate([fitted(case).predict_proba(x[i : i + 1]) for i in range(20)])
    assert alone == pytest.approx(fitted(case).predict_proba(x), abs=1e-14)


@pytest.mark.parametrize("case", [c for c in CASES if c.method in MONOTONE], ids=str)
def test_surer_is_never_predicted_lower(case, fitted):
    x = np.sort(rows(case.input, 500, seed=4)[0])
    assert (np.diff(fitted(case).predict_proba(x)) >= 0).all()


# --- the same again ---------------------------------------------------------------------------------------------------


@every
def test_a_record_survives_json_and_predicts_the_same(case, fitted):
    record = fitted(case).to_dict()
    again = from_dict(json.loads(json.dumps(record, allow_nan=False)))
    assert type(again) is type(fitted(case)) and repr(again) == repr(fitted(case))
    assert again.to_dict() == record
    x = rows(case.input, 200, seed=5)[0]
    assert np.array_equal(again.predict_proba(x), fitted(case).predict_proba(x))


@pytest.mark.parametrize("case", [c for c in CASES if not c.draws], ids=str)
def test_order_of_rows_does_not_matter(case, fitted):
    x, labels = rows(case.input, 1200)
    order = np.random.default_rng(0).permutation(len(x))
    other = case.make().fit(x[order], labels[order])
    new = rows(case.input, 200, seed=6)[0]
    assert other.predict_proba(new) == pytest.approx(fitted(case).predict_proba(new), abs=1e-4)


@every
def test_fitted_again_it_remembers_nothing(case):
    twice = case.make().fit(*rows(case.input, 400, seed=7)).fit(*rows(case.input, 500, seed=8))
    assert twice.to_dict() == case.make().fit(*rows(case.input, 500, seed=8)).to_dict()


@every
def test_half_precision_and_lists_count_as_the_same_numbers(case):
    x, labels = rows(case.input, 400)
    half = x.astype(np.float16)
    exact = half.astype(np.float64)
    record = case.make().fit(exact, labels).to_dict()
    made = case.make().fit(half, labels.astype(np.int8))
    assert made.to_dict() == record and made.predict_proba(half).dtype == np.float64
    assert case.make().fit(exact.tolist(), labels.tolist()).to_dict() == record


# --- parameters -------------------------------------------------------------------------------------------------------


@every
def test_parameters_by_name(case):
    made = case.make()
    params = made.get_params(deep=False)
    assert params["input"] == case.input and vars(made) == params  # the constructor stores, and nothing else
    assert type(made)(**params).get_params(deep=False) == params
    assert made.set_params(**params) is made
    with pytest.raises(ValueError, match=r'has no parameter "inputs"; did you mean "input"\?'):
        made.set_params(inputs="score")
    names = {m.__name__: m for m in (*(entry.made for entry in RECALIBRATORS.values()), OneVsRest)}
    assert type(eval(repr(made), names)) is type(made) and repr(eval(repr(made), names)) == repr(made)


@every
def test_its_clone_is_unfitted_and_learns_the_same_from_rows_that_stay_as_they_are(case, fitted):
    clone = pytest.importorskip("sklearn.base").clone
    copied = clone(fitted(case))
    assert type(copied) is type(fitted(case)) and repr(copied) == repr(case.make())
    with pytest.raises(ValueError, match="not fitted"):
        copied.predict_proba(rows(case.input, 5)[0])
    x, labels = rows(case.input, 1200)
    x_before, labels_before = x.copy(), labels.copy()
    assert copied.fit(x, labels).to_dict() == fitted(case).to_dict()
    copied.predict_proba(x)
    assert np.array_equal(x, x_before) and np.array_equal(labels, labels_before)


@every
def test_unfitted_it_says_so(case):
    for call in (lambda: case.make().predict_proba(rows(case.input, 5)[0]), case.make().to_dict):
        with pytest.raises(ValueError, match=f"{type(case.make()).__name__} is not fitted: call fit first"):
            call()


@pytest.mark.parametrize("name", [name for name, entry in RECALIBRATORS.items() if entry.inputs])
def test_methods_are_made_by_name(name):
    assert make(name).name == name and make(name).input == RECALIBRATORS[name].inputs[0]
    with pytest.raises(ValueError, match="has no input"):
        make(name, input="odds").fit([0.5, 0.5], [0, 1])
    with pytest.raises(ValueError, match=f'unknown method "{name}x"; did you mean "{name}"'.replace("-", ".")):
        make(f"{name}x")


# --- what it refuses --------------------------------------------------------------------------------------------------


@every
def test_bad_rows_are_named(case, fitted):
    for bad, why in bad_rows(case.input):
        x = [good_row(case.input), bad] + [good_row(case.input)] * 60
        with pytest.raises(ValueError, match=why):
            case.make().fit(x, [0, 1] * 31)
        with pytest.raises(ValueError, match=why):
            fitted(case).predict_proba(x)


@every
def test_bad_labels_are_named(case):
    x, labels = rows(case.input, 100)
    top = K if case.classes else 2
    for bad in (top, -1, 0.5):
        wrong = labels.astype(float)
        wrong[7] = bad
        with pytest.raises(ValueError, match=rf"row 7 is {bad}: whole numbers in 0..{top - 1} are allowed"):
            case.make().fit(x, wrong)
    wrong[7] = np.nan
    with pytest.raises(ValueError, match="row 7 is not a number"):
        case.make().fit(x, wrong)
    with pytest.raises(ValueError, match="has 99 rows, the predictions have 100"):
        case.make().fit(x, labels[:99])
    with pytest.raises(ValueError, match="must be numbers"):
        case.make().fit(x, ["yes"] * 100)


@every
def test_wrong_shapes_are_refused(case, fitted):
    x, labels = rows(case.input, 100)
    for wrong in (x[None], x[0]):
        with pytest.raises(ValueError, match=r"must have \d dimension\(s\), got shape"):
            case.make().fit(wrong, labels)
        with pytest.raises(ValueError, match=r"must have \d dimension\(s\), got shape"):
            fitted(case).predict_proba(wrong)
    for call in (lambda: case.make().fit(x[:0], labels[:0]), lambda: fitted(case).predict_proba(x[:0])):
        with pytest.raises(ValueError, match="is empty"):
            call()


@of_classes
def test_one_class_is_none(case, fitted):
    for call in (lambda x: case.make().fit(x, [0] * 60), fitted(case).predict_proba):
        with pytest.raises(ValueError, match=r"has 1 column\(s\): at least 2 classes are needed"):
            call([[1.0]] * 60)


@of_classes
def test_other_numbers_of_classes_are_refused(case, fitted):
    x = [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]]
    if case.method == "temperature":  # one number serves any number of classes: questions differ in their options
        assert fitted(case).predict_proba(x).shape == (2, 4)
        return
    with pytest.raises(ValueError, match=f"{case.input} have 4 classes, {case.method} was fitted on 3"):
        fitted(case).predict_proba(x)


# --- few, and odd, rows -----------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_class_only_give_a_finite_map(case, label):
    x = rows(case.input, 400)[0]
    made = case.make().fit(x, np.full(400, label))
    p = made.predict_proba(x)
    check_probabilities(p, case, 400)
    json.dumps(made.to_dict(), allow_nan=False)
    assert (p[:, label] if case.classes else np.abs(1 - label - p)).mean() > (0.3 if case.classes else 0.9)


@every
def test_three_rows_are_fitted_or_refused_with_their_number(case):
    x, labels = rows(case.input, 3, seed=1)
    try:
        made = case.make().fit(x, labels)
    except ValueError as error:
        assert case.method in ("isotonic", "histogram", "scaling_binning", "one_vs_rest")
        assert f"got {2 if 'half' in str(error) else 3}: " in str(error)  # and what to use instead
        return
    check_probabilities(made.predict_proba(x), case, 3)


@of_one_number
def test_one_tied_value_gets_the_share_that_was_right(case):
    x = np.full(400, 0.7)
    made = case.make().fit(x, [1] * 100 + [0] * 300)
    p = made.predict_proba(x[:3])
    assert p == pytest.approx(0.25, abs=0.04 if case.method == "scaling_binning" else 0.003)  # it fits on a half
    check_probabilities(made.predict_proba([0.0, 1.0]), case, 2)


@of_classes
def test_tied_rows_are_predicted_alike(case):
    tied = np.array([[0.2, 0.3, 0.5], [0.4, 0.4, 0.2]] * 200)
    x = np.log(tied) if case.input == "logits" else tied
    p = case.make().fit(x, [0, 1, 2, 0] * 100).predict_proba(x)
    check_probabilities(p, case, 400)
    assert np.ptp(p[::2], axis=0).max() == 0 and np.ptp(p[1::2], axis=0).max() == 0


@pytest.mark.parametrize("case", [c for c in CASES if c.input == "logits"], ids=str)
def test_a_class_that_cannot_be_stays_impossible(case, fitted):
    x, labels = rows("logits", 400)
    impossible = labels == 2
    x[impossible, 0] = -np.inf
    p = case.make().fit(x, labels).predict_proba(x)
    check_probabilities(p, case, 400)
    if case.method != "one_vs_rest":  # whose maps see a confidence of 0, as of any other
        assert (p[impossible, 0] == 0).all() and (p[~impossible] > 0).all()
    x[5] = [0, 0, -np.inf]
    labels[5] = 2
    with pytest.raises(ValueError, match="row 5: its label has logit -inf"):
        case.make().fit(x, labels)


@pytest.mark.parametrize("case", [c for c in CASES if c.input == "probs"], ids=str)
def test_many_zeros_among_probabilities_are_warned_about(case):
    x, labels = rows("probs", 400)
    x[:8] = [0.0, 0.4, 0.6]
    with pytest.warns(UserWarning, match="8 of 400 rows hold probabilities below 1e-12"):
        case.make().fit(x, labels)


# --- records that were damaged ----------------------------------------------------------------------------------------


@every
def test_damaged_learned_values_are_named(case, fitted):
    record = fitted(case).to_dict()
    for name, value in record["learned"].items():
        for wrong in (None, "0.5", [[[1.0]]], {"a": 1}, float("nan"), [], [1.0, "x"], [[1.0], [1.0, 2.0]]):
            if wrong == [] and isinstance(value, list) and name == "edges_":
                continue  # a single bin has no edges
            damaged = copy.deepcopy(record)
            damaged["learned"][name] = wrong
            with pytest.raises(DataError, match=rf"learned\.{name}"):
                from_dict(damaged)
        damaged = copy.deepcopy(record)
        del damaged["learned"][name]
        with pytest.raises(DataError, match=rf"learned\.{name}"):
            from_dict(damaged)
    with pytest.raises(DataError, match=r"learned\.extra_"):
        from_dict({**record, "learned": {**record["learned"], "extra_": 1.0}})
    for wrong in (None, [], 3, "x"):
        with pytest.raises(DataError, match="learned"):
            from_dict({**record, "learned": wrong})


@every
def test_damaged_parameters_are_named(case, fitted):
    record = fitted(case).to_dict()
    for wrong in (None, "odds", 3, ["logits"]):
        with pytest.raises(DataError, match=r"params\.input: "):
            from_dict({**record, "params": {**record["params"], "input": wrong}})
    rest = {name: value for name, value in record["params"].items() if name != "input"}
    with pytest.raises(DataError, match=r"params\.input: is missing"):  # a score is not a confidence
        from_dict({**record, "params": rest})
    for unknown in ("inputs", "self", "name"):
        with pytest.raises(DataError, match=f"params: .*{unknown}"):
            from_dict({**record, "params": {**record["params"], unknown: 1}})
    with pytest.raises(DataError, match="params must be an object, got list"):
        from_dict({**record, "params": [1]})


@every
def test_records_of_other_forms_are_refused(case, fitted):
    record = fitted(case).to_dict()
    for name in record:
        with pytest.raises(DataError, match=f'must have the field "{name}"'):
            from_dict({other: value for other, value in record.items() if other != name})
    for wrong in (None, 3, ["platt"], "plat"):
        with pytest.raises(DataError, match="unknown method"):
            from_dict({**record, "method": wrong})
    for wrong in (None, 3, "platt", [record]):
        with pytest.raises(DataError, match="must be an object with method, params, learned"):
            from_dict(wrong)


def test_damaged_bases_of_one_vs_rest_are_named():
    record = OneVsRest(Platt()).fit(*rows("probs", 200)).to_dict()

    def with_base(base):
        return {**record, "params": {**record["params"], "base": base}}

    for base, why in (
        (None, "params.base must be an object"),
        ({"method": "platt"}, 'params.base must have the field "params"'),
        ({"method": "plat", "params": {"input": "confidence"}}, 'unknown method "plat"; did you mean "platt"'),
        ({"method": "one_vs_rest", "params": {}}, 'unknown method "one_vs_rest"'),
        ({"method": "platt", "params": {}}, r"params\.base\.params\.input: is missing"),
        ({"method": "platt", "params": {"input": "score"}}, r'params\.base\.params\.input: must be "confidence"'),
        ({"method": "temperature", "params": {"input": "probs"}}, r'input: must be "confidence", got "probs"'),
        ({"method": "platt", "params": {"input": "confidence", "bins": 3}}, r"params\.base\.params: .*bins"),
        ({"method": "isotonic", "params": {"input": "confidence"}}, r"learned\.maps_, class 0: learned\.a_: unknown"),
    ):
        with pytest.raises(DataError, match=why):
            from_dict(with_base(base))
    fewer = {**record["learned"], "maps_": record["learned"]["maps_"][:1]}
    with pytest.raises(DataError, match=r"learned\.maps_: must be a list of one map for each of at least 2 classes"):
        from_dict({**record, "learned": fewer})


SOMETHING = st.one_of(
    st.none(), st.booleans(), st.floats(-50, 50), st.integers(-3, 3), st.text(max_size=3),
    st.lists(st.floats(-2, 2), max_size=5), st.lists(st.lists(st.floats(-2, 2), max_size=4), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


def leaves(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*path, key))


SMALL = [c for c in CASES if c.method != "h" and c.base in (None, "platt", "histogram")]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_record_with_anything_anywhere_is_refused_or_gives_probabilities(fitted, data):
    case = data.draw(st.sampled_from(SMALL), label="case")
    record = json.loads(json.dumps(fitted(case).to_dict()))
    paths = [path for path in leaves(record) if path]
    path = data.draw(st.sampled_from([p for p in paths if len(p) < 4 or p[-1] in (0, 1)]), label="path")
    at = record
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = data.draw(SOMETHING, label="value")
    try:
        made = from_dict(record)
    except DataError:
        return
    if type(made) is type(fitted(case)) and made.input == case.input:
        x = rows(case.input, 20, seed=9)[0]
        p = made.predict_proba(x)
        assert np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1


# --- scikit-learn's tools ---------------------------------------------------------------------------------------------


@of_classes
def test_scikit_learn_cross_fits_classes_as_by_hand(case):
    x, labels = rows(case.input, 600)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    if case.method == "h":
        pytest.skip("minutes of training")
    found = cross_val_predict(case.make(), x, labels, cv=folds, method="predict_proba")
    for train, test in folds.split(x, labels):
        assert np.array_equal(found[test], case.make().fit(x[train], labels[train]).predict_proba(x[test]))
    made = case.make().fit(x, labels)
    assert made.classes_.tolist() == list(range(K))
    assert np.array_equal(made.predict(x), made.predict_proba(x).argmax(axis=1))


def test_scikit_learn_cross_fits_one_number():
    x, labels = rows("confidence", 300)
    folds = StratifiedKFold(3)
    found = cross_val_predict(Platt(), x, labels, cv=folds, method="predict_proba")
    for train, test in folds.split(x, labels):
        assert np.array_equal(found[test], Platt().fit(x[train], labels[train]).predict_proba(x[test]))
    assert np.array_equal(Platt().fit(x, labels).predict([0.01, 0.99]), [0, 1])


def test_a_map_ends_a_pipeline_whose_settings_are_searched():
    probs, labels = rows("probs", 400)
    line = Pipeline([("log", FunctionTransformer(lambda p: np.log(np.maximum(p, 1e-12)))), ("map", make("vector"))])
    search = GridSearchCV(line, {"map__l2": [1e-3, 1e3]}, scoring="neg_log_loss", cv=3).fit(probs, labels)
    by_hand = [
        np.mean([
            -nll(make("vector", l2=l2, input="probs").fit(probs[a], labels[a]).predict_proba(probs[b]), labels[b])
            for a, b in StratifiedKFold(3).split(probs, labels)
        ]) for l2 in (1e-3, 1e3)
    ]  # fmt: skip
    assert search.cv_results_["mean_test_score"] == pytest.approx(by_hand, abs=1e-9)
    assert search.best_params_ == {"map__l2": [1e-3, 1e3][int(np.argmax(by_hand))]}
    assert is_classifier(line) and search.predict(probs).shape == (400,)


def test_parameters_of_a_base_are_reached_through_it():
    made = OneVsRest(make("histogram"))
    assert made.get_params()["base__bins"] == 15 and "base__bins" not in made.get_params(deep=False)
    assert made.set_params(base__bins=5).base.bins == 5
    for name in ("base__bin", "input__x", "bas"):
        with pytest.raises(ValueError, match="has no parameter"):
            made.set_params(**{name: 1})
    probs, labels = rows("probs", 600)
    search = GridSearchCV(made, {"base__bins": [2, 5]}, scoring="neg_log_loss", cv=2).fit(probs, labels)
    assert search.best_estimator_.base.bins in (2, 5) and made.base.bins == 5


def test_what_is_not_fitted_has_no_classes():
    with pytest.raises(NotFittedError):
        check_is_fitted(make("temperature"))
    assert not hasattr(make("temperature"), "classes_")
    check_is_fitted(make("temperature").fit(*rows("logits", 100)))
