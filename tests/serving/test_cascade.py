"""Naive Bayes over independent verifiers is the exact posterior; cheap clear ones come first and later ones rest."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from likely.serving.routing import Cascade, Verifier, fit_verifier

RATES = {"syntax": (0.95, 0.5), "self-check": (0.7, 0.3), "judge": (0.9, 0.1)}  # P(yes | right), P(yes | wrong)


def exact(outcomes, prior=0.4):
    right, wrong = prior, 1 - prior
    for name, outcome in outcomes.items():
        p, q = RATES[name]
        right *= p if outcome == "yes" else 1 - p
        wrong *= q if outcome == "yes" else 1 - q
    return right / (right + wrong)


def verifier(name, cost=1.0, run=lambda task: "yes"):
    p, q = RATES[name]
    return Verifier(name, run, cost, {"yes": math.log(p / q), "no": math.log((1 - p) / (1 - q))}, bits=0.5)


def test_the_roll_up_of_independent_verifiers_is_the_exact_posterior():
    cascade = Cascade(0.4, [verifier(name) for name in RATES])
    for outcomes in itertools.product(("yes", "no"), repeat=3):
        seen = dict(zip(RATES, outcomes, strict=True))
        assert cascade.posterior(seen) == pytest.approx(exact(seen), abs=1e-12)
    assert cascade.posterior({}) == pytest.approx(0.4) and cascade.posterior({"judge": "never seen"}) == pytest.approx(
        0.4
    )


def test_ratios_are_learned_from_labelled_outcomes():
    rng = np.random.default_rng(0)
    right = rng.random(40_000) < 0.4
    p, q = RATES["judge"]
    outcomes = np.where(rng.random(len(right)) < np.where(right, p, q), "yes", "no")
    learned = fit_verifier("judge", lambda task: "yes", outcomes.tolist(), right.tolist(), cost=3.0)
    assert learned.ratios["yes"] == pytest.approx(math.log(p / q), abs=0.08)
    joint = {(o, c): (p if o else 1 - p) * 0.4 if c else (q if o else 1 - q) * 0.6 for o in (0, 1) for c in (0, 1)}
    marginal = {o: joint[o, 0] + joint[o, 1] for o in (0, 1)}
    bits = sum(v * math.log2(v / marginal[o] / (0.4 if c else 0.6)) for (o, c), v in joint.items())
    assert learned.bits == pytest.approx(bits, abs=0.02)
    blind = fit_verifier("blind", lambda task: "yes", ["yes"] * 10, right[:10].tolist(), cost=1.0)
    assert blind.bits == 0 and blind.cost_per_bit == math.inf
    few = fit_verifier("few", lambda task: "", ["a", "b"], [True, False], cost=0, smoothing=1.0)
    assert few.ratios == pytest.approx({"a": math.log(2), "b": -math.log(2)})  # (1+1)/(1+2) over (0+1)/(1+2)
    with pytest.raises(ValueError, match="outcomes"):
        fit_verifier("x", lambda task: "", [], [], cost=1)


def test_it_stops_as_soon_as_it_knows():
    ran = []

    def stage(name, cost, outcome):
        return verifier(name, cost, lambda task: ran.append(name) or outcome)

    cascade = Cascade(0.4, [stage("judge", 5.0, "yes"), stage("syntax", 0.1, "yes"), stage("self-check", 1.0, "no")],
                      low=0.36, high=0.9)  # fmt: skip
    found = cascade.verify(None)
    assert ran == ["syntax", "self-check"] and found.decision == "reject"  # the judge, who costs most, was not needed
    assert [name for name, _ in found.outcomes] == ran and found.cost == pytest.approx(
        sum({"syntax": 0.1, "self-check": 1.0, "judge": 5.0}[name] for name in ran)
    )
    assert found.p_correct == pytest.approx(exact(dict(found.outcomes)))
    assert Cascade(0.99, [stage("judge", 1, "yes")], high=0.95).verify(None).outcomes == ()  # it knew before
    with pytest.raises(ValueError, match="prior"):
        Cascade(1.0, [])
