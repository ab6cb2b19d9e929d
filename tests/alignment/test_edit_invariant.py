"""EISL: against a slow enumeration, its invariances, its masks, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from likely.alignment import edit_invariant_loss  # noqa: E402
from likely.alignment.edit_invariant.loss import ngram_log_probs  # noqa: E402


def random_log_probs(*shape, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.log_softmax(logits, -1).requires_grad_(requires_grad)


def slow_loss(log_probs, target, ngrams, weights, *, tau=1.0, floor=-20.0):
    """The same by loops over every n-gram and every place: one row, softmax weights."""
    total = 0.0
    for n, weight in zip(ngrams, weights, strict=True):
        n = min(n, len(log_probs), len(target))
        losses = []
        for i in range(len(target) - n + 1):
            scores = []
            for t in range(len(log_probs) - n + 1):
                scores.append(sum(max(log_probs[t + j, target[i + j]], torch.tensor(floor)) for j in range(n)) / n)
            heights = [torch.exp(s / tau) for s in scores]
            losses.append(-sum(h / sum(heights) * s for h, s in zip(heights, scores, strict=True)))
        total = total + weight * sum(losses) / len(losses)
    return total


@pytest.mark.parametrize("tau", [1.0, 0.3])
@pytest.mark.parametrize("ngrams, weights", [((1, 2), (0.8, 0.2)), ((2, 3, 4), (1 / 3,) * 3), ((6,), (1.0,))])
def test_values_and_gradients_equal_the_enumeration(ngrams, weights, tau):
    log_probs = random_log_probs(5, 7, requires_grad=True)
    target = [3, 1, 1, 6]
    fast = edit_invariant_loss(log_probs, target, ngrams=ngrams, weights=weights, tau=tau)
    slow = slow_loss(log_probs, target, ngrams, weights, tau=tau)
    assert float(fast.detach()) == pytest.approx(float(slow.detach()), abs=1e-12)
    for found, expected in zip(torch.autograd.grad(fast, log_probs), torch.autograd.grad(slow, log_probs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_gradients_equal_finite_differences():
    logits = random_log_probs(2, 4, 5, requires_grad=True)
    mask = torch.tensor([[True] * 3, [True, True, False]])
    torch.autograd.gradcheck(
        lambda x: edit_invariant_loss(x, torch.tensor([[1, 2, 4], [0, 3, -100]]), target_mask=mask, from_logits=True),
        logits,
    )


def test_diagonal_sums_are_a_convolution_with_the_identity():
    cells = random_log_probs(2, 6, 5)
    for n in (1, 2, 3, 5):
        kernel = torch.eye(n, dtype=cells.dtype)[None, None]
        expected = torch.nn.functional.conv2d(cells[:, None], kernel)[:, 0]
        np.testing.assert_allclose(ngram_log_probs(cells, n), expected, atol=1e-12)


def test_one_ngram_as_long_as_both_is_cross_entropy():
    log_probs, target = random_log_probs(4, 6), torch.tensor([5, 0, 2, 2])
    expected = torch.nn.functional.nll_loss(log_probs, target)
    assert float(edit_invariant_loss(log_probs, target, ngrams=(4,))) == pytest.approx(float(expected), abs=1e-12)


def test_single_tokens_are_blind_to_order_and_pairs_are_not():
    log_probs, target = random_log_probs(6, 8), torch.tensor([1, 4, 4, 0, 7])
    shuffled = target[torch.tensor([3, 0, 4, 1, 2])]
    first, second = (float(edit_invariant_loss(log_probs, t, ngrams=(1,))) for t in (target, shuffled))
    assert first == pytest.approx(second, abs=1e-12)
    first, second = (float(edit_invariant_loss(log_probs, t, ngrams=(2,))) for t in (target, shuffled))
    assert abs(first - second) > 0.01


def peaked(tokens, size, height=0.97):
    rows = torch.full((len(tokens), size), (1 - height) / (size - 1), dtype=torch.float64)
    rows[torch.arange(len(tokens)), torch.tensor(tokens)] = height
    return rows.log()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_where_a_slice_of_the_output_starts_does_not_matter(n):
    output = [4, 9, 1, 7, 3, 0, 8, 2]
    log_probs = peaked(output, 10)
    found = [float(edit_invariant_loss(log_probs, output[s : s + 4], ngrams=(n,))) for s in range(5)]
    np.testing.assert_allclose(found, found[0], atol=1e-6)
    at_start = [float(-sum(log_probs[i, t] for i, t in enumerate(output[s : s + 4]))) for s in (0, 3)]
    assert at_start[1] > at_start[0] + 10  # cross-entropy: the negative control


def test_uniform_weights_bound_the_log_of_the_expected_count():
    cells = random_log_probs(1, 7, 9)
    target = torch.tensor([2, 5, 8])
    scores = ngram_log_probs(cells.gather(2, target.expand(1, 7, 3)), 2)
    exact = float(-(torch.logsumexp(scores, 1)).mean())
    bound = float(edit_invariant_loss(cells[0], target, ngrams=(2,), tau=math.inf, per_token=False))
    assert exact < bound == pytest.approx(float(-scores.mean()), abs=1e-12)


def edited(tokens, kind, count, rng):
    tokens = list(tokens)
    for _ in range(count):
        at = int(rng.integers(len(tokens) - 1))
        if kind == "shuffle":
            tokens[at], tokens[at + 1] = tokens[at + 1], tokens[at]
        elif kind == "repeat":
            tokens.insert(at, tokens[at])
        else:
            tokens[at] = 0
    return tokens


@pytest.mark.parametrize("kind", ["shuffle", "repeat", "blank"])
def test_loss_rises_less_than_cross_entropy_as_targets_are_edited(kind):
    rng = np.random.default_rng(0)
    output = list(range(1, 13))
    log_probs = peaked(output, 14)
    rows = torch.cat([log_probs, log_probs[-1:].expand(8, -1)])

    def cross_entropy(target):
        return float(torch.nn.functional.nll_loss(rows[: len(target)], torch.tensor(target)))

    for count in (1, 3, 6):
        targets = [edited(output, kind, count, rng) for _ in range(20)]
        ours = np.mean([float(edit_invariant_loss(log_probs, t)) for t in targets])
        base = float(edit_invariant_loss(log_probs, output))
        theirs = np.mean([cross_entropy(t) for t in targets])
        assert ours / base < theirs / cross_entropy(output)


def test_padding_and_company_change_nothing():
    log_probs, target = random_log_probs(3, 6, 8), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [2, 0, 0, 0]])
    lengths, sizes = (6, 4, 2), (4, 3, 1)
    expected = [
        float(edit_invariant_loss(log_probs[b, :t], target[b, :s], ngrams=(1, 3)))
        for b, (t, s) in enumerate(zip(lengths, sizes, strict=True))
    ]
    wide = torch.cat([log_probs, torch.full((3, 2, 8), math.nan, dtype=torch.float64)], 1)
    ids = torch.cat([target, torch.full((3, 3), -100)], 1)
    outputs = torch.arange(8) < torch.tensor(lengths)[:, None]
    wanted = torch.arange(7) < torch.tensor(sizes)[:, None]
    settings = {"ngrams": (1, 3), "output_mask": outputs, "target_mask": wanted}
    wide.requires_grad_()
    found = edit_invariant_loss(wide, ids, reduction="none", **settings)
    np.testing.assert_allclose(found.detach(), expected, atol=1e-12)
    gradient = torch.autograd.grad(found.sum(), wide)[0]
    assert bool(torch.isfinite(gradient).all()) and float(gradient[1, 4:].abs().max()) == 0
    mean, total = (edit_invariant_loss(wide, ids, reduction=r, **settings) for r in ("mean", "sum"))
    assert float(mean.detach()) == pytest.approx(np.mean(expected)) and float(total.detach()) == pytest.approx(
        sum(expected)
    )


def test_gumbel_weights_are_reproducible_and_finite():
    log_probs, target = random_log_probs(50, 6, 8).float(), torch.randint(8, (50, 4))

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return edit_invariant_loss(log_probs, target, position="gumbel", generator=generator, reduction="none")

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    means = torch.stack([draw(seed) for seed in range(40)])  # 2,000 rows
    assert bool(torch.isfinite(means).all())
    soft = edit_invariant_loss(log_probs, target)
    assert float(means.mean()) > float(soft)  # noise puts weight on worse places


def test_impossible_tokens_count_as_the_floor():
    log_probs = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]], requires_grad=True)
    loss = edit_invariant_loss(log_probs, [1, 0], ngrams=(2,), floor=-5.0)
    assert float(loss) == pytest.approx(5.0)
    assert float(torch.autograd.grad(loss, log_probs)[0].abs().max()) == 0


def test_logits_are_normalised_when_asked_for():
    logits = 3 * random_log_probs(4, 5) + 7
    found = edit_invariant_loss(logits, [1, 2], from_logits=True)
    assert float(found) == pytest.approx(float(edit_invariant_loss(torch.log_softmax(logits, -1), [1, 2])), abs=1e-12)
    half = edit_invariant_loss(logits.bfloat16(), [1, 2], from_logits=True)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"log_probs": torch.ones(2, 3)}, "log_probs must be <= 0, got 1: give logits with from_logits=True"),
        ({"log_probs": torch.full((2, 3), math.nan)}, "NaN"),
        ({"ngrams": (1, 2), "weights": (1.0,)}, "weights must be one for each of the 2 ngrams, got 1"),
        ({"weights": (1.0, -1.0)}, "weights must be >= 0"),
        ({"ngrams": ()}, "ngrams must be whole numbers >= 1"),
        ({"ngrams": (0,)}, "ngrams must be whole numbers >= 1"),
        ({"targets": torch.zeros(0, dtype=torch.long)}, "target 0 is empty"),
        ({"targets": [3]}, "targets must be token ids below 3, got 3 to 3"),
        ({"targets": torch.tensor([0.5])}, "targets must be whole numbers"),
        ({"targets": torch.zeros(2, 2, dtype=torch.long)}, "with targets"),
        ({"target_mask": torch.tensor([True])}, r"target_mask must be \(1, 2\), got \(1, 1\)"),
        ({"targets": [0, 1, 0], "target_mask": torch.tensor([True, False, True])}, "has a hole"),
        ({"tau": 0.0}, "tau must be > 0, got 0.0"),
        ({"floor": 0.0}, "floor must be < 0, got 0.0"),
        ({"position": "hard"}, 'position must be "softmax" or "gumbel", got "hard"'),
        ({"reduction": "median"}, "reduction must be"),
    ],
)
def test_what_is_refused(settings, message):
    given = {"log_probs": torch.full((2, 3), math.log(1 / 3)), "targets": [0, 1]} | settings
    with pytest.raises(ValueError, match=message):
        edit_invariant_loss(given.pop("log_probs"), given.pop("targets"), **given)
