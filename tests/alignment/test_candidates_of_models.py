"""Frontier, rejection sampling and list losses on a tiny model's own samples."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from tiny_gguf import write_tiny_llama  # noqa: E402

import likely  # noqa: E402
from likely.alignment import (  # noqa: E402
    FromPolicy,
    Given,
    LengthReward,
    Prompt,
    RejectionSampled,
    TextReward,
    compare_policies,
    exponential_goodness,
    list_batch_loss,
    posterior_logweights,
    snis_cross_entropy,
)
from likely.alignment.frontier import completion_rows, frontier_record, sample_policy  # noqa: E402
from likely.alignment.scores import completion_scores  # noqa: E402
from likely.errors import DataError, ModelError  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("frontier")


@pytest.fixture(scope="module")
def lm(folder):
    with likely.load(str(write_tiny_llama(folder / "tiny.gguf")), runtime="torch") as model:
        yield model


@pytest.fixture(scope="module")
def other(folder):
    """The same with one matrix changed."""
    with likely.load(str(folder / "tiny.gguf"), runtime="torch") as model:
        with torch.no_grad():
            model.runtime.module.get_output_embeddings().weight.mul_(1.3)
        model.runtime.refresh("changed")
        yield model


@pytest.fixture(scope="module")
def prompts(lm):
    texts = ("the cat sat", "this is", "and the other")
    return [Prompt(tuple(lm.encode_prompt(text)), text, row) for row, text in enumerate(texts, 1)]


@pytest.fixture(scope="module")
def drawn(lm, prompts):
    letters = TextReward(lambda prompt, text: text.count("a") / 2)
    return [c.rewarded(letters) for c in FromPolicy(lm, n=6, max_tokens=6).draw(prompts, seed=1)]


def test_rows_are_the_models_own(lm, drawn):
    for completion in drawn[0].completions[:2]:
        rows = completion_rows(lm.runtime, completion)
        assert np.exp(rows).sum(axis=1) == pytest.approx(1)
        total = rows[np.arange(len(rows)), list(completion.tokens)].sum()
        assert total == pytest.approx(completion.logprob, abs=1e-3)


def test_a_changed_model_has_a_kl(lm, other, prompts):
    rewards = {"length": LengthReward()}
    base = sample_policy("reference", lm, lm, prompts, rewards, n=20, max_tokens=5)
    found = sample_policy("changed", other, lm, prompts, rewards, n=20, max_tokens=5)
    assert not base.kl["exact"].any() and (found.kl["exact"] > 0).all()
    points = compare_policies([found, base], base)
    assert points[0].kls_agree and points[0].completions == 60
    record = json.loads(json.dumps(frontier_record(points, {}), allow_nan=False))
    assert [p["name"] for p in record["policies"]] == ["changed", "reference"]
    assert record["policies"][1]["kl"]["exact"]["value"] == 0


def test_models_of_other_tokenizers_are_refused(lm, prompts):
    class Stranger:
        runtime = lm.runtime

        class tokenizer:
            fingerprint = "another"

    with pytest.raises(ModelError, match="different tokenizers"):
        sample_policy("a", lm, Stranger(), prompts, {"length": LengthReward()})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="one prompt"):
        sample_policy("a", lm, lm, [], {"length": LengthReward()})


def test_rejection_sampling_as_a_source(drawn, prompts):
    kept = lambda **more: RejectionSampled(Given(drawn), rewards_of_given(drawn), **more)  # noqa: E731
    best = kept(k=2, beta=1e-9).draw(prompts)
    for found, of in zip(best, drawn, strict=True):
        assert sorted(found.rewards.tolist()) == sorted(of.rewards.tolist())[-2:]
        assert set(found.completions) <= set(of.completions) and "rejection sampling" in found.drawn
    first, statistics = kept(k=3, beta=1e9).draw_counted(prompts)
    assert [f.completions for f in first] == [of.completions[:3] for of in drawn]
    assert statistics.prompts == 3 and statistics.acceptance_rate == 1
    same = [kept(k=3, beta="ess:0.5").draw(prompts, seed=4) for _ in range(2)]
    assert [f.completions for f in same[0]] == [f.completions for f in same[1]]
    twice = [replace(of, completions=of.completions[:1] * 6, rewards=None) for of in drawn]
    once = RejectionSampled(Given(twice), LengthReward(), k=2, unique=True).draw_counted(prompts)
    assert [len(found) for found in once[0]] == [1, 1, 1] and once[1].short == 3
    with pytest.raises(DataError, match="row 1: "):
        RejectionSampled(Given(drawn), TextReward(lambda *_: float("-inf")), k=2).draw(prompts)


def rewards_of_given(drawn):
    known = {c: r for of in drawn for c, r in zip(of.completions, of.rewards, strict=True)}
    return lambda completions: np.array([known[c] for c in completions])


def test_the_loss_of_candidates_is_that_of_their_sums(lm, drawn):
    module = lm.runtime.module
    found = list_batch_loss(module, drawn, exponential_goodness(0.5))
    completions = [c for of in drawn for c in of.completions]
    sums = completion_scores(module, completions).sum.reshape(3, 6)
    proposal = torch.tensor([c.sampling_logprob for c in completions]).reshape(3, 6)
    rewards = torch.tensor(np.stack([of.rewards for of in drawn])).float()
    expected = snis_cross_entropy(sums, proposal, rewards / 0.5)
    assert found.loss.item() == pytest.approx(3 * expected.loss.item(), abs=1e-5)
    assert found.metrics["ess_policy"] == (pytest.approx(expected.ess_policy.sum().item(), abs=1e-4), 3)
    reference = torch.randn(18, generator=torch.Generator().manual_seed(0))
    moved = list_batch_loss(module, drawn, exponential_goodness(0.5), reference)
    target = posterior_logweights(reference.reshape(3, 6), proposal, rewards / 0.5)
    assert moved.loss.item() == pytest.approx(3 * snis_cross_entropy(sums, proposal, target).loss.item(), abs=1e-4)


def test_lists_of_other_lengths_are_padded(lm, drawn):
    module, goodness = lm.runtime.module, exponential_goodness(0.5)
    short = drawn[0].take([0, 1, 2])
    both = list_batch_loss(module, [short, drawn[1]], goodness)
    apart = [list_batch_loss(module, [one], goodness).loss.item() for one in (short, drawn[1])]
    assert both.loss.item() == pytest.approx(sum(apart), abs=1e-4)


def test_candidates_that_say_too_little_are_refused(lm, drawn):
    module, goodness = lm.runtime.module, exponential_goodness(0.5)
    given = replace(drawn[0], completions=tuple(replace(c, sampling_logprob=None) for c in drawn[0].completions))
    for bad in (given, replace(drawn[0], rewards=None)):
        with pytest.raises(DataError, match="prompt 1: candidates need rewards"):
            list_batch_loss(module, [drawn[1], bad], goodness)
    with pytest.raises(DataError, match="at least one prompt"):
        list_batch_loss(module, [], goodness)
