"""Layers whose memory is one linear recurrence S_t = T_t·S_{t−1} + U_t: projections, a kernel, an output.

Chunks of such a layer compose: what a chunk does to any state is a pair (T, S), its whole transition and its state from
nothing, and S_after = T·S_before + S.  Sequence parallelism exchanges these pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from likely.sequence.mixer import MixerOutput, MixerRows, MixerState, SequenceMixer, StateKind

Streams = dict[str, Tensor]  # what the projections made of x, and the kernel and the output read


@dataclass(frozen=True)
class ChunkSummary:
    """What a chunk of tokens does to a state, and what `apply` needs to finish the chunk once its state is known.

    transition  T, as `RecurrentMixer.fold` takes it;  state: S from nothing (B, ...)
    windows     what the next chunk's convolutions need of this one
    """

    transition: Tensor
    state: Tensor
    windows: Mapping[str, Tensor]
    streams: Streams
    rows: MixerRows


class RecurrentMixer(SequenceMixer):
    """A mixer of one linear recurrence, with short convolutions before it or without.

    halo  tokens of the chunk before that the convolutions look back on
    keeps_inputs  `project` also gives what each convolution read, as the stream of its window's name: states at many
                  positions then take one projection of all tokens
    """

    state_kind: ClassVar[StateKind] = "recurrent"
    packs: ClassVar[bool] = True
    keeps_inputs: ClassVar[bool] = False
    halo: int = 0

    def state_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        dtype = next(self.parameters()).dtype
        windows = {name: ((self.halo, width), dtype) for name, width in self.windows().items()}
        return {"h": self.recurrent_spec()} | windows

    def recurrent_spec(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape without the batch, and dtype, of the recurrent state."""
        raise TypeError(f"{type(self).__name__} must say what its state is")

    def windows(self) -> dict[str, int]:
        """Name -> channels of each convolution's window."""
        return {}

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        """What the recurrence reads, with no effect at padding, and the new windows."""
        raise TypeError(f"{type(self).__name__} must say what its recurrence reads")

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        """The recurrence from h: outputs and the last state.  Runs in float32 at least, autocast or not."""
        raise TypeError(f"{type(self).__name__} must say what its recurrence is")

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        """The layer's output (B, L, D) from the recurrence's."""
        raise TypeError(f"{type(self).__name__} must say what its output is")

    def transition(self, streams: Streams, rows: MixerRows) -> Tensor:
        """T (B, ...) over all tokens of each row, as `fold` applies it: by default a factor that broadcasts to S."""
        raise TypeError(f"{type(self).__name__} must say what its transition is")

    def fold(self, transition: Tensor, state: Tensor, before: Tensor) -> Tensor:
        """T·S_before + S."""
        return transition * before + state

    def mix(self, x: Tensor, state: MixerState, rows: MixerRows) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        streams, windows = self.project(x, state.tensors, rows)
        y, h = self._recur(streams, state["h"], rows)
        return self.finish(y, streams), MixerState({"h": h, **windows}), {}

    def summary(
        self, x: Tensor, windows: Mapping[str, Tensor] | None = None, rows: MixerRows | None = None
    ) -> ChunkSummary:
        """What these tokens do to a state.  windows: of the chunk before (`ChunkSummary.windows`), None at the start.

        `windows` of a chunk depend on its own tokens alone: `self.summary(x[:, -self.halo:]).windows` are enough.
        """
        rows = rows or MixerRows()
        if rows.starts is not None and not self.packs:
            raise ValueError(f"{type(self).__name__} does not summarise packed documents: give it one document a row")
        empty = self.init_state(len(x), device=x.device).tensors
        streams, after = self.project(x, empty if windows is None else windows, rows)
        _, state = self._recur(streams, empty["h"], rows)
        with _without_autocast(x):
            return ChunkSummary(self.transition(_wide(streams), rows), state, after, streams, rows)

    def apply_summary(self, chunk: ChunkSummary, before: Tensor) -> Tensor:
        """y (B, L, D) of a summarised chunk, once the state before it is known."""
        y, _ = self._recur(chunk.streams, before, chunk.rows)
        return self.finish(y, chunk.streams)

    def _in_pieces(
        self, x: Tensor, state: MixerState | None, mask: Tensor | None, seq_idx: Tensor | None,
        positions: Tensor | None, at: list[int], return_state: bool,
    ) -> MixerOutput:  # fmt: skip
        """Projections and output run once, the recurrence in pieces; with padding or documents all runs in pieces."""
        length = x.shape[1]
        whole = mask is None and seq_idx is None and all(0 <= column < length for column in at)
        if not whole or not self.keeps_inputs:
            return super()._in_pieces(x, state, mask, seq_idx, positions, at, return_state)
        before = self.init_state(len(x), device=x.device) if state is None else state
        rows = MixerRows(positions=positions)
        streams, _ = self.project(x, before.tensors, rows)
        seen = {name: torch.cat([before[name].to(streams[name].dtype), streams[name]], 1) for name in self.windows()}
        found: dict[int, MixerState] = {}
        outputs, h, begin = [], before["h"], 0
        for end in sorted({*(column + 1 for column in at), length}):
            y, h = self._recur({name: t[:, begin:end] for name, t in streams.items()}, h, rows)
            windows = {name: t[:, end : end + self.halo] for name, t in seen.items()}
            found[end - 1] = MixerState({"h": h, **windows}, before.document)
            outputs.append(y)
            begin = end
        y = self.finish(torch.cat(outputs, 1), streams)
        last = found[length - 1] if return_state else None
        return MixerOutput(y, last, {}, tuple(found[column] for column in at))

    def _recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        with _without_autocast(h):
            return self.recur(_wide(streams), h, rows)


def _without_autocast(t: Tensor) -> torch.autocast:
    return torch.autocast(t.device.type, enabled=False)


def _wide(streams: Streams) -> Streams:
    return {name: wide(t) for name, t in streams.items()}


def wide(t: Tensor) -> Tensor:
    """In float32 at least."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


class GroupRMSNorm(nn.Module):
    """x / rms(x) · weight in groups of channels, with an optional gate silu(z), before the norm or after it."""

    def __init__(self, width: int, *, groups: int = 1, eps: float = 1e-5, gate_first: bool = True):
        super().__init__()
        if width % groups:
            raise ValueError(f"groups must divide the width {width}, got {groups}")
        self.weight = nn.Parameter(torch.ones(width))
        self.groups, self.eps, self.gate_first = groups, eps, gate_first

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """x (..., width) and gate alike; in float32 at least."""
        x = wide(x)
        gate = None if gate is None else nn.functional.silu(wide(gate))
        if gate is not None and self.gate_first:
            x = x * gate
        grouped = x.unflatten(-1, (self.groups, -1))
        x = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)).flatten(-2) * self.weight
        return x * gate if gate is not None and not self.gate_first else x
