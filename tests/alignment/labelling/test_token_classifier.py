"""The tagging baseline: which layers look to the right, padding, learning, and a model that is given back."""

from __future__ import annotations

import pytest

pytest.importorskip("peft")

import torch
from tiny_gguf import write_tiny_llama

import likely
from likely.alignment.labelling.sentences import Sentence
from likely.alignment.labelling.spans import LabelledSpan
from likely.alignment.labelling.token_classifier import TokenClassifier
from likely.errors import DataError
from likely.training.fit import TrainingSettings


def sentence(text):
    words = tuple(text.split())
    # a word is a place if the one after it says so: only a model that looks to the right can know
    spans = tuple(LabelledSpan(i, i + 1, "in") for i in range(len(words) - 1) if words[i + 1] == "there")
    return Sentence(words, spans, text)


WORDS = ["cat", "mat", "sun", "thing", "answer", "question", "other", "they"]
SENTENCES = [sentence(f"{a} {x}") for a in WORDS for x in ("there", "and", "there", "on")]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("tags") / "tiny.gguf", dim=64, context=1024)
    with likely.load(str(path), runtime="torch", threads=1) as model:
        yield model


@pytest.mark.parametrize(("unmask", "looks"), [("all", True), ("none", False), (range(1), True), (range(1, 2), True)])
def test_unmasked_layers_look_to_the_right_and_others_do_not(lm, unmask, looks):
    one, other = Sentence(("the", "cat", "sat")), Sentence(("the", "cat", "mat"))
    with TokenClassifier(lm, ["in"], unmask) as classifier, torch.no_grad():
        first, second = (classifier.logits([classifier._words(s)]) for s in (one, other))
        changed = float((first[0] - second[0]).abs().max())
        assert changed > 1e-4 if looks else changed == 0.0
        alone = torch.cat([classifier.logits([classifier._words(s)]) for s in (one, SENTENCES[0])])
        batch = classifier.logits([classifier._words(s) for s in (one, SENTENCES[0])])
        assert torch.allclose(alone, batch, atol=1e-5)  # padding is seen by nobody


def test_without_unmasking_hidden_states_are_the_models_own(lm):
    with TokenClassifier(lm, ["in"], "none") as classifier, torch.no_grad():
        words = classifier._words(Sentence(("the", "cat", "sat")))
        hidden = lm.runtime.module(input_ids=torch.tensor([words.tokens]), output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(classifier.head(hidden[0, list(words.places)]), classifier.logits([words]), atol=1e-5)


def test_it_learns_what_only_the_right_side_tells(lm):
    before = {name: tensor.clone() for name, tensor in lm.runtime.module.state_dict().items()}
    f1 = {}
    for unmask in ("all", "none"):
        with TokenClassifier(lm, ["in"], unmask) as classifier:
            losses = classifier.fit(SENTENCES[:20], TrainingSettings(steps=40, batch=8, piece=8, lr=2e-2))
            found = classifier.predict(SENTENCES[20:])
        right = sum(len(set(a) & set(s.spans)) for a, s in zip(found, SENTENCES[20:], strict=True))
        both = sum(len(a) + len(s.spans) for a, s in zip(found, SENTENCES[20:], strict=True))
        f1[unmask] = 2 * right / both if both else 0.0
        assert losses[-1] < losses[0]
    assert f1["all"] > 0.9 > f1["none"] + 0.1
    after = lm.runtime.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_wrong_settings_and_rows_are_refused(lm):
    for wrong in ("some", range(5)):
        with pytest.raises(ValueError, match="unmask"):
            TokenClassifier(lm, ["in"], wrong)
    with pytest.raises(ValueError, match="no labels"):
        TokenClassifier(lm, [])
    with TokenClassifier(lm, ["out"]) as classifier:
        with pytest.raises(DataError, match="'in' is none of"):
            classifier.fit(SENTENCES, TrainingSettings(steps=1))
        with pytest.raises(DataError, match="row: no tags"):
            classifier.fit([Sentence(("a",), None, "row")], TrainingSettings(steps=1))
