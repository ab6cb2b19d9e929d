"""Which tokens of a sequence each process holds, and a batch cut accordingly, its labels shifted before the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from likely.errors import DataError, check_choice

IGNORED = -100  # a target that no loss counts
ChunkOrder = Literal["contiguous", "zigzag"]


@dataclass(frozen=True)
class ShardLayout:
    """A sequence in chunks, and the chunks of each process.

    edges   rising, from 0 to the length: chunk c holds tokens edges[c] to edges[c + 1]
    chunks  of each rank, as many for each, in rising order;  together every chunk once
    """

    edges: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        if self.edges[:1] != (0,) or not rising or len(self.edges) < 2:
            raise ValueError(f"edges must rise from 0, got {self.edges}")
        held = sorted(chunk for own in self.chunks for chunk in own)
        alike = len({len(own) for own in self.chunks}) == 1 and all(list(own) == sorted(own) for own in self.chunks)
        if held != list(range(len(self.edges) - 1)) or not alike:
            raise ValueError(
                f"each of {len(self.edges) - 1} chunks must be held once, as many by each rank, got {self.chunks}"
            )

    @classmethod
    def of(cls, length: int, size: int, order: ChunkOrder = "contiguous") -> Self:
        """`size` processes with nearly equal parts of `length` tokens.

        contiguous  rank r holds chunk r;  zigzag: chunks r and 2·size − 1 − r, equal work under a causal mask
        """
        check_choice("order", order, ("contiguous", "zigzag"))
        n = size if order == "contiguous" else 2 * size
        if size < 1 or length < n:
            raise ValueError(f"{length} tokens cannot be cut into {n} chunks for {size} processes ({order})")
        edges = tuple(length * c // n for c in range(n + 1))
        own = [(r,) if order == "contiguous" else (r, n - 1 - r) for r in range(size)]
        return cls(edges, tuple(own))

    @property
    def length(self) -> int:
        return self.edges[-1]

    @property
    def size(self) -> int:
        return len(self.chunks)

    @property
    def contiguous(self) -> bool:
        """Whether rank r holds chunk r and no other."""
        return self.chunks == tuple((r,) for r in range(self.size))

    def chunk_sizes(self, rank: int) -> list[int]:
        return [self.edges[c + 1] - self.edges[c] for c in self.chunks[rank]]

    def tokens(self, rank: int) -> int:
        """That a rank holds."""
        return sum(self.chunk_sizes(rank))

    @property
    def most_tokens(self) -> int:
        return max(self.tokens(rank) for rank in range(self.size))

    @property
    def smallest_chunk(self) -> int:
        return min(b - a for a, b in zip(self.edges, self.edges[1:], strict=False))

    def columns(self, rank: int) -> Tensor:
        """Positions in the sequence of the tokens that a rank holds, in the order it holds them."""
        return torch.cat([torch.arange(self.edges[c], self.edges[c + 1]) for c in self.chunks[rank]])

    def order_of_gathered(self) -> Tensor:
        """Where each token of the sequence lies in (size · most_tokens) columns of all ranks side by side."""
        found = torch.empty(self.length, dtype=torch.long)
        for rank in range(self.size):
            found[self.columns(rank)] = rank * self.most_tokens + torch.arange(self.tokens(rank))
        return found


@dataclass(frozen=True)
class ShardedBatch:
    """One process's part of a batch.  All (B, tokens that it holds).

    targets  next tokens, IGNORED where there is none: they were shifted before the cut, so that the last token of a
             chunk has its target although the next process holds it
    mask     1 real, 0 padding, or None;  seq_idx: documents numbered from 0, or None;  positions: in the sequence
    """

    input_ids: Tensor
    targets: Tensor
    mask: Tensor | None
    seq_idx: Tensor | None
    positions: Tensor


def shard_batch(
    input_ids: Tensor, layout: ShardLayout, rank: int, *, mask: Tensor | None = None, seq_idx: Tensor | None = None
) -> ShardedBatch:
    """Cut a batch (B, L) that every process holds whole.

    mask     padding at the ends of rows only: DataError otherwise, on all processes
    seq_idx  ids of packed documents that change where a document starts; they are numbered anew
    """
    if input_ids.ndim != 2 or input_ids.shape[1] != layout.length:
        raise DataError(f"input_ids must be (B, {layout.length}), got {tuple(input_ids.shape)}")
    for name, value in (("mask", mask), ("seq_idx", seq_idx)):
        if value is not None and value.shape != input_ids.shape:
            raise DataError(f"{name} must be {tuple(input_ids.shape)}, got {tuple(value.shape)}")
    if mask is not None and bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise DataError("padding must stand at the ends of rows to share sequences: move it there")
    targets = next_token_targets(input_ids, mask=mask, seq_idx=seq_idx)
    if seq_idx is not None:
        first = torch.zeros_like(seq_idx[:, :1])
        seq_idx = torch.cat([first, (seq_idx[:, 1:] != seq_idx[:, :-1]).long().cumsum(1)], 1)
    columns = layout.columns(rank).to(input_ids.device)
    cut = [None if t is None else t[:, columns] for t in (mask, seq_idx)]
    positions = columns.expand(len(input_ids), -1)
    return ShardedBatch(input_ids[:, columns], targets[:, columns], cut[0], cut[1], positions)


def next_token_targets(input_ids: Tensor, *, mask: Tensor | None = None, seq_idx: Tensor | None = None) -> Tensor:
    """(B, L): the token after each, IGNORED at the end of a row or a document and before padding."""
    targets = torch.full_like(input_ids, IGNORED)
    targets[:, :-1] = input_ids[:, 1:]
    if mask is not None:
        targets[:, :-1] = targets[:, :-1].masked_fill(mask[:, 1:] == 0, IGNORED)
    if seq_idx is not None:
        targets[:, :-1] = targets[:, :-1].masked_fill(seq_idx[:, 1:] != seq_idx[:, :-1], IGNORED)
    return targets
