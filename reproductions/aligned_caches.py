"""Rectangular caches for batches whose rows grow by different numbers of tokens (EQSPEC and EXSPEC).

Zhang et al. 2025, arXiv:2510.22876.  Per layer one tensor (B, H_kv, C, D) holds the keys of B sequences, all ending at
the same column.  After a round each row has kept another number of tokens; before the next call the rows are taken out
of their rectangles without padding and put into a new one, padded on the left, so that padding never accumulates.
Positions and masks follow from counts, never from token ids.  The copies are the cost of alignment; the slots of
`TorchRuntime` have none, and give the same numbers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Unpack

import numpy as np
import torch

from likely.errors import CapabilityError
from likely.runtimes.protocol import IntArray, Sequence, Work
from likely.runtimes.slots.layout import SequenceQueries, WorkLayout, WorkPart
from likely.runtimes.slots.runtime import SlotSequence
from likely.runtimes.slots.table import TokenCount
from likely.runtimes.torch.attention import Group, LayerAttention, attend_group
from likely.runtimes.torch.rows import RowCollector
from likely.runtimes.torch.runtime import TorchRuntime, TorchSettings
from likely.runtimes.turns import one_at_a_time

KeysValues = tuple[torch.Tensor, torch.Tensor]  # each (B, H_kv, C, D)


@dataclass(eq=False)
class AlignedSequence(SlotSequence):
    """held, nodes: columns of row `row` of `rectangle`, in ascending order; its layers, none before the first call."""

    rectangle: list[KeysValues] = field(default_factory=list)
    row: int = 0


@dataclass
class Alignment:
    """What bringing rows into line has cost.

    rows  that met others in a call and had something in their caches;  grouped: those of them that stood in a call
    whose rows were all of one length, so that nothing was padded
    """

    seconds: float = 0.0
    bytes: int = 0
    calls: int = 0
    copied: int = 0  # calls that moved caches
    rows: int = 0
    grouped: int = 0


@dataclass
class RectangleRow:
    """One sequence within a call: where its keys are now, kept and pending and new ones in order."""

    rectangle: list[KeysValues]
    row: int
    columns: IntArray

    @cached_property
    def end(self) -> int:
        """The column after its last one; -1 if the columns are not one run."""
        n = len(self.columns)
        if not n or self.columns[-1] - self.columns[0] != n - 1:
            return -1
        return int(self.columns[-1]) + 1


class RepadTorchRuntime(TorchRuntime):
    """TorchRuntime with the sequences of a call in one left-padded rectangle: un-pad, append, pad anew.

    Settings and numbers are those of TorchRuntime; a fork owns a copy of its prefix.  A call of the rows that a
    rectangle already holds, all of which kept equally many tokens, moves nothing.  A rectangle lives until the last of
    its rows has moved on.  tokens_held counts tokens; padding takes memory beside them, up to a longest row's each.
    `alignment` counts what was done; on a GPU its seconds are those of launching the copies.
    """

    def __init__(self, module: torch.nn.Module, **settings: Unpack[TorchSettings]):
        self.alignment = Alignment()
        super().__init__(module, **settings)
        if not self.cached:
            raise CapabilityError(
                f"aligned caches move keys and values, and this model cannot keep them as such "
                f"({self.not_cached_because}): use TorchRuntime"
            )
        self.capabilities = replace(self.capabilities, layers=0)  # a rectangle has one width
        self.alignment = Alignment()

    @property
    def align_s(self) -> float:
        """Seconds spent moving caches."""
        return self.alignment.seconds

    @property
    def grouped_share(self) -> float | None:
        """Share of the rows of batches that needed no padding; None before the first batch."""
        return self.alignment.grouped / self.alignment.rows if self.alignment.rows else None

    @one_at_a_time
    def close(self, sequence: Sequence) -> None:
        super().close(sequence)
        if isinstance(sequence, AlignedSequence):
            sequence.rectangle = []

    def _new_table(self, limit: int) -> TokenCount:
        return TokenCount(limit)

    def _new_sequence(self, held: IntArray, source: SlotSequence | None = None) -> AlignedSequence:
        sequence = AlignedSequence(length=len(held), held=held, epoch=self._epoch)
        if isinstance(source, AlignedSequence):
            sequence.rectangle, sequence.row = source.rectangle, source.row  # read only: a call writes a new rectangle
        return sequence

    def _fill(
        self,
        sequences: list[SlotSequence],
        work: list[Work],
        tokens: list[IntArray],
        slots: list[IntArray],
        rows: RowCollector,
    ) -> None:
        layouts = [WorkLayout.of(*of) for of in zip(sequences, work, slots, strict=True)]
        places = [
            RectangleRow(s.rectangle, s.row, np.concatenate([s.held, np.array(s.nodes, np.int64)]))
            for s in sequences
            if isinstance(s, AlignedSequence)
        ]
        for parts in self._calls(work, rows):
            self._call_rectangle(parts, layouts, places, tokens, rows)
        for i, (sequence, place) in enumerate(zip(sequences, places, strict=True)):
            assert isinstance(sequence, AlignedSequence)
            first = len(place.columns) - len(tokens[i])
            sequence.rectangle, sequence.row = place.rectangle, place.row
            sequence.held = place.columns[: sequence.length]
            sequence.nodes = place.columns[sequence.length : first].tolist()
            slots[i] = place.columns[first:]

    def _call_rectangle(
        self,
        parts: list[WorkPart],
        layouts: list[WorkLayout],
        places: list[RectangleRow],
        tokens: list[IntArray],
        rows: RowCollector,
    ) -> None:
        """One call of the module; afterwards each row's keys stand in the new rectangle, without gaps."""
        started = time.perf_counter()
        together = [places[p.item] for p in parts]
        past = self._bring_together(together)
        width = past[0][0].shape[2] if past else 0
        self._count(together, past, time.perf_counter() - started)
        pieces = [self._piece(layouts[p.item], p) for p in parts]
        pads = [width - len(place.columns) for place in together]
        plan = RectanglePlan(past, pieces, pads, width, self.device)
        self._run(parts, np.concatenate([piece.positions for piece in pieces]), plan, tokens, rows)
        self._table.bytes_per_token = sum(t[0, :, 0].numel() * t.element_size() for pair in plan.layers for t in pair)
        for i, (part, place, pad) in enumerate(zip(parts, together, pads, strict=True)):
            end = len(place.columns) + part.stop - part.start
            places[part.item] = RectangleRow(plan.layers, i, pad + np.arange(end))

    def _piece(self, layout: WorkLayout, part: WorkPart) -> SequenceQueries:
        return layout.piece(part.start, part.stop)

    def _bring_together(self, rows: list[RectangleRow]) -> list[KeysValues]:
        """Per layer (B, H_kv, T, D), T the longest row: each row's columns at the right end, zeros before them."""
        width = max(len(row.columns) for row in rows)
        if width == 0:
            return []
        end = common_end(rows)
        if end is not None:
            return [(k[:, :, end - width : end], v[:, :, end - width : end]) for k, v in rows[0].rectangle]
        some = next(row.rectangle for row in rows if len(row.columns))
        return [
            (padded([_taken(row, layer, 0) for row in rows], k, width),
             padded([_taken(row, layer, 1) for row in rows], v, width))
            for layer, (k, v) in enumerate(some)
        ]  # fmt: skip

    def _count(self, rows: list[RectangleRow], past: list[KeysValues], seconds: float) -> None:
        alignment = self.alignment
        alignment.seconds += seconds
        alignment.calls += 1
        if past and common_end(rows) is None:
            alignment.copied += 1
            alignment.bytes += sum(t.numel() * t.element_size() for pair in past for t in pair)
        with_past = sum(len(row.columns) > 0 for row in rows)
        if len(rows) > 1 and with_past:
            alignment.rows += with_past
            if len({len(row.columns) for row in rows}) == 1:
                alignment.grouped += with_past


class GroupTorchRuntime(RepadTorchRuntime):
    """TorchRuntime with a cache per sequence: rows of one length are stacked without padding, others padded anew.

    Equal lengths are the loop's business: give it `same_length.SameLength`.
    """

    def _bring_together(self, rows: list[RectangleRow]) -> list[KeysValues]:
        lengths = {len(row.columns) for row in rows}
        if len(lengths) > 1 or lengths == {0} or common_end(rows) is not None:
            return super()._bring_together(rows)
        return [
            (_stacked([_taken(row, layer, 0) for row in rows]), _stacked([_taken(row, layer, 1) for row in rows]))
            for layer in range(len(rows[0].rectangle))
        ]


class RectanglePlan:
    """The attention of one call: B rows with T columns behind them and at most Q new tokens each.

    past    per layer (B, H_kv, T, D); [] for T = 0
    pads    per row, how many of the T columns are padding
    `layers` are the rectangles afterwards, (B, H_kv, T + Q, D); columns after a row's last new token hold zeros.
    """

    def __init__(
        self, past: list[KeysValues], pieces: list[SequenceQueries], pads: list[int], width: int, device: torch.device
    ):
        self._past, self._pieces, self._pads, self._width, self._device = past, pieces, pads, width, device
        self._groups: dict[int | None, Group] = {}
        sizes = [len(piece.positions) for piece in pieces]
        self._most = most = max(sizes)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self._real = self._pad = None
        if min(sizes) < most:
            rows = np.repeat(starts[:-1, None], most, axis=1)  # a padded query repeats the first one of its row
            for i, n in enumerate(sizes):
                rows[i, :n] += np.arange(n)
            self._pad = torch.from_numpy(rows.ravel()).to(device)
            real = np.concatenate([i * most + np.arange(n) for i, n in enumerate(sizes)])
            self._real = torch.from_numpy(real).to(device)
        self.windows: list[int | None] = []
        self.partial = False
        self.layers: list[KeysValues] = []

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: LayerAttention
    ) -> torch.Tensor:
        """query (N, H, D), key and value (N, H_kv, D) of this layer's new tokens -> (N, H, D_v)."""
        keys, values = self._rectangle(key), self._rectangle(value)
        if self._past:
            before = self._past[len(self.layers)]
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        self.layers.append((keys, values))
        self.windows.append(layer.window)
        if layer.window not in self._groups:
            self._groups[layer.window] = self._group(layer.window)
        q = query if self._pad is None else query[self._pad]
        return attend_group(self._groups[layer.window], q, keys, values, layer)

    def _rectangle(self, flat: torch.Tensor) -> torch.Tensor:
        """(N, H_kv, D) -> (B, H_kv, Q, D)"""
        heads, size = flat.shape[1:]
        if self._real is not None:
            full = flat.new_zeros((len(self._pieces) * self._most, heads, size))
            full[self._real] = flat
            flat = full
        return flat.view(len(self._pieces), self._most, heads, size).transpose(1, 2)

    def _group(self, window: int | None) -> Group:
        size, most = len(self._pieces), self._most
        visible = np.zeros((size, most, self._width + most), bool)
        for i, (piece, pad) in enumerate(zip(self._pieces, self._pads, strict=True)):
            n, first, last = len(piece.positions), piece.first_column(window), len(piece.slots)
            visible[i, :n, pad + first : pad + last] = piece.visible(window)
            visible[i, n:] = visible[i, 0]  # a padded query sees what the first one sees, else its row is NaN
        fresh = self._width == 0 and self._real is None and all(piece.tail is None for piece in self._pieces)
        n = sum(len(piece.positions) for piece in self._pieces)
        return Group(
            slice(0, n),
            size,
            None if visible.all() else torch.from_numpy(visible[:, None]).to(self._device),
            causal=fresh and most > 1 and (window is None or most <= window),
            pad=self._pad,
            real=self._real,
        )


def common_end(rows: list[RectangleRow]) -> int | None:
    """The column before which all rows end, if they are all rows of one rectangle, in order; None: they must move."""
    rectangle, end = rows[0].rectangle, rows[0].end
    if end < 0 or len(rows) != rectangle[0][0].shape[0]:
        return None
    width = max(len(row.columns) for row in rows)
    stay = all(row.rectangle is rectangle and row.row == i and row.end == end for i, row in enumerate(rows))
    return end if stay and end >= width else None


def padded(parts: list[torch.Tensor | None], like: torch.Tensor, width: int) -> torch.Tensor:
    """parts (1, H_kv, n_i, D) -> (B, H_kv, width, D): each at the right end, zeros before it.

    Zeros, because masked columns are multiplied by 0 and must be finite.
    """
    out = like.new_empty((len(parts), like.shape[1], width, like.shape[3]))
    for i, part in enumerate(parts):
        pad = width - (0 if part is None else part.shape[2])
        out[i, :, :pad] = 0
        if part is not None:
            out[i, :, pad:] = part[0]
    return out


def _stacked(parts: list[torch.Tensor | None]) -> torch.Tensor:
    return torch.cat([part for part in parts if part is not None])


def _taken(row: RectangleRow, layer: int, which: int) -> torch.Tensor | None:
    """Keys (which=0) or values (1) of a row, (1, H_kv, n, D), without padding; None: it has none yet."""
    if not len(row.columns):
        return None
    tensor = row.rectangle[layer][which][row.row : row.row + 1]
    if row.end >= 0:
        return tensor[:, :, row.columns[0] : row.end]
    return tensor[:, :, torch.from_numpy(row.columns).to(tensor.device)]
