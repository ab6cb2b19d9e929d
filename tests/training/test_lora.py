"""LoRA: the loss is transformers' own, prompts teach nothing, adapters come and go without a trace."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("peft")

import torch
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import CapabilityError, DataError, ModelError
from likely.training.answers import answer_items, answer_loss, load_adapter, train_lora
from likely.training.lora import batches

PAIRS = [("the cat sat on", " the mat"), ("and the other cats sat", " there too."), ("this is", " the answer")]
RULE = {"the cat": " sun", "the mat": " done", "the other": " answer", "the thing": " mat"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("lora") / "tiny.gguf", dim=64)


@pytest.fixture
def lm(path):
    with likely.load(str(path), runtime="torch") as model:
        yield model


def items_of(lm, pairs):
    return answer_items(lm.tokenizer, pairs, lm.runtime.context_length)


def test_the_loss_is_that_of_transformers(lm):
    items = items_of(lm, PAIRS)
    total = 0.0
    for item in items:
        ids = torch.tensor([item.tokens])
        labels = ids.clone()
        labels[0, : item.start] = -100
        total += lm.runtime.module(input_ids=ids, labels=labels).loss.item() * (len(item.tokens) - item.start)
    assert answer_loss(lm.runtime.module, items).item() == pytest.approx(total, abs=1e-4)


def test_the_loss_is_the_score(lm):
    scored = lm.score_pairs(PAIRS)
    expected = -sum(s.sequence_logprob for s in scored)
    assert answer_loss(lm.runtime.module, items_of(lm, PAIRS)).item() == pytest.approx(expected, abs=1e-4)


def test_padding_changes_nothing(lm):
    module, items = lm.runtime.module, items_of(lm, PAIRS)
    alone = [answer_loss(module, [item]).item() for item in items]
    assert answer_loss(module, items).item() == pytest.approx(sum(alone), abs=1e-4)


def test_prompts_give_no_gradient(lm):
    """The loss does not see which logits stand at the prompt's rows."""
    module, (item,) = lm.runtime.module, items_of(lm, PAIRS[:1])
    caught = []
    hook = module.lm_head.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), caught.append(out))[1])
    loss = answer_loss(module, [item])
    hook.remove()
    loss.backward()
    (logits,) = caught
    rows = logits.grad[0].abs().sum(-1)
    assert len(rows) == len(item.tokens) - item.start and (rows > 0).all()  # answers' rows alone were computed
    module.zero_grad()
    wide = items_of(lm, PAIRS)  # texts of several lengths: rows of prompts and padding are there, without gradient
    caught.clear()
    hook = module.lm_head.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), caught.append(out))[1])
    answer_loss(module, wide).backward()
    hook.remove()
    first = min(i.start for i in wide) - 1
    for i, one in enumerate(wide):
        seen = caught[0].grad[i].abs().sum(-1) > 0
        expected = [one.start <= first + 1 + r < len(one.tokens) for r in range(len(seen))]
        assert seen.tolist() == expected


@pytest.mark.slow
def test_a_model_learns_a_mapping_and_forgets_it_again(lm, tmp_path):
    pairs = list(RULE.items())
    before = {name: tensor.clone() for name, tensor in lm.runtime.module.state_dict().items()}
    revision, scores = lm.runtime.revision, [s.sequence_logprob for s in lm.score_pairs(pairs)]
    adapter = train_lora(lm, pairs, steps=60, batch=4, lr=2e-2, dropout=0.0, folder=tmp_path)
    assert np.mean(adapter.losses[-5:]) < 0.25 * np.mean(adapter.losses[:5])
    answers = sorted(set(RULE.values()))
    got = adapter.score_pairs([(prompt, a) for prompt in RULE for a in answers])
    table = np.array([s.sequence_logprob for s in got]).reshape(len(RULE), -1)
    assert [answers[i] for i in table.argmax(1)] == list(RULE.values())

    after = lm.runtime.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert lm.runtime.revision == revision and all(p.requires_grad for p in lm.runtime.module.parameters())
    assert [s.sequence_logprob for s in lm.score_pairs(pairs)] == scores

    again = load_adapter(lm, tmp_path)
    assert [s.sequence_logprob for s in again.score_pairs(pairs)] == [
        s.sequence_logprob for s in adapter.score_pairs(pairs)
    ]


def test_the_folder_is_one_that_peft_reads(path, tmp_path):
    from peft import PeftModel

    with likely.load(str(path), runtime="torch") as lm:
        adapter = train_lora(lm, PAIRS, steps=5, lr=2e-2, folder=tmp_path)
        ours = [s.sequence_logprob for s in adapter.score_pairs(PAIRS)]
        plain = [s.sequence_logprob for s in lm.score_pairs(PAIRS)]
        merged = PeftModel.from_pretrained(lm.runtime.module, str(tmp_path)).merge_and_unload()
        assert merged is lm.runtime.module
        lm.runtime.refresh()
        theirs = [s.sequence_logprob for s in lm.score_pairs(PAIRS)]
    assert ours == pytest.approx(theirs, abs=1e-4) and np.abs(np.subtract(ours, plain)).max() > 0.01
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".safetensors") == ["adapter_model.safetensors"]
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_the_seed_decides_and_a_finished_run_is_read(lm, tmp_path):
    one = train_lora(lm, PAIRS, steps=3, batch=2, seed=1, folder=tmp_path)
    same = train_lora(lm, PAIRS, steps=3, batch=2, seed=1)
    other = train_lora(lm, PAIRS, steps=3, batch=2, seed=2)
    assert one.losses == same.losses != other.losses
    assert all(torch.equal(one.factors[n][1], same.factors[n][1]) for n in one.factors)
    steps = []
    found = train_lora(lm, PAIRS, steps=3, batch=2, seed=1, folder=tmp_path, progress=lambda t, loss: steps.append(t))
    assert not steps and found.losses == one.losses  # nothing was trained
    train_lora(lm, PAIRS, steps=4, batch=2, seed=1, folder=tmp_path, progress=lambda t, loss: steps.append(t))
    assert steps == [0, 1, 2, 3]  # another recipe


def test_the_gradient_is_clipped_and_the_rate_ends_at_zero(lm):
    wild = train_lora(lm, PAIRS, steps=1, lr=1e-2, dropout=0.0, clip=1e-12)
    b = max(float(f[1].abs().max()) for f in wild.factors.values())
    assert b < 1e-2  # Adam's first step is lr · g / (|g| + 1e-8): with |g| <= 1e-12 next to nothing
    assert b < 1e-2 * 1e-3
    usual = train_lora(lm, PAIRS, steps=1, lr=1e-2, dropout=0.0)
    assert max(float(f[1].abs().max()) for f in usual.factors.values()) == pytest.approx(1e-2, rel=1e-2)


def test_every_pair_comes_up_once_per_pass():
    lengths = np.random.default_rng(0).integers(1, 50, 37).tolist()
    chosen = batches(lengths, batch=5, steps=24, seed=3)
    for start in (0, 8, 16):
        assert sorted(i for group in chosen[start : start + 8] for i in group) == list(range(37))
    assert chosen[:8] != chosen[8:16] and chosen == batches(lengths, batch=5, steps=24, seed=3)
    spread = [max(lengths[i] for i in g) - min(lengths[i] for i in g) for g in chosen]
    assert np.mean(spread) < 15  # of 49: batches hold texts of like length


def test_what_cannot_be_trained_is_said(lm, path, tmp_path):
    with pytest.raises(ValueError, match="no pairs"):
        train_lora(lm, [], steps=1)
    with pytest.raises(ValueError, match="pair 1: the answer ''"):
        train_lora(lm, [("a", " b"), ("a", "")], steps=1)
    with pytest.raises(ValueError, match="steps must be > 0, got 0"):
        train_lora(lm, PAIRS, steps=0)
    with pytest.raises(ValueError, match=r"pair 0 has \d+ tokens, the model.s context is 256"):
        train_lora(lm, [("the cat " * 200, " sat")], steps=1)
    with pytest.raises(ModelError, match="no linear layer called c_attn"):
        train_lora(lm, PAIRS, steps=1, targets=("c_attn",))
    with pytest.raises(DataError, match="no adapter was finished"):
        load_adapter(lm, tmp_path)
    with (
        likely.load(str(path), runtime="llamacpp") as other,
        pytest.raises(CapabilityError, match='runtime="torch"'),
    ):
        train_lora(other, PAIRS, steps=1)
    adapter = train_lora(lm, PAIRS, steps=1)
    with adapter.attached(), pytest.raises(ModelError, match="not those that the adapter was trained on"):
        adapter.score_pairs(PAIRS)


def test_a_torn_folder_is_refused(lm, tmp_path):
    train_lora(lm, PAIRS, steps=1, folder=tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load_adapter(lm, tmp_path)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_adapter(lm, tmp_path)


@pytest.mark.slow
def test_bfloat16_products_learn_as_well(lm):
    adapter = train_lora(lm, list(RULE.items()), steps=40, batch=4, lr=2e-2, dropout=0.0, precision="bfloat16")
    assert np.mean(adapter.losses[-5:]) < 0.5 * np.mean(adapter.losses[:5])
    assert all(f[0].dtype == torch.float32 for f in adapter.factors.values())


def test_a_recipe_is_json(lm):
    assert json.loads(json.dumps(train_lora(lm, PAIRS, steps=1).recipe))["rank"] == 8
