"""SequenceMatch: maximum likelihood as a special case, the tabular fixed point, telescoping, trees, corruption."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_torch import VOCAB, tiny_module  # noqa: E402

from likely.alignment.sequence_match.objective import action_values, sequence_match_loss  # noqa: E402
from likely.alignment.sequence_match.text_quality import divergence_frontier, mauve_like, repeated_ngrams  # noqa: E402
from likely.alignment.sequence_match.training import (  # noqa: E402
    SequenceMatchSettings,
    initialise_backspace,
    sample_trajectories,
    train_sequence_match,
)
from likely.alignment.sequence_match.trajectories import Trajectory, corrupt, to_trees, tree_logits  # noqa: E402
from likely.errors import DataError  # noqa: E402
from likely.runtimes.torch.runtime import TorchRuntime  # noqa: E402

BACK, END = 5, 6


def random_trajectories(n, rng, vocab=12):
    found = []
    for _ in range(n):
        prompt = tuple(rng.integers(7, vocab, rng.integers(1, 4)).tolist())
        actions, depth = [], 0
        for _ in range(rng.integers(1, 12)):
            if depth and rng.random() < 0.35:
                actions.append(BACK)
                depth -= 1
            else:
                actions.append(int(rng.integers(7, vocab)))
                depth += 1
        finished = bool(rng.random() < 0.5)
        found.append(Trajectory(prompt, (*actions, END) if finished else tuple(actions), finished))
    return found


def stack_before(trajectory, t):
    return [*trajectory.prompt, *Trajectory(trajectory.prompt, trajectory.actions[:t], False).text(BACK)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_one_pass_over_trees_equals_a_pass_per_state(name):
    module, trajectories = tiny_module(name), random_trajectories(6, np.random.default_rng(0))
    trees = to_trees(trajectories, backspace_id=BACK)
    logits = tree_logits(module, trees)
    chosen, _, after = action_values(logits, trees)
    grads = torch.autograd.grad(chosen.double()[torch.from_numpy(trees.real)].sum(), list(module.parameters()))
    slow = torch.zeros((), dtype=torch.float64)
    for b, trajectory in enumerate(trajectories):
        steps = len(trajectory.actions)
        for t in range(steps + (not trajectory.finished)):
            row = module(input_ids=torch.tensor([stack_before(trajectory, t)])).logits[0, -1]
            torch.testing.assert_close(logits[b, trees.row[b, t]], row, atol=1e-4, rtol=1e-4)
            if t:
                torch.testing.assert_close(after[b, t - 1], torch.logsumexp(row, -1), atol=1e-4, rtol=1e-4)
            if t < steps:
                slow = slow + row[trajectory.actions[t]].double()
        if trajectory.finished:
            assert after[b, steps - 1] == 0
    for one, other in zip(grads, torch.autograd.grad(slow, list(module.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)


def test_a_node_that_sees_a_deleted_one_would_be_noticed():
    """Negative control: the plain causal mask over the same nodes gives other rows."""
    module = tiny_module("llama")
    trees = to_trees([Trajectory((7,), (8, BACK, 9), False)], backspace_id=BACK)
    right = tree_logits(module, trees)[0, 2]
    trees.sees[0, 2, 1] = True
    assert (tree_logits(module, trees)[0, 2] - right).abs().max() > 1e-2


@pytest.mark.parametrize("weights", ["uniform", "discount"])
def test_maximum_likelihood_is_a_special_case(weights):
    rng = np.random.default_rng(1)
    trees = to_trees(random_trajectories(5, rng), backspace_id=BACK)
    logits = torch.randn(5, trees.input_ids.shape[1], 12, dtype=torch.float64, requires_grad=True)
    everything = torch.ones(5, dtype=torch.bool)
    found = {}
    for divergence, alpha in (("mle", 0.5), ("chi2_mixture", 0.0)):
        loss = sequence_match_loss(
            logits, trees, everything, divergence=divergence, alpha=alpha, weights=weights, gamma=0.9
        ).loss
        found[divergence] = (loss.item(), torch.autograd.grad(loss, logits)[0])
    logprobs, by_hand, total = torch.log_softmax(logits, -1), 0.0, int(trees.real.sum())
    for b in range(5):
        for t in np.flatnonzero(trees.real[b]):
            weight = 1 / total if weights == "uniform" else 0.9**t / 5
            by_hand = by_hand - weight * logprobs[b, trees.row[b, t], trees.action[b, t]]
    grad = torch.autograd.grad(by_hand, logits)[0]
    for value, own in found.values():
        assert value == pytest.approx(by_hand.item(), rel=1e-6)
        torch.testing.assert_close(own, grad, atol=1e-7, rtol=1e-5)


def test_values_telescope_where_texts_end():
    rng = np.random.default_rng(2)
    trajectories = [t for t in random_trajectories(30, rng) if t.finished]
    trees = to_trees(trajectories, backspace_id=BACK)
    logits = torch.randn(len(trees), trees.input_ids.shape[1], 12)
    _, value, after = action_values(logits, trees)
    powers = 0.9 ** torch.arange(value.shape[1])
    total = (powers * (value - 0.9 * after) * torch.from_numpy(trees.real)).sum(1)
    torch.testing.assert_close(total, value[:, 0], atol=1e-5, rtol=1e-5)


def test_on_equal_prompts_it_does_not_matter_whose_values_are_taken():
    rng = np.random.default_rng(7)
    data = [t for t in random_trajectories(30, rng) if t.finished]
    own = [Trajectory(t.prompt, other.actions, True) for t, other in zip(data, data[1:] + data[:1], strict=True)]
    trees, is_data = to_trees(data + own, backspace_id=BACK), torch.arange(2 * len(data)) < len(data)
    logits = torch.randn(len(trees), trees.input_ids.shape[1], 12, dtype=torch.float64)
    for b, t in enumerate(data):  # the first states are the same
        logits[len(data) + b, len(t.prompt) - 1] = logits[b, len(t.prompt) - 1]

    def loss(share):
        settings = {"gamma": 0.9, "weights": "discount", "model_values": share}
        return sequence_match_loss(logits, trees, is_data, **settings).loss.item()

    assert loss(0.0) == pytest.approx(loss(0.5), abs=1e-5)
    for b, t in enumerate(data):  # other first states, whose values are larger by 1
        logits[len(data) + b, len(t.prompt) - 1] += 1
    assert loss(0.5) - loss(0.0) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("alpha", "policy", "last"),
    [(1.0, (0.36391, 0.28226, 0.19978, 0.11811, 0.03594), -2.0),
     (0.1, (0.47926, 0.30122, 0.16041, 0.05911, 0.0), -20.0)],
)  # fmt: skip
def test_one_step_has_the_closed_form_of_the_mixture_divergence(alpha, policy, last):
    """θ = (2 / α) (d − π) / (d + π), π = softmax θ: the gradient of the loss vanishes there and not elsewhere."""
    d = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    theta = np.zeros(5)
    for _ in range(20_000):
        pi = np.exp(theta - theta.max())
        pi /= pi.sum()
        theta = 0.9 * theta + 0.1 * (2 / alpha) * (d - pi) / (d + pi)
    np.testing.assert_allclose(pi, policy, atol=1e-5)
    assert theta[-1] == pytest.approx(last, abs=1e-9)
    of_data, of_model = (d * 20).round().astype(int), (pi * 4000).round().astype(int)
    texts = [Trajectory((0,), (a,), True) for counts in (of_data, of_model) for a in range(5) for _ in range(counts[a])]
    trees, is_data = to_trees(texts, backspace_id=None), torch.arange(len(texts)) < 20

    def gradient(at):
        shared = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        loss = sequence_match_loss(shared.expand(len(texts), 1, 5), trees, is_data, alpha=alpha, gamma=1.0).loss
        return torch.autograd.grad(loss, shared)[0].abs().max().item()

    assert gradient(theta) < 1e-3 < 2e-2 < gradient(np.log(d + 1e-3))


def test_corruption_is_undone_and_only_deletions_are_taught():
    rng = np.random.default_rng(3)
    clean = [Trajectory((7,), tuple(rng.integers(7, 12, 200).tolist()), False) for _ in range(20)]
    noisy = [corrupt(t, 0.1, rng, backspace_id=BACK, candidates=range(7, 12)) for t in clean]
    inserted = 0
    for before, after in zip(clean, noisy, strict=True):
        assert after.text(BACK) == list(before.actions)
        wrong = [i for i, taught in enumerate(after.taught) if not taught]
        assert all(after.actions[i + 1] == BACK and after.actions[i] != after.actions[i + 2] for i in wrong)
        assert len(wrong) == after.actions.count(BACK)
        inserted += len(wrong)
    assert abs(inserted - 400) < 5 * math.sqrt(4000 * 0.1 * 0.9)
    trees = to_trees(noisy[:1], backspace_id=BACK)
    logits = torch.zeros(1, trees.input_ids.shape[1], 12, requires_grad=True)
    loss = sequence_match_loss(logits, trees, torch.ones(1, dtype=torch.bool), divergence="mle").loss
    grad = torch.autograd.grad(loss, logits)[0][0]
    t = next(i for i, taught in enumerate(noisy[0].taught) if not taught)
    parent, wrong = trees.row[0, t], noisy[0].actions[t]
    right = noisy[0].actions[t + 2]
    assert grad[parent, right] < 0 < grad[parent, wrong]  # from the same state the right token is taught, no other


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (Trajectory((), (7,), False), "trajectory 0: needs a prompt"),
        (Trajectory((7,), (), False), "at least one action"),
        (Trajectory((7,), (8, BACK, BACK), False), "action 2 deletes a token of the prompt"),
        (Trajectory((7,), (8, BACK), True), "last action is a deletion"),
        (Trajectory((7,), (8,), False, (True, False)), "2 flags for 1 actions"),
    ],
)
def test_bad_trajectories_are_named(trajectory, message):
    with pytest.raises(DataError, match=message):
        to_trees([trajectory], backspace_id=BACK)


def test_bad_settings_are_refused():
    trees = to_trees([Trajectory((7,), (8,), True)], backspace_id=None)
    logits, data = torch.zeros(1, 1, 12), torch.ones(1, dtype=torch.bool)
    for settings, message in (
        ({"gamma": 0.0}, "gamma"), ({"gamma": 1.1}, "gamma"), ({"alpha": -1.0}, "alpha"),
        ({"model_values": 2.0}, "model_values"), ({"divergence": "chi"}, "unknown divergence"),
        ({"weights": "x"}, "unknown weights"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sequence_match_loss(logits, trees, data, **settings)
    with pytest.raises(ValueError, match="is_data"):
        sequence_match_loss(logits, trees, ~data)
    for settings, message in (({"steps": 0}, "steps"), ({"steps": 1, "divergence": "kl"}, "unknown divergence")):
        with pytest.raises(ValueError, match=message):
            SequenceMatchSettings(**settings)
    with pytest.raises(ValueError, match="no backspace_id to mend it with"):
        train_sequence_match(
            tiny_module("llama"), [Trajectory((7,), (8,), True)], SequenceMatchSettings(steps=1, noise=0.1),
            max_tokens=4, end_ids=frozenset({END}),
        )  # fmt: skip
    with pytest.raises(DataError, match="trajectory 1: holds the backspace"):
        train_sequence_match(
            tiny_module("llama"), [Trajectory((7,), (8,), True), Trajectory((7,), (BACK,), False)],
            SequenceMatchSettings(steps=1), max_tokens=4, end_ids=frozenset({END}), backspace_id=BACK,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_fresh_backspace_is_nowhere_likelier_than_one_in_v(name):
    module = tiny_module(name)
    initialise_backspace(module, BACK)
    with torch.no_grad():
        logprobs = torch.log_softmax(module(input_ids=torch.arange(8, 40)[None]).logits.double(), -1)
    assert logprobs[..., BACK].max() <= -math.log(VOCAB) + 1e-5


def test_training_teaches_to_delete_and_is_the_same_twice():
    data = [Trajectory((7,), (*([8, 9] * 4), END), True) for _ in range(8)]
    settings = SequenceMatchSettings(
        steps=50, batch=8, noise=0.2, learning_rate=5e-3, refresh=20, drawn=8, warm_up=5, seed=1
    )

    def trained():
        module = tiny_module("llama", seed=3)
        result = train_sequence_match(
            module, data, settings, max_tokens=12, end_ids=frozenset({END}), backspace_id=BACK,
            candidates=range(8, 20),
        )  # fmt: skip
        return module, result

    module, result = trained()
    assert len(result.losses) == len(result.metrics) == 50 and result.drawn == 24
    assert {"nll_data", "reward_model", "value_data", "backspaces"} <= result.metrics[-1].keys()
    assert result.metrics[-1]["nll_data"] < 0.5 * result.metrics[0]["nll_data"]
    with torch.no_grad():
        after_wrong = torch.softmax(module(input_ids=torch.tensor([[7, 8, 15]])).logits[0, -1], -1)
        after_right = torch.softmax(module(input_ids=torch.tensor([[7, 8, 9]])).logits[0, -1], -1)
    assert after_wrong[BACK] > 0.5 > 5 * after_right[BACK]
    again, other = trained()
    assert result.losses == other.losses
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    runtime = TorchRuntime(module, revision="x")
    texts = sample_trajectories(
        runtime, [[7, 8, 15]] * 20, max_tokens=8, end_ids=frozenset({END}), backspace_id=BACK, seed=5
    )
    assert all(0 <= token < VOCAB for t in texts for token in t.text(BACK))
    to_trees(texts, backspace_id=BACK)  # nothing of a prompt is ever deleted


def test_the_frontier_knows_equal_apart_and_between():
    assert divergence_frontier([3, 1, 2], [3, 1, 2]) == pytest.approx(1, abs=1e-4)
    assert divergence_frontier([1, 0], [0, 1]) == pytest.approx(integral_of_disjoint(5.0), abs=5e-3)
    near, far = (divergence_frontier([0.5, 0.5], [0.5 + e, 0.5 - e]) for e in (0.05, 0.4))
    assert 0.9 < near < 1 and far < near
    rng = np.random.default_rng(0)
    p, same, other = rng.normal(size=(200, 8)), rng.normal(size=(200, 8)), rng.normal(size=(200, 8)) + 3
    assert mauve_like(p, same) > 0.8 > 0.1 > mauve_like(p, other)
    assert mauve_like(p, same) == mauve_like(p, same)
    for call, message in (
        (lambda: divergence_frontier([1, 2], [1]), "one length"),
        (lambda: mauve_like(p, same[:, :3]), "features must be"),
        (lambda: mauve_like(p, same, clusters=1), "clusters"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def integral_of_disjoint(c):
    """KL(q ‖ r) = −ln(1 − λ), KL(p ‖ r) = −ln λ: the curve is ((1 − λ)^c, λ^c)."""
    shares = np.linspace(0, 1, 100_001)
    x, y = (1 - shares) ** c, shares**c
    return abs(float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum()))


def test_repetition_is_a_share_of_n_grams():
    found = repeated_ngrams([[1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1], [1, 2]], n=4)
    assert found[0] == 0 and found[1] == pytest.approx(2 / 3) and math.isnan(found[2])


def test_an_offset_of_the_logits_changes_values_and_no_likelihood():
    rng = np.random.default_rng(8)
    trees = to_trees(random_trajectories(4, rng), backspace_id=BACK)
    logits, data = torch.randn(4, trees.input_ids.shape[1], 12), torch.ones(4, dtype=torch.bool)
    for divergence, same in (("mle", True), ("chi2", False)):
        plain = sequence_match_loss(logits, trees, data, divergence=divergence, alpha=0.5).loss.item()
        moved = sequence_match_loss(logits + 3, trees, data, divergence=divergence, alpha=0.5).loss.item()
        back = sequence_match_loss(logits + 3, trees, data, divergence=divergence, alpha=0.5, offset=3.0).loss.item()
        assert back == pytest.approx(plain, rel=1e-4) and (moved == pytest.approx(plain, rel=1e-4)) == same
