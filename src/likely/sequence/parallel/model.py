"""A language model whose sequences several processes share, as one object: its loss, gradients and logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from likely.errors import ModelError
from likely.sequence.parallel.attention import AttentionSharing
from likely.sequence.parallel.group import SequenceGroup, sum_gradients
from likely.sequence.parallel.layout import ChunkOrder, ShardedBatch, ShardLayout
from likely.sequence.parallel.shards import SequenceShards, shared_mean_loss


@dataclass(frozen=True)
class ParallelLM:
    """What `SequenceLM.parallelize` returns.  Every process calls the same methods in the same order.

    group     this process among those that share its sequences
    everyone  among all that train the model: more than `group` where a mesh has other dimensions, for other batches
    order, attention, states  how sequences are cut (`ShardLayout.of`) and shared (`SequenceShards`)

    Losses and gradients are those of one process that has the batches of all.
    """

    model: nn.Module
    group: SequenceGroup
    everyone: SequenceGroup
    order: ChunkOrder = "zigzag"
    attention: AttentionSharing = "allgather"
    states: Literal["allgather", "ring"] = "allgather"

    @classmethod
    def over(
        cls, model: nn.Module, over: dist.ProcessGroup | DeviceMesh | SequenceGroup | None, *, order: ChunkOrder,
        attention: AttentionSharing, states: Literal["allgather", "ring"],
    ) -> Self:  # fmt: skip
        """ModelError where the processes hold different weights."""
        if over is None:
            group = SequenceGroup.from_environment()
        else:
            group = over if isinstance(over, SequenceGroup) else SequenceGroup.of(over)
        wide = isinstance(over, DeviceMesh) and over.ndim > 1
        everyone = SequenceGroup.of() if wide else group
        with torch.no_grad():
            held = everyone.gather(torch.stack([p.detach().double().sum() for p in model.parameters()]))
        if not bool((held == held[0]).all()):
            raise ModelError(
                f"the {everyone.size} processes hold different weights: load the same file in all, or call "
                f"torch.manual_seed with one number before the model is made"
            )
        return cls(model, group, everyone, order, attention, states)

    def mean_loss(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, seq_idx: Tensor | None = None
    ) -> Tensor:
        """This process's part of the mean loss per token: summed over `everyone` it is the mean.

        input_ids (B, L), attention_mask, seq_idx  whole, the same on all members of `group`;  padding at ends of rows
        """
        shards, part = self._part(input_ids, attention_mask, seq_idx)
        return shared_mean_loss(self._logits(shards, part), part.targets, self.everyone)

    def sum_gradients(self) -> None:
        """After `backward` on all processes: each then holds the gradients of the mean loss."""
        sum_gradients(list(self.model.parameters()), self.everyone)

    def total(self, loss: Tensor) -> float:
        """The mean loss, of everyone's parts."""
        return float(self.everyone.sum(loss))

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, seq_idx: Tensor | None = None
    ) -> Tensor:
        """(B, L, V) on every process."""
        shards, part = self._part(input_ids, attention_mask, seq_idx)
        return shards.join(self._logits(shards, part))

    def _part(
        self, input_ids: Tensor, mask: Tensor | None, seq_idx: Tensor | None
    ) -> tuple[SequenceShards, ShardedBatch]:
        layout = ShardLayout.of(input_ids.shape[1], self.group.size, self.order)
        shards = SequenceShards(self.group, layout, self.attention, self.states)
        return shards, shards.batch(input_ids, mask=mask, seq_idx=seq_idx)

    def _logits(self, shards: SequenceShards, part: ShardedBatch) -> Tensor:
        found: Tensor = self.model(part.input_ids, part.mask, seq_idx=part.seq_idx, mesh=shards).logits
        return found
