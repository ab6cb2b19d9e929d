"""Processes that share sequences on this machine (gloo), and a tiny hybrid model: for flexsp and lasp2."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from likely.sequence import SequenceMixer, make_mixer
from likely.sequence.parallel import SequenceGroup

Groups = Mapping[int, SequenceGroup]  # number of processes -> the first so many
VOCABULARY = 61


def run_world(size: int, work: Callable[..., Any], *args: Any) -> Any:
    """What rank 0 returns of `work(groups, *args)`, as JSON, run by `size` processes at a time."""
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "likely.sequence.parallel.runner"])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _member, args=(size, folder, work, args), nprocs=size, start_method="forkserver"
        )
        return json.loads((Path(folder) / "found.json").read_text("utf-8"))


def _member(rank: int, size: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    groups = {}
    for n in range(1, size + 1):  # every process makes every group
        made = dist.new_group(list(range(n)))
        if rank < n:
            groups[n] = SequenceGroup.of(made)
    found = work(groups, *args)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


def seeded_mixer(name: str, width: int, dtype: torch.dtype, settings: Mapping[str, object]) -> SequenceMixer:
    """The same layer on every process."""
    torch.manual_seed(sum(map(ord, name)))
    return make_mixer(name, width, settings).to(dtype)


class HybridLM(nn.Module):
    """Embedding, layers with a residual each, head."""

    def __init__(self, layers: Mapping[str, Mapping[str, object]], width: int, dtype: torch.dtype):
        super().__init__()
        self.layers = nn.ModuleList(seeded_mixer(name, width, dtype, how) for name, how in layers.items())
        torch.manual_seed(7)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.head = nn.Linear(width, VOCABULARY)
        self.to(dtype)

    def forward(self, ids: Tensor, **how: Any) -> Tensor:
        """Logits (B, n, V);  how: of `SequenceMixer.forward`."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(x, **how).y
        logits: Tensor = self.head(x)
        return logits


@functools.cache
def random_ids(length: int, seed: int, batch: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    scale = max(float(wanted.detach().abs().max()), 1e-300)
    return float((found - wanted).detach().abs().max()) / scale if found.isfinite().all() else float("inf")
