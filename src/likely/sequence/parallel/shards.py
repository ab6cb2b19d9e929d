"""A layer's `mesh`: how it runs where each process holds a part of every sequence; and the loss over all parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from likely.errors import CapabilityError, check_choice
from likely.sequence.layers.attention import SoftmaxAttention
from likely.sequence.mixer import MixerOutput, SequenceMixer
from likely.sequence.parallel.attention import METHODS, AttentionSharing, mix_attention
from likely.sequence.parallel.collectives import all_gather
from likely.sequence.parallel.group import SequenceGroup
from likely.sequence.parallel.layout import IGNORED, ShardedBatch, ShardLayout, shard_batch
from likely.sequence.parallel.states import mix_in_ring, mix_recurrent
from likely.sequence.recurrent import RecurrentMixer


@dataclass(frozen=True)
class SequenceShards:
    """Sequences of `layout.length` tokens shared by the members of `group`: give it to a mixer as `mesh`.

    attention  how softmax attention is shared: keys gathered, handed around a ring, or heads exchanged (Ulysses)
    states     how linear recurrences are: all states gathered at once (LASP-2), or handed on in a ring (LASP-1)

    A mixer's outputs, and gradients summed over the members, are those of one process that holds everything.
    """

    group: SequenceGroup
    layout: ShardLayout
    attention: AttentionSharing = "allgather"
    states: Literal["allgather", "ring"] = "allgather"

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, METHODS)
        check_choice("states", self.states, ("allgather", "ring"))
        if self.layout.size != self.group.size:
            raise ValueError(f"the layout is for {self.layout.size} processes, the group has {self.group.size}")

    @property
    def tokens(self) -> int:
        """That this process holds."""
        return self.layout.tokens(self.group.rank)

    def batch(self, input_ids: Tensor, *, mask: Tensor | None = None, seq_idx: Tensor | None = None) -> ShardedBatch:
        """This process's part of a batch (B, L) that every process holds whole."""
        return shard_batch(input_ids, self.layout, self.group.rank, mask=mask, seq_idx=seq_idx)

    def take(self, t: Tensor) -> Tensor:
        """This process's tokens of (B, L, ...)."""
        return t[:, self.layout.columns(self.group.rank).to(t.device)]

    def join(self, t: Tensor) -> Tensor:
        """(B, L, ...) from every process's (B, tokens, ...); gradients flow back."""
        missing = self.layout.most_tokens - t.shape[1]
        filled = torch.cat([t, t.new_zeros(t.shape[0], missing, *t.shape[2:])], 1) if missing else t
        received = all_gather(filled, self.group).transpose(0, 1).flatten(1, 2)
        return received[:, self.layout.order_of_gathered().to(t.device)]

    def mix(
        self, mixer: SequenceMixer, x: Tensor, *, mask: Tensor | None = None, seq_idx: Tensor | None = None,
        positions: Tensor | None = None, return_state: bool = False,
    ) -> MixerOutput:  # fmt: skip
        """What `mixer(x, mesh=self)` calls: x (B, tokens held, D) and the rest as `SequenceShards.batch` cut them."""
        if x.shape[1] != self.tokens:
            raise ValueError(f"this process holds {self.tokens} of {self.layout.length} tokens, got {x.shape[1]}")
        if return_state:
            raise ValueError("shared sequences return no state: leave out return_state")
        if not mixer.causal:
            raise CapabilityError(f"{type(mixer).__name__} sees both directions, and shares no sequences")
        if isinstance(mixer, SoftmaxAttention):
            y = mix_attention(mixer, x, self.layout, self.group, seq_idx=seq_idx, positions=positions,
                              method=self.attention)  # fmt: skip
        elif not isinstance(mixer, RecurrentMixer):
            raise CapabilityError(f"{type(mixer).__name__} has no state of fixed size that chunks could hand on")
        elif self.states == "ring":
            if mask is not None or seq_idx is not None or not self.layout.contiguous:
                raise ValueError('states="ring" takes whole sequences in contiguous chunks; use states="allgather"')
            y = mix_in_ring(mixer, x, self.layout, self.group)
        else:
            y = mix_recurrent(mixer, x, self.layout, self.group, mask=mask, seq_idx=seq_idx)
        return MixerOutput(y if mask is None else y.masked_fill((mask == 0)[..., None], 0.0))


def loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log p(target) in float32 at least.  logits (B, n, V);  targets (B, n), IGNORED ones count nothing."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def shared_mean_loss(logits: Tensor, targets: Tensor, group: SequenceGroup) -> Tensor:
    """This process's part of the mean loss over the tokens of all: summed over the group it is the mean.

    After `backward`, gradients summed over the group (`sum_gradients`) are those of the mean.
    """
    count = group.sum((targets != IGNORED).sum())
    return loss_sum(logits, targets) / count.clamp_min(1)


ShardedLoss = Callable[[ShardedBatch, SequenceShards], Tensor]  # Σ over the tokens of this process's part
