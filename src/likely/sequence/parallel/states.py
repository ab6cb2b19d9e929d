"""Linear recurrences over several processes: every chunk's (T, S) in one all-gather, folded where needed (LASP-2).

Layers with short convolutions look back on the K − 1 tokens before a chunk.  What those tokens are is only known after
the exchange, so that a chunk is summarised without its first K − 1 tokens; these (its head) and its last K − 1 (its
tail) travel in the same message, and every process summarises the heads itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from likely.errors import CapabilityError
from likely.sequence.mixer import MixerOutput, MixerRows, MixerState
from likely.sequence.parallel.collectives import all_gather, ring_fold, shift, tie
from likely.sequence.parallel.group import SequenceGroup
from likely.sequence.parallel.layout import ShardLayout
from likely.sequence.recurrent import RecurrentMixer


@dataclass(frozen=True)
class LocalChunk:
    """One chunk that this process holds: x (B, n, D), real tokens per row (None: all), documents (None: one)."""

    x: Tensor
    lengths: Tensor | None
    documents: Tensor | None

    def part(self, begin: int, end: int) -> LocalChunk:
        lengths = None if self.lengths is None else (self.lengths - begin).clamp(0, end - begin)
        documents = None if self.documents is None else self.documents[:, begin:end]
        return LocalChunk(self.x[:, begin:end], lengths, documents)

    def mask(self) -> Tensor | None:
        """(B, n) True at real tokens; None without padding."""
        if self.lengths is None:
            return None
        return torch.arange(self.x.shape[1], device=self.x.device) < self.lengths[:, None]

    def rows(self, before: Tensor | None = None) -> MixerRows:
        """Of this chunk, where the token before it belongs to document `before` (B,); None: to the first one's."""
        starts = None
        if self.documents is not None:
            first = self.documents[:, 0] if before is None else before
            starts = torch.cat([first[:, None], self.documents[:, :-1]], 1) != self.documents
        return MixerRows(self.lengths, starts)


def mix_recurrent(
    mixer: RecurrentMixer, x: Tensor, layout: ShardLayout, group: SequenceGroup, *, mask: Tensor | None,
    seq_idx: Tensor | None,
) -> Tensor:  # fmt: skip
    """Outputs (B, tokens held, D) of this process's tokens.  One all-gather forward, one exchange backward.

    Sun et al. 2025 (LASP-2, arXiv:2502.07563), algorithm 2, with any transition in place of none.
    """
    halo = mixer.halo
    if layout.smallest_chunk <= halo:
        raise ValueError(
            f"the shortest chunk has {layout.smallest_chunk} tokens, the layer's convolution looks back on {halo}: "
            f"share among fewer processes"
        )
    chunks = _local_chunks(x, layout, group.rank, mask, seq_idx)
    if halo:
        return _with_halo(mixer, chunks, layout, group)
    summaries = [_summarised(mixer, chunk) for chunk in chunks]
    packed = [
        _Parts([s.transition, s.state, *_edge_documents(chunk)]) for s, chunk in zip(summaries, chunks, strict=True)
    ]
    gathered, flat = _gathered(packed, layout, group)
    befores = _states_before(mixer, [(parts[0], parts[1]) for parts in gathered], [parts[2:] for parts in gathered])
    own = [s.outputs(befores[c]) for s, c in zip(summaries, layout.chunks[group.rank], strict=True)]
    return tie(torch.cat(own, 1), flat)


def mix_in_ring(mixer: RecurrentMixer, x: Tensor, layout: ShardLayout, group: SequenceGroup) -> Tensor:
    """The same with states handed on from process to process, each waiting for the one before (LASP-1).

    Sun et al. 2024 (arXiv:2404.02882).  Contiguous chunks of whole sequences only.
    """
    if type(mixer).fold is not RecurrentMixer.fold:
        raise CapabilityError(f'{type(mixer).__name__} hands on no state in a ring; use states="allgather"')
    if layout.smallest_chunk < mixer.halo:
        raise ValueError(f"the shortest chunk has {layout.smallest_chunk} tokens, the convolution needs {mixer.halo}")
    windows: Mapping[str, Tensor] | None = None
    received = []
    if mixer.halo:
        tail = shift(x[:, -mixer.halo :], group)
        received.append(tail)
        windows = mixer.summary(tail).windows
        if group.rank == 0:  # nothing before it; used all the same, so that messages go back in one order everywhere
            windows = {name: window * 0.0 for name, window in windows.items()}
    chunk = mixer.summary(x, windows)
    before = ring_fold(chunk.state, chunk.transition, group)
    return tie(mixer.apply_summary(chunk, before), before, *received)


def _local_chunks(
    x: Tensor, layout: ShardLayout, rank: int, mask: Tensor | None, seq_idx: Tensor | None
) -> list[LocalChunk]:
    made, at = [], 0
    for size in layout.chunk_sizes(rank):
        part = slice(at, at + size)
        lengths = None if mask is None else mask[:, part].long().sum(1)
        inside = x[:, part]
        if lengths is not None:
            padding = torch.arange(size, device=x.device) >= lengths[:, None]
            inside = inside.masked_fill(padding[..., None], 0.0)
        made.append(LocalChunk(inside, lengths, None if seq_idx is None else seq_idx[:, part]))
        at += size
    return made


@dataclass(frozen=True)
class SummarisedChunk:
    """What a chunk does to a state, its convolutions' windows, and its outputs from the state before it."""

    transition: Tensor
    state: Tensor
    windows: Mapping[str, Tensor]
    outputs: Callable[[Tensor], Tensor]


def _summarised(
    mixer: RecurrentMixer, chunk: LocalChunk, windows: Mapping[str, Tensor] | None = None, before: Tensor | None = None
) -> SummarisedChunk:
    """windows, before: of the tokens before the chunk, and the document (B,) of the last one."""
    if chunk.documents is None or mixer.packs:
        found = mixer.summary(chunk.x, windows, chunk.rows(before))
        return SummarisedChunk(
            found.transition, found.state, found.windows, functools.partial(mixer.apply_summary, found)
        )
    # a layer that cannot empty its state inside a chunk runs its documents one by one: from nothing, and again
    document = chunk.documents[:, 0] if before is None else before
    empty = mixer.init_state(len(chunk.x), device=chunk.x.device)

    def run(h: Tensor) -> MixerOutput:
        state = MixerState({**empty.tensors, **(windows or {}), "h": h}, document)
        return mixer(chunk.x, state, mask=chunk.mask(), seq_idx=chunk.documents, return_state=True)

    after = run(empty["h"]).state
    assert after is not None
    transition = mixer.summary(chunk.x, windows, MixerRows(chunk.lengths)).transition
    starts, mask = chunk.rows(before).starts, chunk.mask()
    assert starts is not None
    kept = ~(starts if mask is None else starts & mask).any(1)
    return SummarisedChunk(
        transition * kept.view(-1, *(1,) * (transition.ndim - 1)), after["h"],
        {name: t for name, t in after.tensors.items() if name != "h"}, lambda h: run(h).y,
    )  # fmt: skip


def _with_halo(
    mixer: RecurrentMixer, chunks: Sequence[LocalChunk], layout: ShardLayout, group: SequenceGroup
) -> Tensor:
    halo = mixer.halo
    heads, bodies, packed = [], [], []
    for chunk in chunks:
        size = chunk.x.shape[1]
        head, body, tail = chunk.part(0, halo), chunk.part(halo, size), chunk.part(size - halo, size)
        after_head = None if head.documents is None else head.documents[:, -1]
        summary = _summarised(mixer, body, _windows(mixer, head), after_head)
        heads.append(head)
        bodies.append(summary)
        parts = [summary.transition, summary.state, head.x, tail.x]
        parts += [] if head.lengths is None else [head.lengths]
        parts += [] if head.documents is None or tail.documents is None else [head.documents, tail.documents]
        packed.append(_Parts(parts))
    gathered, flat = _gathered(packed, layout, group)
    masked, packs = heads[0].lengths is not None, heads[0].documents is not None

    def end_at(parts: Sequence[Tensor], which: int) -> LocalChunk:
        """The head (2) or the tail (3) of a chunk that was received."""
        lengths = parts[4] if masked and which == 2 else None
        return LocalChunk(parts[which], lengths, parts[2 + masked + which] if packs else None)

    def head_summary(c: int, head: LocalChunk) -> SummarisedChunk:
        if c == 0:
            return _summarised(mixer, head)
        tail = end_at(gathered[c - 1], 3)
        return _summarised(
            mixer, head, _windows(mixer, tail), None if tail.documents is None else tail.documents[:, -1]
        )

    own = layout.chunks[group.rank]
    state, outputs = mixer.init_state(len(chunks[0].x), device=chunks[0].x.device)["h"], []
    for c in range(own[-1] + 1):
        transition, chunk_state = gathered[c][:2]
        first = head_summary(c, heads[own.index(c)] if c in own else end_at(gathered[c], 2))
        middle = mixer.fold(first.transition, first.state, state)
        if c in own:
            outputs += [first.outputs(state), bodies[own.index(c)].outputs(middle)]
        state = mixer.fold(transition, chunk_state, middle)
    return tie(torch.cat(outputs, 1), flat)


def _windows(mixer: RecurrentMixer, chunk: LocalChunk) -> Mapping[str, Tensor]:
    """Of the convolutions, after these tokens; they look back no further."""
    return _summarised(mixer, chunk).windows


def _edge_documents(chunk: LocalChunk) -> list[Tensor]:
    return [] if chunk.documents is None else [chunk.documents[:, 0], chunk.documents[:, -1]]


def _states_before(
    mixer: RecurrentMixer, pairs: Sequence[tuple[Tensor, Tensor]], edges: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """The state before every chunk, emptied where a document starts there."""
    state = torch.zeros_like(pairs[0][1])
    found = []
    for c, (transition, chunk_state) in enumerate(pairs):
        if c and edges[c]:
            fresh = edges[c][0] != edges[c - 1][1]
            state = state.masked_fill(fresh.view(-1, *(1,) * (state.ndim - 1)), 0.0)
        found.append(state)
        state = mixer.fold(transition, chunk_state, state)
    return found


class _Parts:
    """Tensors as one row of real numbers, and back."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = list(tensors)

    @property
    def dtype(self) -> torch.dtype:
        found = torch.float32
        for t in self.tensors:
            if t.is_floating_point() or t.is_complex():
                found = torch.promote_types(found, t.real.dtype)
        return found

    def packed(self) -> Tensor:
        rows = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in self.tensors]
        return torch.cat([row.reshape(-1).to(self.dtype) for row in rows])

    def unpacked(self, row: Tensor) -> list[Tensor]:
        found, at = [], 0
        for t in self.tensors:
            n = t.numel() * (2 if t.is_complex() else 1)
            part = row[at : at + n]
            at += n
            if t.is_complex():
                part = torch.view_as_complex(part.reshape(-1, 2).contiguous())
            elif not t.is_floating_point():
                part = part.detach().round()
            found.append(part.reshape(t.shape).to(t.dtype))
        return found


def _gathered(packed: Sequence[_Parts], layout: ShardLayout, group: SequenceGroup) -> tuple[list[list[Tensor]], Tensor]:
    """The tensors of every chunk, in the order of chunks; and all that was received."""
    flat = all_gather(torch.stack([parts.packed() for parts in packed]), group)  # (W, chunks of each, numbers)
    found: list[list[Tensor]] = [[] for _ in range(len(layout.edges) - 1)]
    for rank, own in enumerate(layout.chunks):
        for i, chunk in enumerate(own):
            found[chunk] = packed[i].unpacked(flat[rank, i])
    return found, flat
