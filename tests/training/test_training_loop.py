"""The training loop: bit for bit the loop that one would write by hand, stopped early, and never silently at NaN."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("torch")

import torch

from likely.training.loop import EarlyStopping, TrainingDiverged, train

X = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 1.1], [0.2, 0.9]], dtype=torch.float64)
Y = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


def weights():
    return torch.tensor([0.1, -0.2], dtype=torch.float64, requires_grad=True)


def row_loss(w, row):
    return (X[row] @ w - Y[row]) ** 2


def schedule_of(optimizer, kind):
    schedules = torch.optim.lr_scheduler
    if kind == "plateau":
        return schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    return schedules.MultiStepLR(optimizer, [5, 9])


@pytest.mark.parametrize("kind", ["plateau", "steps"])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("method", [torch.optim.Adam, torch.optim.AdamW])
def test_numbers_are_those_of_a_loop_by_hand(method, clip, kind):
    rows = [0, 1, 2, 3] * 4
    by_hand = weights()
    optimizer = method([by_hand], lr=0.1, weight_decay=0.01)
    schedule = schedule_of(optimizer, kind)
    expected = []
    for row in rows:
        optimizer.zero_grad()
        loss = row_loss(by_hand, row)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([by_hand], clip)
        optimizer.step()
        schedule.step(*([loss.item()] if kind == "plateau" else []))
        expected.append(loss.item())
    w, seen = weights(), []
    optimizer = method([w], lr=0.1, weight_decay=0.01)
    found = train(
        rows, lambda row: row_loss(w, row), optimizer, schedule=schedule_of(optimizer, kind), clip=clip,
        progress=lambda step, loss: seen.append((step, loss)),
    )  # fmt: skip
    assert torch.equal(w, by_hand) and found == expected and seen == list(enumerate(expected))


def test_summands_of_a_loss_add_up():
    together, apart = weights(), weights()
    train([0], lambda _: sum(row_loss(together, r) / 4 for r in range(4)), torch.optim.SGD([together], lr=0.1))
    train([0], lambda _: (row_loss(apart, r) / 4 for r in range(4)), torch.optim.SGD([apart], lr=0.1))
    torch.testing.assert_close(together, apart)


def test_batches_are_read_after_the_step_before():
    w = weights()
    states = []

    def batches():
        for _ in range(3):
            states.append(w.detach().clone())
            yield 0

    train(batches(), lambda row: row_loss(w, row), torch.optim.SGD([w], lr=0.1))
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(states))


def test_the_best_state_is_kept_and_patience_ends_training():
    metrics, steps = iter([5.0, 3.0, 4.0, 3.0, 1.0]), []
    w = weights()
    stopping = EarlyStopping(lambda: next(metrics), lambda: len(steps), every=2, patience=2)
    train(
        itertools.repeat(0), lambda row: row_loss(w, row), torch.optim.SGD([w], lr=1e-3), stopping=stopping,
        progress=lambda step, _: steps.append(step),
    )  # fmt: skip
    assert (stopping.best, stopping.lowest, stopping.curve) == (4, 3.0, [5.0, 3.0, 4.0, 3.0]) and len(steps) == 8


def test_what_is_not_finite_is_refused():
    w = weights()
    with pytest.raises(TrainingDiverged, match=r"the loss is not finite in step 1 .*learning_rate 0.1"):
        train([0, 1], lambda row: row_loss(w, 0) / (1 - row), torch.optim.SGD([w], lr=0.1))
    w = weights()
    optimizer = torch.optim.SGD([w], lr=1e200)
    falls = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step)
    with pytest.raises(ValueError, match=r"a parameter is not finite after 1 steps \(learning_rate 1e\+200\)"):
        train([0], lambda row: 1e200 * row_loss(w, row), optimizer, schedule=falls)
