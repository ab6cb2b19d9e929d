"""Samples of a policy: their log-probabilities are the scorer's, and do not depend on what runs beside them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from tiny_gguf import write_tiny_llama

import likely
from likely.alignment.labellers import RewardDifference
from likely.alignment.pairing import pairs_of
from likely.alignment.rewards import LengthReward, PairRanker, RewardModel, bradley_terry_loss
from likely.alignment.scores import Completion, completion_scores
from likely.alignment.sources import BestOfN, Candidates, FromPolicy, Given, Prompt
from likely.errors import DataError


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    with likely.load(str(write_tiny_llama(tmp_path_factory.mktemp("source") / "t.gguf")), runtime="torch") as model:
        yield model


@pytest.fixture(scope="module")
def prompts(lm):
    return [Prompt(tuple(lm.encode_prompt(text)), text) for text in ("the cat sat", "this is", "and the other")]


def test_what_was_drawn_has_the_scorers_log_probability(lm, prompts):
    drawn = FromPolicy(lm, n=3, max_tokens=6).draw(prompts, seed=1)
    texts = [completion for candidates in drawn for completion in candidates.completions]
    assert [len(c) for c in drawn] == [3, 3, 3]
    expected = completion_scores(lm.runtime.module, texts).sum.tolist()
    assert [t.logprob for t in texts] == pytest.approx(expected, abs=1e-3)
    assert [t.sampling_logprob for t in texts] == pytest.approx(expected, abs=1e-3)
    ends = lm.tokenizer.end_ids
    assert all(t.finished == (t.tokens[-1] in ends) and (t.finished or len(t.tokens) == 6) for t in texts)


def test_a_warped_distribution_is_told_apart(lm, prompts):
    drawn = FromPolicy(lm, n=2, max_tokens=4, temperature=0.5, top_k=5).draw(prompts[:1], seed=0)
    for text in drawn[0].completions:
        rows = torch.log_softmax(
            lm.runtime.module(input_ids=torch.tensor([[*text.prompt, *text.tokens]])).logits[0].detach() / 0.5, -1
        )
        total = 0.0
        for i, token in enumerate(text.tokens):
            row = rows[len(text.prompt) - 1 + i]
            total += (row[token] - row.topk(5).values.logsumexp(0)).item()
        assert text.sampling_logprob == pytest.approx(total, abs=1e-3) and text.sampling_logprob > text.logprob


def test_a_sample_does_not_depend_on_its_company(lm, prompts):
    source = FromPolicy(lm, n=2, max_tokens=5)
    together = source.draw(prompts, seed=4)
    alone = [source.draw([prompt], seed=4)[0] for prompt in prompts]
    apart = dataclasses.replace(source, together=1).draw(prompts, seed=4)
    for a, b, c in zip(together, alone, apart, strict=True):
        assert [x.tokens for x in a.completions] == [x.tokens for x in b.completions]
        assert [x.tokens for x in a.completions] == [x.tokens for x in c.completions]
    assert [x.tokens for x in source.draw(prompts, seed=5)[0].completions] != [
        x.tokens for x in together[0].completions
    ]


def test_the_best_of_n(lm, prompts):
    source = FromPolicy(lm, n=4, max_tokens=6)
    everyone = source.draw(prompts, seed=2)
    best = BestOfN(Given(everyone), LengthReward(), keep=2).draw(prompts)
    for all_of, chosen in zip(everyone, best, strict=True):
        lengths = sorted((len(c.tokens) for c in all_of.completions), reverse=True)[:2]
        assert [len(c.tokens) for c in chosen.completions] == lengths == chosen.rewards.tolist()
    with pytest.raises(ValueError, match="keep must be <= the 4 candidates"):
        BestOfN(source, LengthReward(), keep=5).draw(prompts)
    with pytest.raises(ValueError, match="no candidates were given for the prompt"):
        Given(everyone[:1]).draw(prompts)


@pytest.mark.parametrize("pairing, each", [("first_round", 2), ("tournament", 3), ("all_pairs", 6), ("best_worst", 1)])
def test_candidates_become_labelled_pairs(lm, prompts, pairing, each):
    texts = [tuple(Completion(p.tokens, tuple(range(1, 2 + k))) for k in range(4)) for p in prompts]
    given = [Candidates(p, t).rewarded(LengthReward()) for p, t in zip(prompts, texts, strict=True)]
    labeller = RewardDifference(LengthReward())
    pairs = pairs_of(given, pairing, labeller, hard=True, rng=np.random.default_rng(0))
    assert len(pairs) == each * len(prompts)
    assert all(p.preference == float(len(p.first.tokens) > len(p.second.tokens)) for p in pairs)
    with pytest.raises(ValueError, match="did you mean"):
        pairs_of(given, "all_pair", labeller, rng=np.random.default_rng(0))


def test_a_reward_model_reads_the_last_token_whatever_pads(lm, tmp_path):
    model = RewardModel.fresh(lm.runtime.module, tokenizer=lm.tokenizer.fingerprint)
    texts = [Completion((1, 2, 3), (4, 0)), Completion((7, 8), (9,)), Completion((5,), (6, 7, 8, 9, 0))]
    assert model(texts).tolist() == [0, 0, 0]
    with torch.no_grad():
        model.head.copy_(torch.randn(len(model.head), generator=torch.Generator().manual_seed(0)))
    together, alone = model(texts), [float(model([text])[0]) for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    states = lm.runtime.module.model(input_ids=torch.tensor([[1, 2, 3, 4, 0]])).last_hidden_state[0, -1]
    assert together[0] == pytest.approx((states @ model.head).item(), abs=1e-5)
    centered = model.centered(texts)
    assert centered(texts).mean() == pytest.approx(0, abs=1e-6)
    centered.save(tmp_path)
    again = RewardModel.load(tmp_path, lm.runtime.module, tokenizer=lm.tokenizer.fingerprint)
    np.testing.assert_allclose(again(texts), centered(texts), atol=1e-5)
    with pytest.raises(DataError, match="another tokenizer's ids"):
        RewardModel.load(tmp_path, lm.runtime.module, tokenizer="other")


def test_bradley_terry_losses():
    chosen, rejected = torch.tensor([1.0, -0.5]), torch.tensor([0.0, 0.5])
    expected = -torch.nn.functional.logsigmoid(chosen - rejected)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected), expected)
    torch.testing.assert_close(bradley_terry_loss(chosen + 7, rejected + 7), expected)
    centered = bradley_terry_loss(chosen, rejected, center=0.01)
    torch.testing.assert_close(centered, expected + 0.01 * (chosen + rejected) ** 2)


def test_a_ranker_compares_two_letters(lm):
    ranker = PairRanker(lm, template="{prompt} {first} {second}", letters=(" cat", " mat"))
    first, second = (Completion((1,), (2,), text=text, prompt_text="the") for text in ("sun", "sat"))
    (p,) = ranker([first], [second])
    a, b = (s.sequence_logprob for s in lm.score("the sun sat", [" cat", " mat"]))
    assert p == pytest.approx(np.exp(a) / (np.exp(a) + np.exp(b)), abs=1e-4)
    examples = ranker.examples([first] * 40, [second] * 40, np.random.default_rng(0))
    assert set(examples) == {("the sun sat", " cat"), ("the sat sun", " mat")}
