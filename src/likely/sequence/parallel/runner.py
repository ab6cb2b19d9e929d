"""A plan executed: in each micro-batch every group packs its sequences into one row and shares it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from likely.errors import DataError, LikelyError
from likely.sequence.parallel.attention import AttentionSharing
from likely.sequence.parallel.group import SequenceGroup, each_block, sum_gradients
from likely.sequence.parallel.layout import ShardLayout
from likely.sequence.parallel.planner.plans import ParallelPlan
from likely.sequence.parallel.shards import SequenceShards, ShardedLoss


@dataclass(frozen=True)
class BlockGroups:
    """Process groups of all aligned blocks of a power of two, made once: plans change between steps, groups do not."""

    world: SequenceGroup
    own: Mapping[tuple[int, ...], SequenceGroup]

    @classmethod
    def create(cls) -> Self:
        """Called by all processes together, after init_process_group."""
        world = SequenceGroup.of()
        own: dict[tuple[int, ...], SequenceGroup] = {}

        def make(ranks: tuple[int, ...]) -> None:
            if len(ranks) == 1:
                if ranks[0] == world.rank:
                    own[ranks] = SequenceGroup(0, 1, ranks)
                return
            group = dist.new_group(list(ranks))
            if world.rank in ranks:
                own[ranks] = SequenceGroup.of(group)

        each_block(world.size, make)
        return cls(world, own)

    def of_block(self, ranks: tuple[int, ...]) -> SequenceGroup | None:
        """The group of these ranks; None where this process is not among them."""
        return self.own.get(ranks) if self.world.rank in ranks else None


def run_plan(
    plan: ParallelPlan, sequences: Sequence[Tensor], loss: ShardedLoss, parameters: Sequence[nn.Parameter],
    groups: BlockGroups, *, attention: AttentionSharing = "allgather",
) -> float:  # fmt: skip
    """The mean loss per token of the whole batch; gradients are those of one process with the whole batch.

    sequences  (n,) token ids of each, all of them on every process; at most as long as the plan's lengths
    loss       Σ over the tokens of a part, e.g. `lambda part, shards: loss_sum(model(part, mesh=shards), part.targets)`
    parameters gradients are added to theirs, and summed over all processes at the end

    Every sequence weighs by its tokens, not by its group.  What one group refuses is an error of all processes.
    """
    if plan.n_devices != groups.world.size:
        raise DataError(f"the plan is for {plan.n_devices} processes, there are {groups.world.size}")
    if len(sequences) != len(plan.lengths) or any(
        not 1 <= len(ids) <= most for ids, most in zip(sequences, plan.lengths, strict=True)
    ):
        raise DataError("sequences must be those of the plan, none longer than it says")
    targets = sum(len(ids) - 1 for ids in sequences)
    if targets < 1:
        raise DataError("no sequence has a token with a next one")
    total = 0.0
    for microbatch in plan.microbatches:
        failed: Exception | None = None
        for planned in microbatch:
            group = groups.of_block(planned.ranks)
            if group is None:
                continue
            own = [sequences[i] for i in planned.sequences]
            packed = torch.cat(own)[None]
            sizes = torch.tensor([len(ids) for ids in own], device=packed.device)
            documents = torch.repeat_interleave(torch.arange(len(own), device=packed.device), sizes)[None]
            try:
                shards = SequenceShards(group, ShardLayout.of(packed.shape[1], group.size), attention)
                part = loss(shards.batch(packed, seq_idx=documents), shards) / targets
                part.backward()
            except (ValueError, LikelyError) as error:
                failed = error
                continue
            total += float(part.detach())
        if int(groups.world.sum(torch.tensor(int(failed is not None)))):  # the others would wait for it
            raise failed or DataError("another group cannot compute its sequences, as its processes say")
    sum_gradients(parameters, groups.world)
    return float(groups.world.sum(torch.tensor(total, dtype=torch.float64)))
