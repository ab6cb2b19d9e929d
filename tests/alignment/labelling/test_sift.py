"""SIFT on a tiny model: the losses' identity, learning, folders that go on, and predictions that all can be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("peft")

import torch
from tiny_gguf import write_tiny_llama

import likely
from likely.alignment.labelling.codec import SpanCodec
from likely.alignment.labelling.labeller import SpanLabeller, report_of
from likely.alignment.labelling.prompt import NearestDemonstrations, SpanPrompt
from likely.alignment.labelling.sentences import Sentence
from likely.alignment.labelling.sift import (
    RECIPE,
    SiftSettings,
    open_labeller,
    remove_labeller,
    response_loss,
    train_labeller,
    training_prompts,
)
from likely.alignment.labelling.spans import LabelledSpan
from likely.errors import DataError, ModelError
from likely.training.fit import TrainingSettings
from likely.training.policy import LoraSettings

PLACES = ["cat", "mat", "sun", "thing"]


def sentence(text):
    words = tuple(text.split())
    spans = tuple(LabelledSpan(i, i + 1, "on") for i, w in enumerate(words) if w in PLACES)
    return Sentence(words, spans, text)


SENTENCES = [sentence(f"{x} {a}") for x in ("the", "and", "on") for a in [*PLACES, "they"]]
QUICK = TrainingSettings(steps=60, batch=4, piece=4, lr=1e-2, warmup=0.05, checkpoint_every=4)
LORA = LoraSettings(rank=8, alpha=16)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("sift") / "tiny.gguf", dim=64, context=1024)


@pytest.fixture(scope="module")
def lm(path):
    with likely.load(str(path), runtime="torch", threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def trained(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labeller")
    before = {name: tensor.clone() for name, tensor in lm.runtime.module.state_dict().items()}
    losses = train_labeller(lm, SENTENCES, folder, settings=SiftSettings(k=1), training=QUICK, lora=LORA)
    after = lm.runtime.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    return folder, losses


def builder(lm, context=None):
    return SpanPrompt(SpanCodec(["on"]), lm.tokenizer, context or lm.runtime.context_length)


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_multi_response_is_the_sum_of_single_responses_in_value_and_gradient(lm):
    prompt, module, chain = builder(lm), lm.runtime.module, SENTENCES[:3]
    together = response_loss(module, [prompt.build(chain[-1], chain[:-1], strategy="mrc")])
    apart = sum(response_loss(module, [prompt.build(chain[k], chain[:k], strategy="src")]) for k in range(len(chain)))
    assert together.item() == pytest.approx(apart.item(), rel=1e-5)
    one, other = gradients(module, together), gradients(module, apart)
    assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())
    wrong = sum(response_loss(module, [prompt.build(chain[k], strategy="src")]) for k in range(len(chain)))
    assert abs(wrong.item() - together.item()) > 1e-3  # without their demonstrations they are other losses
    module.zero_grad()


def test_vanilla_less_multi_response_is_the_rest_of_the_text(lm):
    prompt, module, chain = builder(lm), lm.runtime.module, SENTENCES[:3]
    made = {s: prompt.build(chain[-1], chain[:-1], strategy=s) for s in ("vanilla", "mrc")}
    ids = torch.tensor([made["mrc"].tokens])
    with torch.no_grad():
        rows = torch.log_softmax(module(input_ids=ids).logits[0, :-1].float(), -1)
        each = -rows.gather(1, ids[0, 1:, None])[:, 0]
        rest = [at for at in range(1, ids.shape[1]) if not made["mrc"].targets[at]]
        gap = response_loss(module, [made["vanilla"]]) - response_loss(module, [made["mrc"]])
    assert gap.item() == pytest.approx(sum(each[at - 1].item() for at in rest), rel=1e-5)


def test_prompts_of_training_visit_every_query_and_draw_other_sentences(lm):
    prompt, settings = builder(lm), SiftSettings(k=2, seed=3)
    count = len(SENTENCES)
    made = training_prompts(prompt, SENTENCES, 2 * count, settings)
    assert made == training_prompts(prompt, SENTENCES, 2 * count, settings)
    assert made[:count] != made[count:]
    whole = {prompt.build(s, answered=False).tokens[1:] for s in SENTENCES}
    for part in (made[:count], made[count:]):
        lasts = set()
        for one in part:
            text = b"".join(map(lm.tokenizer.token_bytes, one.tokens)).decode()
            blocks = text.split("### Sentence: ")[1:]
            words = [block.split("\n")[0] for block in blocks]
            assert len(set(words)) == 3  # never the query itself
            lasts.add(words[-1])
        assert lasts == {" ".join(s.tokens) for s in SENTENCES}
    assert len(whole) == count
    with pytest.raises(ValueError, match="k=3 demonstrations beside the query need 4 sentences, there are 3"):
        training_prompts(prompt, SENTENCES[:3], 1, SiftSettings(k=3))


def test_a_model_learns_to_label(lm, trained):
    folder, losses = trained
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])
    fresh = SENTENCES[::2]
    before = SpanLabeller(lm, SpanCodec(["on"]), SENTENCES, k=1).evaluate(fresh)
    with open_labeller(lm, folder) as labeller:
        found = labeller.predict(fresh)
        free = labeller.predict(fresh, constrained=False)
        nearest = open_selector(labeller)
    after = report_of(found)
    assert after.total.f1 > 0.8 > before.total.f1
    assert after.problems == {} and after.unread == after.cut == 0
    for one, other in zip(found, free, strict=True):
        if not other.problems and other.complete:
            assert other.response == one.response
        assert sum(one.logprobs) >= one.sequence_logprob - 1e-6 and all(p <= 0 for p in one.logprobs)
        assert one.demonstrations == 1
    assert nearest.total.gold == after.total.gold
    assert (
        SpanLabeller(lm, SpanCodec(["on"]), SENTENCES, k=1).evaluate(fresh).to_dict() == before.to_dict()
    )  # given back


def open_selector(labeller):
    labeller.selector = NearestDemonstrations()
    return labeller.evaluate(SENTENCES[::2])


def test_every_response_of_an_untrained_model_is_read_and_its_logprob_is_the_score(lm):
    labeller = SpanLabeller(lm, SpanCodec(["on", "off"]), SENTENCES, k=2)
    found = labeller.predict(SENTENCES[:6])
    assert all(one.complete and not one.problems for one in found)
    free = report_of(labeller.predict(SENTENCES[:6], constrained=False))
    assert free.unread + free.cut > 0  # which is what the constraint is for
    report = report_of(found)
    low, high = report.interval
    assert low <= report.total.f1 <= high and report.to_dict()["sentences"] == 6


def test_a_stopped_run_goes_on_bit_for_bit_and_a_finished_one_is_read(lm, tmp_path):
    again = dict(settings=SiftSettings(k=1), training=replace(QUICK, steps=12), lora=LORA)
    losses = train_labeller(lm, SENTENCES, folder := tmp_path / "whole", **again)
    tmp_path = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == 9:
            raise Stop

    with pytest.raises(Stop):
        train_labeller(lm, SENTENCES, tmp_path, progress=stop, **again)
    with pytest.raises(DataError, match="no labeller was finished"):
        open_labeller(lm, tmp_path)
    steps = []
    assert train_labeller(lm, SENTENCES, tmp_path, progress=lambda t, _: steps.append(t), **again) == losses
    assert steps[0] == 8 and steps[-1] == 11
    name = "adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert train_labeller(lm, SENTENCES, folder, progress=stop, **again) == losses  # nothing is trained
    with pytest.raises(DataError, match="another recipe"):
        train_labeller(lm, SENTENCES, folder, **{**again, "settings": SiftSettings(k=2)})


def test_a_folder_of_another_model_or_none_is_refused(lm, trained, tmp_path_factory):
    folder, _ = trained
    other = write_tiny_llama(tmp_path_factory.mktemp("other") / "tiny.gguf", dim=64, context=1024, seed=9)
    with (
        likely.load(str(other), runtime="torch", threads=1) as strange,
        pytest.raises(ModelError, match="other weights"),
    ):
        open_labeller(strange, folder)
    place = tmp_path_factory.mktemp("none")
    with pytest.raises(DataError, match="no labeller was finished"):
        open_labeller(lm, place)
    (place / RECIPE).write_text("{}")
    with pytest.raises(DataError, match="not the record"):
        open_labeller(lm, place)
    (place / RECIPE).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_labeller(lm, place)


def test_only_own_folders_are_removed(tmp_path):
    mine, strange = tmp_path / "mine", tmp_path / "strange"
    for place in (mine, strange):
        place.mkdir()
    (mine / RECIPE).write_text(json.dumps({}))
    (strange / "thesis.tex").touch()
    remove_labeller(mine)
    remove_labeller(tmp_path / "missing")
    (tmp_path / "begun").mkdir()
    remove_labeller(tmp_path / "begun")
    assert not mine.exists()
    with pytest.raises(DataError, match="left alone"):
        remove_labeller(strange)


def test_sentences_that_teach_nothing_are_refused(lm, tmp_path):
    with pytest.raises(DataError, match="row: no tags"):
        train_labeller(lm, [Sentence(("a",), None, "row")], tmp_path)
    with pytest.raises(DataError, match="nothing to learn"):
        train_labeller(lm, [Sentence(("a",), (), "row")], tmp_path)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        SpanLabeller(lm, SpanCodec(["on"]), SENTENCES[:1], k=2)
