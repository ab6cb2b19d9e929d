"""Calibrators: cross-fitted, kept in a file, bound to what they were fitted for."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from likely.calibration import calibrator
from likely.calibration.calibrator import Calibrator, binding, fit_calibrator, folds_of
from likely.calibration.labelled import Labelled
from likely.calibration.recalibrators.answer import AnswerLogistic, features, within_form
from likely.calibration.recalibrators.table import RECALIBRATORS
from likely.calibration.selective import certified_threshold, labels_needed
from likely.calibration.store import find, keep, named, place, why_none
from likely.calibration.threshold import abstention_rule, risk_plan, what_it_takes
from likely.errors import CapabilityError, DataError
from likely.lm.confidence import BoundPolicy, ConfidencePolicy
from likely.lm.results import Answer
from likely.metrics.bins import ece
from likely.metrics.proper import nll

ORIGIN = {
    "model": "m", "runtime": "llamacpp", "sha256": "a" * 64, "template": "t",
    "settings": {"temperature": 0.0, "system": None},
}  # fmt: skip


def classes(n=2000, seed=0, heat=2.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 4)) * 4
    y = (softmax(z / heat, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return Labelled("logits", z, y)


def answers(n=400, seed=0):
    """Right with a probability that depends on the mean log-probability alone."""
    rng = np.random.default_rng(seed)
    tokens = [-rng.exponential(rng.uniform(0.02, 1.5), size=rng.integers(1, 12)) for _ in range(n)]
    x = np.array([features(t.tolist()) for t in tokens])
    correct = (rng.random(n) < expit(3 + 5 * x[:, 1])).astype(np.int64)
    return Labelled("answer", x, correct, ORIGIN), tokens


@cache
def fitted():
    return fit_calibrator(answers()[0])


@pytest.mark.slow
def test_the_report_is_of_items_that_were_not_fitted_to():
    labelled = classes()
    made = fit_calibrator(labelled, method="temperature", folds=4)
    assert made.recalibrator.temperature_ == pytest.approx(2.0, abs=0.15)
    assert made.about["n"] == 2000 == made.after["n"] == len(made.confidence) and made.about["folds"] == 4
    every = RECALIBRATORS["temperature"].made().fit(labelled.x, labelled.labels)
    assert made.recalibrator.temperature_ == every.temperature_  # no label is wasted
    fold = folds_of(labelled.labels, 4, 0)
    assert np.ptp([np.bincount(labelled.labels[fold == k], minlength=4) for k in range(4)], axis=0).max() <= 1
    for k in range(4):
        other = RECALIBRATORS["temperature"].made().fit(labelled.x[fold != k], labelled.labels[fold != k])
        assert np.array_equal(other.predict_proba(labelled.x[fold == k]).max(axis=1), made.confidence[fold == k])
    assert made.after["ece"] < made.before["ece"] / 2 and made.after["accuracy"] == made.before["accuracy"]
    assert made.binding is None
    # noise that a map can learn by heart does not look calibrated: the held-out items see through it
    noise = Labelled("confidence", np.random.default_rng(1).random(200), np.random.default_rng(2).integers(0, 2, 200))
    learnt = fit_calibrator(noise, method="isotonic")
    assert learnt.after["nll"] > nll(learnt.predict(noise), noise.labels) + 0.003


@pytest.mark.slow
def test_a_fold_without_wrong_answers_is_no_obstacle(tmp_path):
    """20 items, 2 of them wrong: not every method can be fitted on every fold, and the file still holds JSON."""
    few = answers(400)[0]
    wrong, right = np.flatnonzero(few.labels == 0)[:2], np.flatnonzero(few.labels == 1)[:20]
    made = fit_calibrator(few.part(np.r_[wrong[:1], right]), seed=1)
    assert None in made.about["cross_validated_nll"].values()
    made.save(tmp_path / "few.json")
    assert Calibrator.load(tmp_path / "few.json").about == made.about


@pytest.mark.slow
def test_a_hundred_labels_give_an_ece_at_its_noise_floor(monkeypatch):
    """On fresh answers: mean ECE of twenty maps, and of the truth, which nothing can beat."""
    monkeypatch.setattr(calibrator, "report", lambda *given: {})  # not looked at here
    found, floor = [], []
    for seed in range(20):
        labelled, fresh = answers(100, seed)[0], answers(100, 1000 + seed)[0]
        found.append(ece(fit_calibrator(labelled).predict(fresh), fresh.labels))
        floor.append(ece(expit(3 + 5 * fresh.x[:, 1]), fresh.labels))
    assert np.mean(found) < 1.25 * np.mean(floor)


@pytest.mark.slow
def test_promises_hold_for_the_maps_that_are_handed_out(monkeypatch):
    """Of 120 sets of 200 labels: those whose promise is broken by the map of all labels, on 20,000 fresh answers."""
    monkeypatch.setattr(calibrator, "report", lambda *given: {})
    fresh, _ = answers(20_000, 99)
    broken, issued = 0, 0
    for seed in range(120):
        made = fit_calibrator(answers(200, seed)[0], method="answer")
        rule = abstention_rule(made, risk=0.25)
        given = made.predict(fresh) >= rule.threshold
        issued += bool(given.any())
        broken += bool(given.any() and 1 - fresh.labels[given].mean() > 0.25)
    assert issued > 40 and broken <= 22  # 12 expected at the most; 23 or more have a chance below 0.3 %


@pytest.mark.slow
def test_auto_takes_what_predicts_other_items_best():
    made = fitted()
    losses = made.about["cross_validated_nll"]
    assert set(losses) == {"answer", "platt", "beta"} and min(losses, key=losses.get) == "answer"
    assert made.recalibrator.name == made.about["method"] == "answer"
    assert fit_calibrator(classes(), method="auto").recalibrator.name == "temperature"  # the truth is one


@pytest.mark.slow
@pytest.mark.sampled(5)
@pytest.mark.parametrize("method", [m for m in RECALIBRATORS if m not in ("h", "answer")])
def test_every_method_is_restored_from_its_file_to_the_bit(method, tmp_path):
    wide = {"logits", "probs"} & set(RECALIBRATORS[method].inputs)
    labelled = classes(1200)
    if not wide:
        labelled = Labelled("confidence", *labelled.outcomes(labelled.predictions()))
    made = fit_calibrator(labelled, method=method)
    made.save(tmp_path / "cal.json")
    again = Calibrator.load(tmp_path / "cal.json")
    assert np.array_equal(again.predict(labelled), made.predict(labelled))
    assert again.confidence.tolist() == made.confidence.tolist() and again.after == made.after


@pytest.mark.slow
def test_answers_are_mapped_one_by_one_as_together(tmp_path):
    labelled, tokens = answers()
    made = fit_calibrator(labelled)
    made.save(tmp_path / "cal.json")
    again = Calibrator.load(tmp_path / "cal.json")
    together = made.predict(labelled)
    for i in range(0, 400, 57):
        assert again.of_answer(tokens[i].tolist()) == pytest.approx(together[i], abs=1e-12)
    assert again.of_answer(None) is None and again.of_answer([]) is None
    with pytest.raises(CapabilityError, match="classes, not answers"):
        fit_calibrator(classes(), method="temperature").of_answer([-1.0])


def test_logistic_regression_agrees_with_scikit_learn():
    labelled, _ = answers()
    ours = AnswerLogistic(ridge=1.0).fit(labelled.x, labelled.labels)
    scaled = (labelled.x - labelled.x.mean(axis=0)) / labelled.x.std(axis=0)
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(scaled, labelled.labels)
    # they leave the intercept free, ours is pulled to the log odds: of 400 answers that is little
    np.testing.assert_allclose(ours.predict_proba(labelled.x), theirs.predict_proba(scaled)[:, 1], atol=0.01)

    share = labelled.labels.mean()

    def loss(theta):
        t = theta[0] + scaled @ theta[1:]
        pull = (theta[1:] ** 2).sum() + (theta[0] - np.log(share / (1 - share))) ** 2
        return np.logaddexp(0, t).sum() - labelled.labels @ t + pull / 2

    best = minimize(loss, np.zeros(5), tol=1e-12).x
    np.testing.assert_allclose([ours.intercept_, *ours.weights_], best, atol=1e-4)
    weak, strong = (AnswerLogistic(ridge=r).fit(labelled.x, labelled.labels).weights_ for r in (1e-3, 1e6))
    assert np.abs(strong).max() < 1e-3 < np.abs(weak).max()


@pytest.mark.parametrize(
    ("labelled", "method", "message"),
    [
        (classes(19), "temperature", "too few"),
        (classes(100), "platt", "does not fit lines of logits"),
        (Labelled("confidence", np.full(50, 0.5), np.ones(50, np.int64)), "temperature", "choose one of platt"),
        (Labelled("confidence", np.full(50, 0.5), np.ones(50, np.int64)), "answer", "files of likely grade"),
    ],
)
def test_what_cannot_be_fitted(labelled, method, message):
    with pytest.raises(DataError, match=message):
        fit_calibrator(labelled, method=method)


def test_a_misspelt_method():
    with pytest.raises(ValueError, match='did you mean "isotonic"'):
        fit_calibrator(classes(100), method="isotonik")


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "damage",
    [
        lambda r: {},
        lambda r: [],
        lambda r: {**r, "likely_calibrator": 99},
        lambda r: {k: v for k, v in r.items() if k != "held_out"},
        lambda r: {**r, "held_out": {"confidence": [2.0], "correct": [1]}},
        lambda r: {**r, "recalibrator": {**r["recalibrator"], "learned": {}}},
        lambda r: {**r, "recalibrator": {**r["recalibrator"], "method": "nonsense"}},
        lambda r: {**r, "recalibrator": None},
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(damage, tmp_path):
    path = tmp_path / "cal.json"
    fitted().save(path)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=r"cal\.json|recalibrator|learned"):
        Calibrator.load(path)


# --- binding ----------------------------------------------------------------------------------------------------------


def test_only_what_changes_the_law_of_answers_binds():
    bound = binding(ORIGIN)
    same = {
        **ORIGIN,
        "model": "another name",
        "settings": {
            "temperature": 0,
            "seed": 3,
            "top_p": 1.0,
            "presence_penalty": 0,
            "logit_bias": {},
            "drafter": "auto",
        },
    }
    assert {**binding(same), "model": "m"} == bound
    for change in (
        {"sha256": "b" * 64}, {"template": "u"}, {"settings": {"temperature": 0.5}},
        {"settings": {"temperature": 0.0, "system": "Be brief."}}, {"settings": {"temperature": 0.0, "max_tokens": 9}},
    ):  # fmt: skip
        assert place(binding({**ORIGIN, **change})) != place(bound)
    server = {**ORIGIN, "sha256": "unknown", "runtime": "http://here"}
    assert binding(server) != binding({**server, "runtime": "http://there"})


def test_a_kept_one_is_found_for_its_task_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CALIBRATORS", str(tmp_path))
    made = fitted()
    path = keep(made, "capitals")
    assert find(binding(ORIGIN), "capitals").about == made.about and find(binding(ORIGIN)) is None
    assert find(binding({**ORIGIN, "template": "u"}), "capitals") is None
    assert named(path, binding(ORIGIN)).about == made.about
    with pytest.raises(DataError, match="fitted for another template"):
        named(path, binding({**ORIGIN, "template": "u"}))
    with pytest.raises(ValueError, match="task's name"):
        keep(made, "../elsewhere")


def test_what_is_not_found_says_what_is_there_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CALIBRATORS", str(tmp_path))
    other = binding({**ORIGIN, "settings": {"temperature": 0.5, "max_tokens": 9}})
    none = 'no calibrator was fitted for answers of this model with these settings (task "default")'
    assert why_none(other) == none
    keep(fit_calibrator(answers(40)[0], method="platt"), "capitals")
    near = {**ORIGIN, "settings": {"temperature": 0.5, "system": None}}
    assert why_none(other) == (
        f'{none}, but one of the task "capitals" with temperature 0 (now 0.5); max_tokens null (now 9)'
    )
    assert why_none(binding(near), "capitals").endswith(", but one with temperature 0 (now 0.5)")
    assert why_none(binding({**ORIGIN, "template": "u"}), "capitals").endswith("but one with another chat template")
    assert why_none(binding({**near, "sha256": "b" * 64})) == none


def test_an_answer_in_a_form_is_judged_among_what_the_form_allows():
    """What the model thinks of the form as such is taken out, when fitting and when asking."""
    assert within_form([-3.0, -1.0], [-2.5, -1.0]) == [-0.5, 0.0]
    assert within_form([-1.0], [-1.1]) == [0.0]  # an approximate mass
    with pytest.raises(ValueError, match="2 log-probabilities of tokens, 1 log masses"):
        within_form([-1.0, -2.0], [0.0])
    made = fit_calibrator(answers(100)[0], method="answer")
    answer = Answer("a", [1, 2], [-3.0, -1.0], -4.0, -2.0, "stop", None, 0.0, token_log_masses=[-2.5, -1.0])
    policy = BoundPolicy(ConfidencePolicy(), SimpleNamespace(info=SimpleNamespace(name="m")), {}, made, None)
    assert policy.decide(answer, lambda *_: answer).confidence == made.of_answer([-0.5, 0.0])
    assert policy.decide(replace(answer, token_log_masses=None), lambda *_: answer).confidence == made.of_answer(
        [-3, -1]
    )
    free, bound = (binding({**ORIGIN, "settings": s}) for s in ({}, {"choices": ["a", "b"]}))
    assert "probability" not in free["settings"] and bound["settings"]["probability"] == "within the form"


# --- gates ------------------------------------------------------------------------------------------------------------


def held(confidence, correct):
    made = fitted()
    return Calibrator(made.recalibrator, "answer", np.array(confidence, float), np.array(correct))


@pytest.mark.slow
def test_at_least():
    made = abstention_rule(held([0.95] * 50 + [0.5] * 50, [1] * 50 + [0] * 50), at_least=0.9)
    assert made.answers(0.9) and not made.answers(0.89) and not made.answers(None)
    # 50 of 50 right: (1 - p)^... the exact bound is delta^(1/50)
    assert f"{0.1 ** (1 / 50):.3f}" in made.guarantee and "50 reach 0.9" in made.guarantee
    assert "nothing is known" in abstention_rule(held([0.5] * 40, [1] * 40), at_least=0.9).guarantee


@pytest.mark.slow
def test_risk():
    rng = np.random.default_rng(0)
    confidence = rng.random(2000)
    made = abstention_rule(held(confidence, (rng.random(2000) < confidence).astype(int)), risk=0.2)
    assert 0.5 < made.threshold < 0.75  # E[1 - c | c >= t] = (1 - t) / 2 = .2 at t = .6
    none = abstention_rule(held(confidence, np.zeros(2000, int)), risk=0.2)
    assert none.threshold == np.inf and not none.answers(1.0)
    assert "no threshold promises at most 20 % wrong" in none.guarantee
    assert none.to_dict()["threshold"] is None and none.why(0.5) == none.guarantee
    with pytest.raises(ValueError, match="one of"):
        abstention_rule(held([0.5], [1]), risk=0.1, at_least=0.5)
    with pytest.raises(ValueError, match=r"risk must lie between 0 and 1, got 5"):
        abstention_rule(held([0.5], [1]), risk=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(about=None), "damaged"),
        (lambda r: r.update(binding="x"), "binding"),
        (lambda r: r.update(binding={}), "binding"),
        (lambda r: r.update(kind="colour"), 'kind "colour"'),
        (lambda r: [r["recalibrator"]["learned"][n].pop() for n in ("mean_", "scale_", "weights_")], "4 features"),
        (lambda r: r["held_out"].update(confidence=[2.0]), "damaged"),
    ],
)
def test_damaged_files_are_refused_when_they_are_read(tmp_path, change, said):
    made = fit_calibrator(answers()[0], method="answer")
    made.save(tmp_path / "a.json")
    record = json.loads((tmp_path / "a.json").read_text())
    change(record)
    (tmp_path / "a.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=said):
        Calibrator.load(tmp_path / "a.json")


def test_a_deeply_nested_file_is_no_calibrator(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not a calibrator"):
        Calibrator.load(tmp_path / "deep.json")


def test_what_a_gate_says_is_never_rounded_to_certainty():
    sure = np.full(30_000, 0.9)
    made = Calibrator(AnswerLogistic(), "answer", sure, np.ones(30_000, np.int64))
    told = abstention_rule(made, risk=0.0004, delta=0.001).guarantee
    assert "at most 0.04 % of cases" in told and "at most 0.1 % give a promise that fails" in told
    assert abstention_rule(made, at_least=0.9000001).why(0.9) == "confidence 0.900000 is below 0.900000"
    assert abstention_rule(made, at_least=0.9004).why(0.9) == "confidence 0.9000 is below 0.9004"


@pytest.mark.slow
def test_a_plan_says_how_many_labels_a_risk_takes():
    """With as many, about every second set certifies it; with a fifth of them hardly any."""
    rng = np.random.default_rng(0)

    def certified(n):
        confidence = rng.uniform(0.4, 1, n)
        return certified_threshold(confidence, (rng.random(n) < confidence).astype(int), risk=0.1) is not None

    needed = labels_needed(rng.uniform(0.4, 1, 2000), risk=0.1)
    assert np.mean([certified(needed) for _ in range(200)]) > 0.3
    assert np.mean([certified(needed // 5) for _ in range(200)]) < 0.2
    plan = risk_plan(held(np.linspace(0.4, 0.9, 200), np.ones(200, int)))
    assert [line["threshold"] is not None for line in plan] == [True] * 4 and plan[0]["coverage"] > 0.2
    [hard, *_, easy] = risk_plan(held(np.linspace(0.4, 0.9, 100), np.arange(100) % 2))
    assert hard["labels_needed"] is None and easy["labels_needed"] > 100  # the surest is .9


def test_what_a_risk_takes_is_said_before_anything_is_labelled():
    told = what_it_takes(0.2)
    assert "at most 20 % wrong" in told and "11 if none" in told and "\n" not in told
    with pytest.raises(ValueError, match="risk must lie between 0 and 1"):
        what_it_takes(2)
