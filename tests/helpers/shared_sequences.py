"""Real processes that share sequences (gloo), and what one process alone computes, for `tests/sequence/parallel`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mixer_laws import WIDTH, names, tiny, tokens
from scripts import ROOT, script
from torch import Tensor, nn

from likely.errors import LikelyError
from likely.sequence import RecurrentMixer, SequenceMixer
from likely.sequence.layers import SoftmaxAttention
from likely.sequence.parallel import (
    BlockGroups,
    SequenceGroup,
    SequenceShards,
    ShardLayout,
    loss_sum,
    run_plan,
    shard_batch,
    shared_mean_loss,
    sum_gradients,
)
from likely.sequence.parallel.planner import CostModel, DeviceGroup, ParallelPlan, plan

LENGTH, BATCH, WORLD = 38, 2, 4
VOCABULARY = 11
Errors = dict[str, float]


def run_processes() -> dict[str, Any]:
    """What `everything` finds with WORLD processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "reproductions"))  # for the processes, too
        found: dict[str, Any] = script("gloo_world").run_world(WORLD, everything)
    return found


# --- one layer --------------------------------------------------------------------------------------------------------


def case_inputs(kind: str) -> dict[str, Tensor]:
    """mask and seq_idx (BATCH, LENGTH) by what a case is about; documents begin at edges of chunks and beside them."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, 22:] = 0
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    for row, starts in enumerate([(3, 9, 20), (1, 18, 19, 37)]):
        for start in starts:
            ids[row, start:] += 1
    made = {}
    if "padded" in kind:
        made["mask"] = mask
    if "packed" in kind:
        made["seq_idx"] = ids
    return made


CASES = (  # processes, order, rows, settings
    (1, "zigzag", "packed padded", {}), (2, "contiguous", "whole", {}), (2, "zigzag", "packed", {}),
    (3, "zigzag", "padded", {}), (3, "contiguous", "packed padded", {}), (4, "contiguous", "padded", {}),
    (4, "zigzag", "whole", {}),
)  # fmt: skip
ATTENTION_CASES = (
    *((w, order, "padded", {"attention": "ring"}) for w in (1, 3, 4) for order in ("contiguous", "zigzag")),
    *((w, "zigzag", rows, {"attention": "ulysses"}) for w in (2, 4) for rows in ("whole", "packed padded")),
)
RING_CASES = ((3, "contiguous", "whole", {"states": "ring"}),)


def cases_of(name: str) -> list[tuple[int, str, str, dict[str, str]]]:
    mixer = tiny(name)
    found = list(CASES)
    if isinstance(mixer, SoftmaxAttention):
        found += ATTENTION_CASES
    if isinstance(mixer, RecurrentMixer) and type(mixer).fold is RecurrentMixer.fold:
        found += RING_CASES
    return found


def shared_layer_names() -> list[str]:
    """Layers that share sequences: linear recurrences, attention, and several of them side by side."""
    return [
        n for n in names() if isinstance(tiny(n), RecurrentMixer | SoftmaxAttention) or hasattr(tiny(n), "branches")
    ]


@functools.cache
def alone(name: str, rows: str) -> tuple[SequenceMixer, Tensor, Tensor, list[Tensor]]:
    """(layer, y, gradient of x, gradients of parameters) of one process."""
    mixer, x = tiny(name), tokens(BATCH, LENGTH).requires_grad_()
    y = mixer(x, **case_inputs(rows)).y
    gradients = torch.autograd.grad((y * weights_of(y)).sum(), [x, *mixer.parameters()], allow_unused=True)
    filled = [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, [x, *mixer.parameters()], strict=True)]
    return mixer, y.detach(), filled[0], filled[1:]


def weights_of(y: Tensor) -> Tensor:
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).sin()


def layer_error(name: str, group: SequenceGroup, order: str, rows: str, settings: Mapping[str, str]) -> float:
    """Largest relative difference of outputs and all gradients from one process."""
    mixer, y, for_x, for_parameters = alone(name, rows)
    layout = ShardLayout.of(LENGTH, group.size, order)  # type: ignore[arg-type]
    shards = SequenceShards(group, layout, **settings)  # type: ignore[arg-type]
    part = shard_batch(torch.zeros(BATCH, LENGTH, dtype=torch.long), layout, group.rank, **case_inputs(rows))
    x = shards.take(tokens(BATCH, LENGTH)).clone().requires_grad_()
    found = mixer(x, mask=part.mask, seq_idx=part.seq_idx, mesh=shards).y
    loss = (found * shards.take(weights_of(y))).sum()
    gradients = torch.autograd.grad(loss, [x, *mixer.parameters()], allow_unused=True)
    errors = [difference(found, shards.take(y)), difference(gradients[0], shards.take(for_x))]
    for own, wanted in zip(gradients[1:], for_parameters, strict=True):
        errors.append(difference(group.sum(torch.zeros_like(wanted) if own is None else own), wanted))
    return float(-group_max(-max(errors), group))


def group_max(value: float, group: SequenceGroup) -> float:
    """The least of all members' values."""
    t = torch.tensor([value], dtype=torch.float64)
    return float(group.gather(t).min())


def difference(found: Tensor, wanted: Tensor) -> float:
    scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
    return float((found - wanted).detach().abs().max()) / scale if found.isfinite().all() else float("inf")


def layer_errors(world: SequenceGroup, groups: dict[int, SequenceGroup]) -> Errors:
    """Every case of every layer; groups of fewer processes leave the others out."""
    found = {}
    for name in shared_layer_names():
        for size, order, rows, settings in cases_of(name):
            if size in groups:
                key = " ".join([name, str(size), order, rows, *settings.values()])
                found[key] = layer_error(name, groups[size], order, rows, settings)
    return found


# --- a model ----------------------------------------------------------------------------------------------------------


class TinyLM(nn.Module):
    """Embedding, layers with a residual each, head: the smallest model that shares sequences."""

    def __init__(self, layers: tuple[str, ...] = ("linear_attention", "mamba2", "attention", "s4d")):
        super().__init__()
        torch.manual_seed(5)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(tiny(name, torch.float32) for name in layers)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.double()

    def forward(self, ids: Tensor, **how: Any) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(x, **how).y
        return self.head(x)


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def after_one_step(model: nn.Module) -> list[Tensor]:
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    return [p.detach().clone() for p in model.parameters()]


def step_errors(world: SequenceGroup, groups: dict[int, SequenceGroup]) -> Errors:
    """Mean loss, and weights after one optimiser step, of padded packed rows shared by all."""
    found = {}
    ids, inputs = random_ids(BATCH, LENGTH), case_inputs("packed padded")
    for order in ("contiguous", "zigzag"):
        one, other = TinyLM(), TinyLM()
        layout = ShardLayout.of(LENGTH, 1)
        whole = shard_batch(ids, layout, 0, **inputs)
        logits = one(ids, mask=whole.mask, seq_idx=whole.seq_idx)
        loss = shared_mean_loss(logits, whole.targets, SequenceGroup())
        loss.backward()
        shards = SequenceShards(world, ShardLayout.of(LENGTH, world.size, order))  # type: ignore[arg-type]
        part = shards.batch(ids, **inputs)
        logits = other(part.input_ids, mask=part.mask, seq_idx=part.seq_idx, mesh=shards)
        own = shared_mean_loss(logits, part.targets, world)
        own.backward()
        sum_gradients(list(other.parameters()), world)
        pairs = zip(after_one_step(other), after_one_step(one), strict=True)
        found[f"{order} weights"] = max(difference(a, b) for a, b in pairs)
        found[f"{order} loss"] = float((world.sum(own) - loss.detach()).abs())
        joined = shards.join(logits)
        found[f"{order} joined"] = float(joined.shape[1] != LENGTH)
    return found


# --- traffic ----------------------------------------------------------------------------------------------------------


def layer_traffic(world: SequenceGroup, groups: dict[int, SequenceGroup]) -> dict[str, dict[str, int]]:
    """Messages of one layer and step, forward and backward, at two lengths."""
    found = {}
    settings = {
        "linear_attention": ({}, {"states": "ring"}), "mamba2": ({},), "s4d": ({},),
        "attention": ({}, {"attention": "ring"}),
    }  # fmt: skip
    for name, ways in settings.items():
        for length in (32, 64):
            for how in ways:
                world.traffic.clear()
                mixer = tiny(name)
                shards = SequenceShards(world, ShardLayout.of(length, world.size), **how)  # type: ignore[arg-type]
                x = shards.take(tokens(BATCH, length)).clone().requires_grad_()
                mixer(x, mesh=shards).y.square().sum().backward()
                t = world.traffic
                found[" ".join([name, str(length), *how.values()])] = {
                    "calls": t.calls, "payload": t.payload, "received": t.received, "serial": t.serial,
                }  # fmt: skip
    return found


# --- plans ------------------------------------------------------------------------------------------------------------

FOUR = CostModel(1e-3, 0.5, 10.0, 1e6, {2: 50.0, 4: 5.0}, token_mb=1.0, state_mb=0.0, memory_mb=60.0)
LENGTHS = (100, 40, 31, 30, 22, 20, 9, 8, 5, 3, 2)


def plan_errors(world: SequenceGroup, groups: dict[int, SequenceGroup]) -> dict[str, Any]:
    """Gradients of a plan with groups of unequal sizes against one process that has the whole batch."""
    blocks = BlockGroups.create()
    made = plan(LENGTHS, world.size, FOUR, solver="greedy")
    sequences = [random_ids(n, seed=n) for n in LENGTHS]
    shared, one = TinyLM(), TinyLM()

    def loss(part: Any, shards: SequenceShards) -> Tensor:
        logits = shared(part.input_ids, seq_idx=part.seq_idx, mesh=shards)
        return loss_sum(logits, part.targets)

    mean = run_plan(made, sequences, loss, list(shared.parameters()), blocks)
    total = sum(loss_sum(one(ids[None, :-1]), ids[None, 1:]) for ids in sequences if len(ids) > 1)
    wanted = total / sum(len(ids) - 1 for ids in sequences)
    wanted.backward()
    pairs = zip(shared.parameters(), one.parameters(), strict=True)
    return {
        "degrees": [list(sizes) for sizes in made.degrees],
        "gradients": max(difference(a.grad, b.grad) for a, b in pairs),
        "loss": abs(mean - float(wanted)),
    }


def plan_refusals(world: SequenceGroup, groups: dict[int, SequenceGroup]) -> list[str]:
    """What every process says of a plan whose one group, of two, has too short a sequence for its convolutions."""
    model, blocks = TinyLM(), BlockGroups.create()
    made = ParallelPlan((6,), world.size, ((DeviceGroup((0, 1), (0,)),),), 1.0, 1.0)

    def loss(part: Any, shards: SequenceShards) -> Tensor:
        return loss_sum(model(part.input_ids, seq_idx=part.seq_idx, mesh=shards), part.targets)

    said = [""] * world.size
    try:
        run_plan(made, [random_ids(6)], loss, list(model.parameters()), blocks)
        own = "nothing was refused"
    except (ValueError, LikelyError) as error:
        own = str(error)
    dist.all_gather_object(said, own)
    return said


# --- wrong use --------------------------------------------------------------------------------------------------------


def refusals(world: SequenceGroup, groups: dict[int, SequenceGroup]) -> dict[str, str]:
    """Message of each error; all processes raise it, none waits."""
    found = {}
    calls: dict[str, Callable[[], object]] = {
        "convolution": lambda: shared_run("mamba2", 12, world),
        "packed ring": lambda: shared_run("attention", 32, world, attention="ring", seq_idx=True),
        "tokens": lambda: tiny("linear_attention")(
            tokens(BATCH, 3), mesh=SequenceShards(world, ShardLayout.of(32, world.size))
        ),
        "state": lambda: shared_run("linear_attention", 32, world, return_state=True),
        "size": lambda: SequenceShards(world, ShardLayout.of(32, world.size + 1)),
    }
    if 3 in groups:
        calls["heads"] = lambda: shared_run("attention", 32, groups[3], attention="ulysses")
    for name, call in calls.items():
        try:
            call()
            found[name] = "nothing was refused"
        except (ValueError, LikelyError) as error:
            found[name] = str(error)
    agreed = len({json.dumps(m) for m in _all_messages(found, world)}) == 1
    return found | {"agreed": str(agreed)}


def shared_run(name: str, length: int, group: SequenceGroup, *, seq_idx: bool = False, return_state: bool = False,
               **how: str) -> object:  # fmt: skip
    shards = SequenceShards(group, ShardLayout.of(length, group.size), **how)  # type: ignore[arg-type]
    ids = torch.zeros(BATCH, shards.tokens, dtype=torch.long) if seq_idx else None
    return tiny(name)(shards.take(tokens(BATCH, length)), seq_idx=ids, mesh=shards, return_state=return_state)


def _all_messages(found: Mapping[str, str], world: SequenceGroup) -> list[Any]:
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, {k: v for k, v in found.items() if k != "heads"})
    return gathered


def everything(groups: dict[int, SequenceGroup]) -> dict[str, Any]:
    """All of it in one world: processes are started once."""
    world = groups[max(groups)]
    return {
        "layers": layer_errors(world, groups),
        "steps": step_errors(world, groups),
        "traffic": layer_traffic(world, groups),
        "plan": plan_errors(world, groups),
        "plan refused": plan_refusals(world, groups),
        "refusals": refusals(world, groups),
    }
