"""A script for torchrun: `SequenceLM`s shared by its processes against the same models in one; rank 0 writes a file."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from likely.errors import ModelError
from likely.sequence import SequenceConfig, SequenceLM
from likely.sequence.parallel import SequenceGroup

MODELS = {"LASP-2": ["linear_attention", "mamba2"], "LASP-2H": ["linear_attention", "attention"]}
VOCABULARY, LENGTH = 13, 21


def model_of(layers: list[str]) -> SequenceLM:
    torch.manual_seed(3)
    config = SequenceConfig(
        vocab_size=VOCABULARY, hidden_size=16, layers=layers, mlp_size=24,
        mixers={"mamba2": {"d_state": 4, "head_dim": 8}, "linear_attention": {"heads": 2}, "attention": {"heads": 2}},
    )  # fmt: skip
    return SequenceLM(config).double()


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().abs().max())


def compared(model: SequenceLM, over: object, batches: list[Tensor], own: int) -> dict[str, float]:
    """Loss, gradients and logits of this process's batch (`own`), shared, and of all batches in one process."""
    alone, mask = copy.deepcopy(model).parallelize(SequenceGroup()), torch.ones_like(batches[0])
    mask[-1, -4:] = 0
    count = sum(int(mask[:, 1:].sum()) for _ in batches)
    wanted = sum(alone.mean_loss(ids, mask) * int(mask[:, 1:].sum()) for ids in batches) / count
    wanted.backward()
    shared = copy.deepcopy(model).parallelize(over)
    loss = shared.mean_loss(batches[own], mask)
    loss.backward()
    shared.sum_gradients()
    pairs = zip(shared.model.parameters(), alone.model.parameters(), strict=True)
    with torch.no_grad():
        logits = difference(shared.logits(batches[own]), alone.model(batches[own]).logits)
    return {
        "loss": abs(shared.total(loss) - float(wanted)),
        "gradients": max(difference(a.grad, b.grad) for a, b in pairs),
        "logits": logits,
    }


def main() -> None:
    torch.set_num_threads(1)
    world = SequenceGroup.from_environment()
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(VOCABULARY, (2, LENGTH), generator=draw) for _ in range(world.size)]
    both = init_device_mesh("cpu", (world.size, 1), mesh_dim_names=("dp", "sp"))
    found: dict[str, object] = {"processes": world.size}
    for name, layers in MODELS.items():
        model = model_of(layers)
        found[name] = compared(model, None, batches[:1], 0)
        found[f"{name}, data parallel"] = compared(model, both, batches, world.rank)
    found["mesh of one dimension"] = SequenceGroup.of(init_device_mesh("cpu", (world.size,))).size
    torch.manual_seed(world.rank)
    try:
        SequenceLM(SequenceConfig(vocab_size=VOCABULARY, hidden_size=16)).parallelize()
        found["refused"] = ""
    except ModelError as error:
        found["refused"] = str(error)
    if world.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
