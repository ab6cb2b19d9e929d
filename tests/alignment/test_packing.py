"""Texts behind each other in one row give the numbers of rows of their own; batches are padded little."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("peft")

import torch
from tiny_torch import tiny_module

from likely.alignment.scores import packed_rows, packed_scores
from likely.alignment.sft import MaskedText, _document, text_scores
from likely.training.fit import pieces_of
from likely.training.logprobs import sequence_logprobs
from likely.training.lora import batches

SIZES = (11, 3, 4, 9, 2, 5, 3)


def texts():
    rng = np.random.default_rng(0)
    found = []
    for size in SIZES:
        scored = rng.random(size) < 0.6
        scored[-1] = True
        found.append(MaskedText(tuple(rng.integers(1, 60, size).tolist()), tuple(scored.tolist())))
    return found


def padded(module, chosen):
    longest = max(map(len, chosen))
    ids, seen, scored = (torch.zeros(len(chosen), longest, dtype=torch.long) for _ in range(3))
    for i, text in enumerate(chosen):
        n = len(text)
        ids[i, :n], seen[i, :n], scored[i, 1:n] = torch.tensor(text.tokens), 1, torch.tensor(text.scored[1:]).long()
    return sequence_logprobs(module, ids, seen, scored)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_packed_texts_have_the_numbers_and_gradients_of_padded_ones(name):
    module, chosen = tiny_module(name).requires_grad_(), texts()
    seen = []
    hook = module.get_input_embeddings().register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape))
    packed = text_scores(module, chosen)
    hook.remove()
    (-packed.sum.sum() / packed.length.sum()).backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    apart = padded(module, chosen)
    (-apart.sum.sum() / apart.length.sum()).backward()
    torch.testing.assert_close(packed.token_logprobs, apart.token_logprobs, atol=1e-5, rtol=0)
    assert torch.equal(packed.mask, apart.mask)
    scale = max(p.grad.abs().max() for p in module.parameters())
    assert max((p.grad - g).abs().max() for p, g in zip(module.parameters(), gradients, strict=True)) < 1e-5 * scale
    assert seen == [(7, 11)] if name == "mistral" else seen == [(3, 10)]  # a sliding window: rows of their own


def test_texts_that_see_each_other_have_other_numbers():
    """The negative control: one document of two texts, so that the second sees the first."""
    module, (first, second, *_) = tiny_module("llama"), texts()
    apart = padded(module, [first, second])
    joined = MaskedText(first.tokens + second.tokens, first.scored + second.scored)
    document = _document(0, joined)
    leaky = packed_scores(module, [document], [[0]], (1, len(joined) - 1))
    last = int(apart.length[1])
    theirs = leaky.token_logprobs[0][leaky.mask[0]][-last:]
    assert not torch.allclose(theirs, apart.token_logprobs[1][apart.mask[1]], atol=1e-3)


def test_rows_hold_every_text_once_and_are_no_longer_than_the_longest():
    sizes = np.random.default_rng(1).integers(1, 50, 200).tolist()
    rows = packed_rows(sizes)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(sizes[i] for i in row) for row in rows) == max(sizes)
    assert len(rows) * max(sizes) < 1.1 * sum(sizes) < len(sizes) * max(sizes)


def test_batches_and_pieces_are_padded_little():
    rng = np.random.default_rng(2)
    lengths = np.minimum(rng.lognormal(4, 0.8, 450).astype(int) + 8, 512).tolist()
    order = batches(lengths, batch=8, steps=57, seed=0)
    budget = 2 * max(lengths)

    def computed(groups):
        pieces = [p for group in groups for p in pieces_of(group, lambda i: lengths[i], 2, budget)]
        assert all(len(p) <= 2 or len(p) * max(lengths[i] for i in p) <= budget for p in pieces)
        return sum(len(p) * max(lengths[i] for i in p) for p in pieces), len(pieces)

    total = sum(lengths[i] for group in order for i in group)
    here, pieces = computed(order)
    shuffled = rng.permutation(450).tolist()
    plain = sum(8 * max(lengths[i] for i in shuffled[k : k + 8]) for k in range(0, 448, 8))
    assert here < 1.15 * total and plain > 1.5 * total and pieces < 4 * 57
