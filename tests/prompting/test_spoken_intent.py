"""From transcripts to answers: the two ways to combine, their limits, the scale of scores, and option scores."""

from __future__ import annotations

import json
import zlib
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.calibration.calibrator import fit_calibrator
from likely.calibration.labelled import read_labelled
from likely.prompting.speech.intent import (
    COMBINATIONS,
    KAPPAS,
    SpokenIntentClassifier,
    best_kappa,
    training_pairs,
)
from likely.prompting.speech.nbest import NBest, SpokenTask, nbest_prompt, transcript_prompt

TASK = SpokenTask("", ("light", "music", "no"), listed=False)
HEARD = [
    NBest(["turn on the light", "turn on the night", "burn on the light"], [-1.0, -2.0, -4.0]),
    NBest(["play sum music", "play some music"], [-1.0, -1.2]),
    NBest(["hello", "Hello <sil>"], [0.0, 0.0]),
    NBest([], []),
]


class Fake:
    """A model whose log-probabilities are fixed numbers of prompt and answer; it counts what it is asked."""

    def __init__(self):
        self.asked = []

    def score_pairs(self, pairs, **options):
        self.asked += pairs
        return [
            SimpleNamespace(sequence_logprob=logprob(p, a), token_logprobs=[logprob(p, a) / 2] * 2) for p, a in pairs
        ]


def logprob(prompt, answer):
    return -0.1 - zlib.crc32(f"{prompt}|{answer}".encode()) % 1000 / 250


def law(prompt, norm="sum"):
    """p(answer | prompt) over the task's answers, the slow way."""
    values = [logprob(prompt, f" {a}") / {"sum": 1, "token": 2, "byte": len(a.encode())}[norm] for a in TASK.answers]
    return np.exp(values) / np.exp(values).sum()


@pytest.mark.parametrize("norm", ["sum", "token", "byte"])
def test_the_ways_are_what_they_say(norm):
    found = {
        combine: SpokenIntentClassifier(Fake(), TASK, n=2, combine=combine, kappa=0.5, norm=norm).predict_proba(HEARD)
        for combine in COMBINATIONS
    }
    for i, nbest in enumerate(HEARD):
        texts, posteriors = nbest.distinct(2, kappa=0.5)
        mixed = sum(p * law(transcript_prompt(TASK, t), norm) for t, p in zip(texts, posteriors, strict=True))
        assert found["marginal"][i] == pytest.approx(mixed)
        assert found["prompt"][i] == pytest.approx(law(nbest_prompt(TASK, nbest, 2), norm))
    assert all(table.sum(axis=1) == pytest.approx(1) for table in found.values())


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_with_one_transcript_all_ways_are_the_one_best_prediction(combine):
    expected = [law(transcript_prompt(TASK, nbest.distinct(1)[0][0])) for nbest in HEARD]
    found = SpokenIntentClassifier(Fake(), TASK, n=1, combine=combine).predict_proba(HEARD)
    assert found == pytest.approx(np.array(expected))


def test_a_posterior_on_one_transcript_is_the_one_best_prediction():
    sure = [NBest(n.hyps, [0.0, *[-np.inf] * (len(n.hyps) - 1)]) if n.hyps else n for n in HEARD]
    one = SpokenIntentClassifier(Fake(), TASK, n=1).predict_proba(sure)
    assert SpokenIntentClassifier(Fake(), TASK, combine="marginal").predict_proba(sure) == pytest.approx(one)
    sharp = SpokenIntentClassifier(Fake(), TASK, combine="marginal", kappa=1e4)
    assert sharp.predict_proba(HEARD) == pytest.approx(one)
    assert np.abs(SpokenIntentClassifier(Fake(), TASK, combine="marginal").predict_proba(HEARD) - one).max() > 0.01


@given(st.floats(-100, 100), st.sampled_from(COMBINATIONS), st.integers(1, 5))
def test_a_constant_added_to_the_scores_changes_nothing(constant, combine, n):
    classifier = SpokenIntentClassifier(Fake(), TASK, n=n, combine=combine, style="scores")
    shifted = [NBest(h.hyps, tuple(s + constant for s in h.logscores)) for h in HEARD]
    assert classifier.predict_proba(shifted) == pytest.approx(classifier.predict_proba(HEARD), abs=1e-9)


def test_each_prompt_is_computed_once():
    fake = Fake()
    SpokenIntentClassifier(fake, TASK, combine="marginal").predict_proba([*HEARD, *HEARD])
    assert len(fake.asked) == len(set(fake.asked)) == len(TASK.answers) * (3 + 2 + 1 + 1)


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_option_scores_hold_the_same_law_and_the_labels(combine):
    classifier = SpokenIntentClassifier(Fake(), TASK, combine=combine)
    scores = classifier.option_scores(HEARD, [0, 1, 2, 2])
    assert scores.probs() == pytest.approx(classifier.predict_proba(HEARD)) and scores.labels.tolist() == [0, 1, 2, 2]
    assert scores.tokens.tolist() == [[2, 2, 2]] * 4 and scores.sizes_bytes.tolist() == [[5, 5, 2]] * 4
    if combine == "prompt":
        assert scores.logprobs[1, 0] == logprob(nbest_prompt(TASK, HEARD[1], 5), " light")
    assert classifier.option_scores(HEARD).labels is None


@pytest.mark.slow
def test_option_scores_become_a_calibrator(tmp_path):
    """The file of the guide: logits and labels, read and fitted."""
    rng = np.random.default_rng(0)
    many = [NBest([f"text {i}", f"test {i}"], rng.normal(size=2).tolist()) for i in range(400)]
    classifier = SpokenIntentClassifier(Fake(), TASK, combine="marginal")
    probs = classifier.predict_proba(many)
    labels = [int(rng.choice(3, p=p**0.5 / (p**0.5).sum())) for p in probs]  # less sure than the model says
    scores = classifier.option_scores(many, labels)
    file = tmp_path / "spoken.jsonl"
    lines = zip(scores.logits().tolist(), scores.labels.tolist(), strict=True)
    file.write_text("".join(json.dumps({"logits": row, "label": label}) + "\n" for row, label in lines))
    calibrator = fit_calibrator(read_labelled(file), method="temperature")
    assert calibrator.recalibrator.name == "temperature"
    assert calibrator.recalibrator.temperature_ > 1.3
    assert calibrator.after["nll"] < calibrator.before["nll"]


@pytest.mark.slow
def test_kappa_is_the_one_that_made_the_labels():
    """Labels drawn from the marginal law at kappa: on many of them the likeliest kappa is near it."""
    rng = np.random.default_rng(1)
    many = [NBest([f"a {i}", f"b {i}", f"c {i}"], (20 * rng.normal(size=3)).tolist()) for i in range(1500)]
    tables = [rng.dirichlet([0.2] * 3, size=3) for _ in many]
    true = 0.1
    laws = [u.distinct(3, kappa=true)[1] @ t for u, t in zip(many, tables, strict=True)]
    labels = [int(rng.choice(3, p=p / p.sum())) for p in laws]
    assert 0.06 < best_kappa(many, tables, labels, n=3) < 0.16
    same = [np.repeat(t[:1], 3, axis=0) for t in tables[:10]]  # transcripts that make no difference: the smallest
    assert best_kappa(many[:10], same, labels[:10], n=3) == KAPPAS[0] == 0


def test_fit_kappa_is_best_kappa_of_what_the_model_says():
    classifier = SpokenIntentClassifier(Fake(), TASK, combine="marginal")
    labels = [2, 0, 1, 1]
    tables = [np.array([law(transcript_prompt(TASK, t)) for t in nbest.distinct(5)[0]]) for nbest in HEARD]
    assert classifier.fit_kappa(HEARD, labels) is classifier
    assert classifier.kappa == best_kappa(HEARD, tables, labels, n=5)
    with pytest.raises(ValueError, match='combine="marginal"'):
        SpokenIntentClassifier(Fake(), TASK).fit_kappa(HEARD, labels)


def test_training_pairs_are_what_will_be_asked():
    labels = [0, 1, 2, 2]
    fake = Fake()
    classifier = SpokenIntentClassifier(fake, TASK, n=3, style="plain")
    pairs = training_pairs(classifier, HEARD, labels)
    classifier.predict_proba(HEARD)
    assert set(pairs) <= set(fake.asked) and [a for _, a in pairs] == [" light", " music", " no", " no"]
    one = training_pairs(SpokenIntentClassifier(Fake(), TASK, n=1), HEARD, labels)
    assert training_pairs(SpokenIntentClassifier(Fake(), TASK, combine="marginal"), HEARD, labels) == one


def test_what_cannot_be_asked_is_an_error():
    with pytest.raises(ValueError, match='did you mean "marginal"'):
        SpokenIntentClassifier(Fake(), TASK, combine="marginals")
    with pytest.raises(ValueError, match="n must be >= 1"):
        SpokenIntentClassifier(Fake(), TASK, n=0)
    with pytest.raises(ValueError, match="no utterances"):
        SpokenIntentClassifier(Fake(), TASK).predict_proba([])
    classifier, tables = SpokenIntentClassifier(Fake(), TASK, combine="marginal"), [np.full((5, 3), 1 / 3)] * 4
    for labels, message in (
        ([0, 1], r"labels must be 4 numbers in 0\.\.2, one per utterance, got 2"),
        ([0, 1, 2, 3], r"utterance 3: label 3 is no answer's number \(allowed: 0\.\.2\)"),
        ([0, -1, 2, 1], "utterance 1: label -1 is"),  # the last answer, were it an index
    ):
        for asked in (classifier.option_scores, classifier.fit_kappa, partial(training_pairs, classifier)):
            with pytest.raises(ValueError, match=message):
                asked(HEARD, labels)
        if len(labels) == 4:
            with pytest.raises(ValueError, match=message):
                best_kappa(HEARD, tables, labels, n=5)
    with pytest.raises(ValueError, match="as many of each"):
        best_kappa([], [], [], n=1)
