"""The sentiment lab at its smallest: what it samples is what it scores, and it is trained once."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script as load_script

from likely.alignment.frontier import kl_exact, kl_k1, kl_k3

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("vaderSentiment")

pytestmark = pytest.mark.xdist_group("sentiment lab")


@pytest.fixture(scope="module")
def script():
    return load_script("sentiment_lab")


@pytest.fixture(scope="module")
def lab(script, lab_folder, data_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELY_DATA", str(data_dir))
        return script.open_lab(lab_folder, script.SMALLEST)


def test_samples_have_the_logprob_that_they_are_scored_with(script, lab):
    rows = lab.sample(lab.reference, lab.held_out[:6], 4, seed=3)
    assert rows.prompt.tolist() == [i for i in range(6) for _ in range(4)]
    np.testing.assert_allclose(rows.logprob, script.sequence_logprob(lab.reference, rows), atol=1e-4)
    assert all(ids[:start] == lab.held_out[i] for ids, start, i in zip(rows.ids, rows.starts, rows.prompt, strict=True))
    again = lab.sample(lab.reference, lab.held_out[:6], 4, seed=3)
    assert again.ids == rows.ids and lab.sample(lab.reference, lab.held_out[:6], 4, seed=4).ids != rows.ids


def test_a_finished_completion_ends_with_the_end_of_text(script, lab):
    rows = lab.sample(lab.reference, lab.held_out[:40], 8, seed=5, temperature=1.5)
    ends = np.array([ids[-1] == script.EOS for ids in rows.ids])
    assert (ends == rows.finished).all() and (rows.lengths[~rows.finished] == script.MAX_NEW).all()
    assert rows.finished.any()


def test_a_sharper_law_gives_its_own_logprob(script, lab):
    rows = lab.sample(lab.reference, lab.held_out[:6], 4, seed=3, temperature=0.7, top_k=1)
    assert rows.logprob == pytest.approx(0, abs=1e-6)
    assert (script.sequence_logprob(lab.reference, rows) < -1e-3).all()


def test_the_lab_is_trained_once(script, lab, lab_folder, monkeypatch, data_dir):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    monkeypatch.setattr(script, "_train_lab", lambda *_: pytest.fail("trained again"))
    again = script.open_lab(lab_folder, script.SMALLEST)
    rows = lab.sample(lab.reference, lab.held_out[:2], 2, seed=0)
    np.testing.assert_array_equal(lab.proxy_reward(rows), again.proxy_reward(rows))
    assert (
        (lab.gold(rows) <= 2).all()
        and len(lab.prompts) == 800
        and not set(map(tuple, lab.prompts)) & set(map(tuple, lab.held_out))
    )


def test_the_prompts_tokens_begin_those_of_the_whole_text(lab):
    whole = lab.tokenizer.encode("the plot is thin but never dull").ids
    assert whole[: len(lab.tokenizer.encode("the plot is thin").ids)] == lab.tokenizer.encode("the plot is thin").ids
    assert {len(prompt) for prompt in lab.prompts + lab.held_out} == {7}


def test_the_proxy_prefers_what_it_was_taught(script, lab):
    texts = ["a great film", "a bad film"] * 40
    weights = script.train_proxy(lab.tokenizer, texts, script.SMALLEST)[0].weights
    great, bad = (sum(weights[i] for i in lab.tokenizer.encode(text).ids) for text in texts[:2])
    assert great > bad


def test_a_policy_to_train_starts_as_the_reference(script, lab):
    policy = lab.policy()
    rows = lab.sample(lab.reference, lab.held_out[:2], 2, seed=0)
    np.testing.assert_array_equal(script.sequence_logprob(policy, rows), script.sequence_logprob(lab.reference, rows))
    assert all(p.requires_grad for p in policy.parameters())
    assert not any(p.requires_grad for p in lab.reference.parameters())


def test_kl_is_that_of_the_rows(script, lab):
    policy = lab.policy()
    with torch.no_grad():
        policy.model.norm.weight.mul_(1.5)
    found = lab.measure("sharper", policy, lab.held_out[:3], 2, seed=1)
    rows = lab.sample(policy, lab.held_out[:3], 2, seed=1)
    for i, (ids, start) in enumerate(zip(rows.ids, rows.starts, strict=True)):
        with torch.no_grad():
            ours, theirs = (
                m(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1) for m in (policy, lab.reference)
            )
        ratios = (ours - theirs)[range(len(ids) - start), ids[start:]]
        assert found.kl["exact"][i] == pytest.approx(kl_exact(ours.numpy(), theirs.numpy()), abs=1e-4)
        assert found.kl["k1"][i] == pytest.approx(kl_k1(ratios.numpy()), abs=1e-4)
        assert found.kl["k3"][i] == pytest.approx(kl_k3(ratios.numpy()), abs=1e-4)
    same = lab.measure("reference", lab.reference, lab.held_out[:3], 2, seed=1)
    assert all((values == 0).all() for values in same.kl.values()) and list(same.rewards) == ["gold", "proxy"]
