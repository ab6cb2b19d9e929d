"""Log-probabilities with gradients: the numbers of lm.score, whatever stands beside them in the batch."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from tiny_gguf import write_tiny_llama
from tiny_torch import tiny_module

import likely
from likely.alignment.scores import (
    Completion,
    completion_scores,
    normalise,
    takes_masks,
)
from likely.training.logprobs import SelectedLogprobs, TokenBatch, sequence_logprobs

TEXTS = [Completion((1, 2, 3), (4, 5)), Completion((7,), (8, 9, 10, 11, 12)), Completion((5, 6, 7, 8), (9,))]


def by_hand(module, text):
    ids = torch.tensor([[*text.prompt, *text.tokens]])
    rows = torch.log_softmax(module(input_ids=ids).logits[0].double(), dim=-1)
    start = len(text.prompt)
    return sum(rows[start - 1 + i, t] for i, t in enumerate(text.tokens))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_sums_lengths_and_means(name):
    module = tiny_module(name)
    scores = completion_scores(module, TEXTS)
    expected = torch.stack([by_hand(module, text) for text in TEXTS]).float()
    torch.testing.assert_close(scores.sum, expected, atol=1e-5, rtol=0)
    assert scores.length.tolist() == [2, 5, 1]
    torch.testing.assert_close(scores.mean, scores.sum / torch.tensor([2, 5, 1]))


def test_numbers_are_those_of_lm_score(tmp_path):
    with likely.load(str(write_tiny_llama(tmp_path / "tiny.gguf")), runtime="torch") as lm:
        (scored,) = lm.score("the cat sat on", [" the mat"])
        prompt = lm.encode_prompt("the cat sat on")
        text = Completion(tuple(prompt), tuple(scored.token_ids))
        found = completion_scores(lm.runtime.module, [text])
    assert found.sum.item() == pytest.approx(scored.sequence_logprob, abs=1e-5)
    assert found.token_logprobs[found.mask].tolist() == pytest.approx(scored.token_logprobs, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    module = tiny_module("llama")
    alone = torch.cat([completion_scores(module, [text]).sum for text in TEXTS])
    batch = TokenBatch.of([text.marked for text in TEXTS])
    ids, seen, scored = batch.input_ids.clone(), batch.attention_mask.clone(), batch.completion_mask.clone()
    if side == "left":
        for i, text in enumerate(TEXTS):
            shift = ids.shape[1] - len(text)
            ids[i], seen[i], scored[i] = (x[i].roll(shift) for x in (ids, seen, scored))
    ids[seen == 0] = 13  # whatever padding holds
    scores = sequence_logprobs(module, ids, seen, scored)
    torch.testing.assert_close(scores.sum, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3"])
def test_a_shared_prompt_is_computed_once_with_the_same_numbers(name):
    module = tiny_module(name).requires_grad_()
    prompt, other = (1, 2, 3), (9, 4)
    texts = [
        Completion(prompt, (4, 5)), Completion(other, (6,)), Completion(prompt, (7, 8, 9, 10)),
        Completion(other, (11, 3)), Completion(prompt, (4,)), Completion((5,), (6, 6)),
    ]  # fmt: skip
    weights = torch.randn(len(texts), generator=torch.Generator().manual_seed(0))
    seen = []
    hook = module.get_input_embeddings().register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape))
    shared = completion_scores(module, texts)
    hook.remove()
    (shared.sum * weights).sum().backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    batch = TokenBatch.of([text.marked for text in texts])
    apart = sequence_logprobs(module, batch.input_ids, batch.attention_mask, batch.completion_mask)
    (apart.sum * weights).sum().backward()
    torch.testing.assert_close(shared.token_logprobs, apart.token_logprobs, atol=1e-5, rtol=0)
    assert torch.equal(shared.mask, apart.mask) and torch.equal(shared.length, apart.length)
    scale = max(p.grad.abs().max() for p in module.parameters())
    assert max((p.grad - g).abs().max() for p, g in zip(module.parameters(), gradients, strict=True)) < 1e-5 * scale
    assert seen == ([(2, 7)] if takes_masks(module) else [(6, 7)])  # the two short prompts stand in one row
    assert takes_masks(module) == (name in ("llama", "qwen3"))  # windows, and logits that are capped, are not shared


def test_a_completion_that_comes_several_times_is_computed_once():
    module = tiny_module("gemma3")
    texts = [Completion((1, 2), (4, 5)), Completion((1,), (2, 4, 5)), Completion((1, 2), (4, 5), text="again")]
    seen = []
    hook = module.get_input_embeddings().register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))
    scores = completion_scores(module, texts)
    hook.remove()
    alone = torch.cat([completion_scores(module, [text]).sum for text in texts])
    assert seen == [2] and scores.length.tolist() == [2, 3, 2]
    torch.testing.assert_close(scores.sum, alone, atol=1e-5, rtol=0)


def test_gradients_are_those_of_log_softmax():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 11, generator=generator, requires_grad=True)
    plain = logits.detach().clone().requires_grad_()
    ids = torch.randint(0, 11, (3, 4), generator=generator)
    weights = torch.randn(3, 4, generator=generator)
    (SelectedLogprobs.apply(logits, ids) * weights).sum().backward()
    (torch.log_softmax(plain, -1).gather(-1, ids[..., None]).squeeze(-1) * weights).sum().backward()
    torch.testing.assert_close(logits.grad, plain.grad, atol=1e-6, rtol=1e-5)


def test_half_precision_logits_are_normalised_in_float32():
    logits = (torch.randn(1, 5, 3000, generator=torch.Generator().manual_seed(1)) * 4).bfloat16()
    ids = torch.tensor([[1, 20, 300, 2999, 0]])
    expected = torch.log_softmax(logits.float(), -1).gather(-1, ids[..., None]).squeeze(-1)
    torch.testing.assert_close(SelectedLogprobs.apply(logits, ids), expected, atol=1e-5, rtol=0)


def test_normalisers():
    sums, lengths, reference = torch.tensor([-4.0, -6.0]), torch.tensor([2, 3]), torch.tensor([-5.0, -3.0])
    found = {k: normalise(k, sums, lengths, reference).tolist() for k in ("logp", "logp_mean", "ratio", "ratio_mean")}
    assert found == {"logp": [-4, -6], "logp_mean": [-2, -2], "ratio": [1, -3], "ratio_mean": [0.5, -1]}
    with pytest.raises(ValueError, match="needs the reference"):
        normalise("ratio", sums)
    with pytest.raises(ValueError, match="did you mean"):
        normalise("ratios", sums)


def test_what_cannot_be_scored_is_refused():
    module, batch = tiny_module("llama"), TokenBatch.of([text.marked for text in TEXTS])
    nothing = torch.zeros_like(batch.completion_mask)
    with pytest.raises(ValueError, match="row 0: the completion mask shows no token"):
        sequence_logprobs(module, batch.input_ids, batch.attention_mask, nothing)
    with pytest.raises(ValueError, match="shows padding"):
        sequence_logprobs(module, batch.input_ids, batch.attention_mask, torch.ones_like(nothing))
    with pytest.raises(ValueError, match="at least one token"):
        Completion((1,), ())
    with pytest.raises(ValueError, match="at least one token"):
        Completion((), (1,))
