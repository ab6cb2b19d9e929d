"""A run that was stopped goes on bit for bit; pieces and processes add up to the large batch."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

import torch

from likely.errors import DataError
from likely.training.checkpoints import Checkpoints
from likely.training.loop import LossOutput, train
from likely.training.metrics_log import MetricsLog


class Killed(Exception):
    pass


def run(steps, path=None, *, kill_at=None, log=None, kind=torch.optim.AdamW, recipe=None):
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    optimizer = kind(module.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (t + 1))
    data = torch.randn(steps, 4, 3, generator=torch.Generator().manual_seed(0))

    def loss(step):
        if step == kill_at:
            raise Killed
        value = module(data[step]).square().mean()
        return LossOutput(value, {"rows": (8.0, 4)})

    checkpoints = path and Checkpoints(path, 2, recipe or {"lr": 0.05})
    losses = train(range(steps), loss, optimizer, schedule=schedule, clip=1.0, checkpoints=checkpoints, log=log)
    return losses, [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, kind):
    whole, expected = run(7, kind=kind)
    log = MetricsLog(tmp_path / "log.jsonl")
    with pytest.raises(Killed):
        run(7, tmp_path / "state.safetensors", kill_at=5, log=log, kind=kind)
    losses, found = run(7, tmp_path / "state.safetensors", log=log, kind=kind)
    assert losses == whole and all(map(torch.equal, found, expected))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(7)) and [line["loss"] for line in lines] == whole
    assert all(line["rows"] == 2 and line["gradient_norm"] > 0 for line in lines)


def test_a_finished_run_is_not_run_again(tmp_path):
    whole, expected = run(4, tmp_path / "state.safetensors")
    losses, found = run(4, tmp_path / "state.safetensors", kill_at=3)
    assert losses == whole and all(map(torch.equal, found, expected))


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*state"):
        run(2, tmp_path / "file" / "state")


def test_another_recipe_or_another_file_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    run(2, path)
    with pytest.raises(DataError, match=r"made with another lr \(0.05, now 0.1\)"):
        run(2, path, recipe={"lr": 0.1})
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not a checkpoint"):
        run(2, path)
