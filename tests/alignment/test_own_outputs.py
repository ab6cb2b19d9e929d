"""EISL on a causal model's own outputs: the right rows of logits, pieces that add up, and training that learns."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("peft")

import torch
from tiny_gguf import write_tiny_llama

from likely.alignment import Completion, EditInvariantSettings, edit_invariant_loss, fit_own_outputs
from likely.alignment.edit_invariant.own_outputs import WrittenOutput, output_logits, own_output_loss, write_outputs
from likely.alignment.runs.examples import train_on_examples
from likely.alignment.runs.folder import RunSettings
from likely.errors import DataError
from likely.models.load import load_local
from likely.training import LoraSettings, Policy, TrainingSettings

torch.set_num_threads(1)
END = 2
REFERENCES = [Completion((5, 6, 7), (10, 11, 12, END)), Completion((8, 9), (10, 12, 11, 11, END))]
SOFT = EditInvariantSettings(position="softmax")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("own") / "tiny.gguf")


@pytest.fixture
def policy(path):
    with Policy(load_local(path, runtime="torch"), LoraSettings(rank=4, alpha=8)) as policy:
        yield policy


def test_outputs_are_greedy_and_the_logits_are_those_before_each_token(policy):
    outputs = write_outputs(policy, REFERENCES)
    assert [len(o.tokens) <= 2 * len(o.reference.tokens) + 8 for o in outputs] == [True, True]
    logits, mask = output_logits(policy.module, outputs)
    for row, seen, output in zip(logits, mask, outputs, strict=True):
        assert row[seen].argmax(1).tolist() == list(output.tokens)


def test_the_loss_is_that_of_each_output_alone(policy):
    outputs = [WrittenOutput(REFERENCES[0], (10, 13, END)), WrittenOutput(REFERENCES[1], (4, 4, 4, 4, 4, 4), noise=1)]
    for settings in (SOFT, EditInvariantSettings(), EditInvariantSettings(cross_entropy=0.5, ngrams=(2, 3))):
        together = own_output_loss(policy.module, outputs, settings)
        alone = [own_output_loss(policy.module, [o], settings) for o in outputs]
        assert together.loss.item() == pytest.approx(sum(a.loss.item() for a in alone), abs=1e-4)
        assert together.metrics["output_tokens"] == (9.0, 2.0)
    ids = torch.tensor([[*REFERENCES[0].prompt, 10, 13]])
    expected = edit_invariant_loss(policy.module(input_ids=ids).logits[0, 2:], REFERENCES[0].tokens, from_logits=True)
    assert own_output_loss(policy.module, outputs[:1], SOFT).loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_model_learns_what_noisy_references_say(policy):
    """Either order of the two middle tokens comes up: single tokens and pairs are learned wherever they stand."""
    noisy = [Completion((5, 6, 7), t) for t in ((10, 11, 12, END), (10, 12, 11, END), (10, 11, 12, 12, END))]
    training = TrainingSettings(steps=16, batch=3, piece=3, lr=4e-2)
    losses = fit_own_outputs(policy, noisy, training, EditInvariantSettings(cross_entropy=0.3, longest=6))
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    (written,) = write_outputs(policy, noisy[:1])
    assert {10, 11, 12} <= set(written.tokens)


def test_references_that_were_cut_are_refused(policy):
    with pytest.raises(DataError, match="reference 2 has no end token"):
        fit_own_outputs(
            policy, [REFERENCES[0], Completion((5,), (6,), finished=False)], TrainingSettings(steps=1), SOFT
        )


def test_fine_tuning_on_a_file_takes_it_as_its_loss(path, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": p, "completion": " sat on"}) + "\n" for p in ("the cat", "a mat") * 2)
    )
    training = TrainingSettings(steps=2, batch=2, lr=0.02, seed=1)
    given = {"epochs": 0, "held_out": 0.25, "max_length": 64, "lora": LoraSettings(rank=4, alpha=8)}
    settings = RunSettings(str(path), tmp_path / "adapter", training, **given)
    report = train_on_examples(rows, settings, loss="eisl", eisl=EditInvariantSettings(longest=4))
    assert report["steps"] == 2 and report["settings"]["loss"] == "eisl" and report["losses"][0] > 0
    with pytest.raises(ValueError, match='loss_on must be "completion", got "all"'):
        train_on_examples(rows, settings, loss="eisl", loss_on="all")
