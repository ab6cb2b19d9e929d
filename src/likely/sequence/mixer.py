"""The one interface of all sequence layers: tokens in parallel or one by one, with a state never changed in place.

What no layer has to think about is done here: padding anywhere in a row is moved to its end, packed documents of a
layer that cannot reset its state run as rows of their own, and states at several positions come from running in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

StateKind = Literal["recurrent", "kv", "history", "none"]


@dataclass(frozen=True)
class MixerState:
    """What a layer remembers of the tokens so far: named tensors, batch first.  A snapshot is a reference.

    tensors   name -> (B, ...)
    document  (B,) id of the packed document that the last token belongs to, where `seq_idx` was given
    """

    tensors: Mapping[str, Tensor]
    document: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def batch(self) -> int:
        return len(next(iter(self.tensors.values()))) if self.tensors else 0

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> MixerState:
        document = None if self.document is None else change(self.document)
        return MixerState({name: change(t) for name, t in self.tensors.items()}, document)

    def select(self, rows: Tensor | Sequence[int]) -> MixerState:
        """The states of these rows, in this order: beam search, batches that shrink."""
        return self.map(lambda t: t[torch.as_tensor(rows, device=t.device)])

    def fork(self, n: int) -> MixerState:
        """Each row n times, side by side; one row is not copied."""
        return self.map(lambda t: t.expand(n, *t.shape[1:]) if len(t) == 1 else t.repeat_interleave(n, 0))

    def detach(self) -> MixerState:
        """Cut off from the past's gradients: truncated back-propagation through time."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> MixerState:
        return self.map(lambda t: t.to(device))

    @staticmethod
    def stack(states: Sequence[MixerState]) -> MixerState:
        """Rows of several states in one; tensors that grow with the sequence are filled up with zeros."""
        return MixerState({name: _stacked([s[name] for s in states]) for name in states[0].tensors})


@dataclass(frozen=True)
class MixerOutput:
    """y (B, L, D); the state after the last token; scalars to report or to add to a loss; states after `states_at`."""

    y: Tensor
    state: MixerState | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    states: tuple[MixerState, ...] = ()


@dataclass(frozen=True)
class MixerRows:
    """What a layer is told about rows whose padding, if any, stands at their ends.

    lengths       (B,) real tokens of each row; None: all L
    starts        (B, L) bool, the state is emptied before these tokens; None: nowhere
    positions     (B, L) positions for layers that encode them; None: counted from the state
    state_wanted  whether anybody reads the state afterwards
    """

    lengths: Tensor | None = None
    starts: Tensor | None = None
    positions: Tensor | None = None
    state_wanted: bool = True

    def padding(self, x: Tensor) -> Tensor | None:
        """(B, L) bool, True at padding; None without any."""
        if self.lengths is None:
            return None
        return torch.arange(x.shape[1], device=x.device) >= self.lengths[:, None]


class SequenceMesh(Protocol):
    """Processes that hold pieces of the same sequences, and how a layer runs over them (`likely.sequence.parallel`)."""

    def mix(
        self, mixer: SequenceMixer, x: Tensor, *, mask: Tensor | None, seq_idx: Tensor | None,
        positions: Tensor | None, return_state: bool,
    ) -> MixerOutput: ...  # fmt: skip


class SequenceMixer(nn.Module):
    """A layer that mixes tokens along time.  Subclasses write `mix` and `state_spec`.

    state_kind  "recurrent": of fixed size; "kv": keys and values of all tokens; "history": all inputs, a step costs
                O(length); "none": no causal state
    packs       whether `mix` empties its state where a packed document starts; otherwise documents run as own rows
    """

    causal: bool = True
    state_kind: ClassVar[StateKind] = "recurrent"
    packs: ClassVar[bool] = False

    def __init__(self, d_model: int):
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model must be at least 1, got {d_model}")
        self.d_model = d_model

    def state_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape without the batch, dtype) of the state after `length` tokens."""
        raise TypeError(f"{type(self).__name__} must say what its state is")

    def mix(self, x: Tensor, state: MixerState, rows: MixerRows) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        """y, the state after each row's last real token, and scalars; y at padding is not looked at."""
        raise TypeError(f"{type(self).__name__} must say how it mixes tokens")

    @property
    def state_dtype(self) -> torch.dtype:
        """Of recurrent states: the parameters' dtype, float32 at least."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def state_bytes(self, length: int = 0) -> int:
        """Bytes of one sequence's state after `length` tokens."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.state_spec(length).values())

    def init_state(self, batch: int, *, device: torch.device | str | None = None) -> MixerState:
        """The state before the first token."""
        device = next(self.parameters()).device if device is None else device
        spec = self.state_spec().items()
        return MixerState({name: torch.zeros(batch, *shape, dtype=d, device=device) for name, (shape, d) in spec})

    def forward(
        self, x: Tensor, state: MixerState | None = None, *, mask: Tensor | None = None,
        seq_idx: Tensor | None = None, positions: Tensor | None = None, mesh: SequenceMesh | None = None,
        return_state: bool = False, states_at: Tensor | Sequence[int] | None = None,
    ) -> MixerOutput:  # fmt: skip
        """All tokens at once; with `state`, as a continuation of what it remembers.

        x (B, L, D);  mask (B, L): 1 real, 0 padding, anywhere in a row: outputs there are 0 and states unchanged
        seq_idx    (B, L) ids of packed documents: each is as if alone; a first id equal to the state's continues it
        positions  (B, L) instead of counting on from the state;  mesh: other processes hold the rest of the sequences
        states_at  columns: also return the states after these
        """
        self._check(x, state, mask, seq_idx, positions)
        if mesh is not None:
            if state is not None or states_at is not None:
                raise ValueError("a mesh takes whole sequences: leave out state and states_at")
            return mesh.mix(
                self, x, mask=mask, seq_idx=seq_idx, positions=positions, return_state=return_state
            )  # fmt: skip
        if states_at is not None:
            return self._in_pieces(x, state, mask, seq_idx, positions, [int(at) for at in states_at], return_state)
        if not self.causal and state is not None:
            raise ValueError(f"{type(self).__name__} sees both directions and cannot continue a state")
        state = self.init_state(len(x), device=x.device) if state is None else state
        lengths, order = (None, None) if mask is None else _left_aligned(mask.bool())
        if order is not None:
            x, seq_idx, positions = (None if t is None else _ordered(t, order) for t in (x, seq_idx, positions))
        rows = MixerRows(lengths, None, positions, return_state)
        padding = rows.padding(x)
        x = x if padding is None else x.masked_fill(padding[..., None], 0.0)
        document = state.document
        if seq_idx is not None:
            starts, document = _documents(seq_idx, document, lengths, padding)
            rows = replace(rows, starts=starts if bool(starts.any()) else None)
        y, state, aux = self.mix_documents(x, state, rows)
        y = y if padding is None else y.masked_fill(padding[..., None], 0.0)
        y = y if order is None else _ordered(y, order.argsort(dim=1))
        return MixerOutput(y, replace(state, document=document) if return_state else None, aux)

    def mix_documents(
        self, x: Tensor, state: MixerState, rows: MixerRows
    ) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        """`mix`, also where packed documents start and the layer itself knows none."""
        return self.mix(x, state, rows) if rows.starts is None or self.packs else self._by_document(x, state, rows)

    def step(self, x_t: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """One token for each row: x_t (B, D) -> y_t (B, D) and the new state; the given one stays as it is."""
        if x_t.shape != (state.batch, self.d_model):
            raise ValueError(f"x_t must be ({state.batch}, {self.d_model}), got {tuple(x_t.shape)}")
        y, after, _ = self.mix(x_t[:, None], state, MixerRows())
        return y[:, 0], replace(after, document=state.document)

    def _check(
        self, x: Tensor, state: MixerState | None, mask: Tensor | None, seq_idx: Tensor | None,
        positions: Tensor | None,
    ) -> None:  # fmt: skip
        if x.ndim != 3 or x.shape[2] != self.d_model or not x.shape[1]:
            raise ValueError(f"x must be (batch, length > 0, {self.d_model}), got {tuple(x.shape)}")
        for name, value in (("mask", mask), ("seq_idx", seq_idx), ("positions", positions)):
            if value is not None and value.shape != x.shape[:2]:
                raise ValueError(f"{name} must be {tuple(x.shape[:2])}, got {tuple(value.shape)}")
        if mask is not None and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask must hold 1 for tokens and 0 for padding only")
        if state is not None:
            expected = self.state_spec()
            if state.tensors.keys() != expected.keys() or state.batch not in (len(x), 0 if not expected else len(x)):
                held = {name: tuple(t.shape) for name, t in state.tensors.items()}
                raise ValueError(f"state must hold {sorted(expected)} for {len(x)} rows, got {held}")

    def _in_pieces(
        self, x: Tensor, state: MixerState | None, mask: Tensor | None, seq_idx: Tensor | None,
        positions: Tensor | None, at: list[int], return_state: bool,
    ) -> MixerOutput:  # fmt: skip
        length = x.shape[1]
        if not all(0 <= column < length for column in at):
            raise ValueError(f"states_at must be columns from 0 to {length - 1}, got {at}")
        found: dict[int, MixerState] = {}
        outputs, parts, begin = [], [], 0
        for end in sorted({*(column + 1 for column in at), length}):
            piece = slice(begin, end)
            mask_, seq_, positions_ = (None if t is None else t[:, piece] for t in (mask, seq_idx, positions))
            out = self(x[:, piece], state, mask=mask_, seq_idx=seq_, positions=positions_, return_state=True)
            assert out.state is not None
            state = found[end - 1] = out.state
            outputs.append(out.y)
            parts.append((end - begin, out.aux))
            begin = end
        states = tuple(found[column] for column in at)
        return MixerOutput(torch.cat(outputs, 1), state if return_state else None, _mean(parts), states)

    def _by_document(
        self, x: Tensor, state: MixerState, rows: MixerRows
    ) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        """Packed documents as rows of their own; those within a factor of two in length run together."""
        spans = _spans(x, rows)
        groups: dict[tuple[int, bool], list[tuple[int, int, int]]] = {}
        for row, begin, end, fresh in spans:
            groups.setdefault(((end - begin).bit_length(), fresh), []).append((row, begin, end))
        y = torch.zeros_like(x)
        last = {row: (begin, end) for row, begin, end, _ in spans}
        finals = {row: state.select([row]) for row in range(len(x))}
        parts = []
        for (_, fresh), members in groups.items():
            row, begin, end = (torch.tensor(numbers, device=x.device) for numbers in zip(*members, strict=True))
            size = end - begin
            index = begin[:, None] + torch.arange(int(size.max()), device=x.device)
            real = index < end[:, None]
            index = index.clamp_max(x.shape[1] - 1)
            inner = MixerRows(
                None if bool(real.all()) else size,
                None,
                None if rows.positions is None else rows.positions[row[:, None], index],
                rows.state_wanted,
            )
            inputs = x[row[:, None], index].masked_fill(~real[..., None], 0.0)
            before = self.init_state(len(row), device=x.device) if fresh else state.select(row)
            out, after, aux = self.mix(inputs, before, inner)
            where = row[:, None].expand_as(index)[real], index[real]
            y = y.to(out.dtype).index_put(where, out[real])
            parts.append((int(size.sum()), aux))
            for i, (at, first, stop) in enumerate(members):
                if last[at] == (first, stop):
                    finals[at] = after.select([i])
        return y, MixerState.stack([finals[row] for row in range(len(x))]), _mean(parts)


def _left_aligned(mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Lengths of the rows, and the order that moves padding to their ends; None where nothing is to be done."""
    if bool(mask.all()):
        return None, None
    lengths = mask.sum(1)
    already = bool((mask == (torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])).all())
    return lengths, None if already else mask.long().argsort(dim=1, descending=True, stable=True)


def _ordered(t: Tensor, order: Tensor) -> Tensor:
    return torch.take_along_dim(t, order if t.ndim == 2 else order[..., None], 1)


def _documents(
    seq_idx: Tensor, before: Tensor | None, lengths: Tensor | None, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(B, L) where documents start, and (B,) the document of each row's last token."""
    first = torch.zeros_like(seq_idx[:, 0], dtype=torch.bool) if before is None else seq_idx[:, 0] != before
    starts = torch.cat([first[:, None], seq_idx[:, 1:] != seq_idx[:, :-1]], 1)
    if lengths is None or padding is None:
        return starts, seq_idx[:, -1]
    last = seq_idx.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0]
    none = seq_idx[:, 0] if before is None else before
    return starts & ~padding, torch.where(lengths > 0, last, none)


def _spans(x: Tensor, rows: MixerRows) -> list[tuple[int, int, int, bool]]:
    """(row, begin, end, whether it starts from nothing) of each document, in order."""
    assert rows.starts is not None
    found = []
    lengths = [x.shape[1]] * len(x) if rows.lengths is None else rows.lengths.tolist()
    for row, (starts, length) in enumerate(zip(rows.starts, lengths, strict=True)):
        begins = [int(at) for at in starts.nonzero()[:, 0]]
        fresh = set(begins)
        edges = sorted({0, *begins})
        found += [(row, b, e, b in fresh) for b, e in zip(edges, [*edges[1:], length], strict=True) if e > b]
    return found


def _mean(parts: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Scalars of pieces, averaged by their numbers of tokens."""
    total = sum(n for n, _ in parts)
    names = parts[0][1] if parts else {}
    return {name: torch.stack([aux[name] * (n / total) for n, aux in parts]).sum() for name in names}


def _stacked(tensors: list[Tensor]) -> Tensor:
    size = max((t.shape[1] for t in tensors if t.ndim > 1), default=0)
    grown = [
        torch.cat([t, t.new_zeros(len(t), size - t.shape[1], *t.shape[2:])], 1) if t.ndim > 1 else t for t in tensors
    ]
    return torch.cat(grown)
