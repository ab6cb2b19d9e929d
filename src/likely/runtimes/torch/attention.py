"""Attention of many sequences over one pool of slots, hooked into transformers' attention interface.

A call's tokens form one row of N tokens, sorted so that neighbours are alike. Each model layer hands its queries, keys
and values to `slot_attention`; the `SlotPlan` of the call says where keys go and who sees what. Masks and slot indices
are built once per call and window and shared by all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from likely.runtimes.protocol import IntArray
from likely.runtimes.slots.layout import SequenceQueries
from likely.runtimes.slots.sharing import split_shared
from likely.runtimes.torch.hydragen import attend_to_all, fold_heads, folded_attention, merge_attention, unfold_heads
from likely.runtimes.torch.slots import SlotPool, Slots, Where

INTERFACE = "likely_slots"
CALL_COST = 4000  # what one more attention call costs, in query-key pairs: small pieces are padded into one call
GATHER_COST = 4  # what fetching one key costs, in query-key pairs
UNSUPPORTED = ("position_bias", "indices", "block_indices")


class UnsupportedAttention(Exception):
    """A layer asks for something that slots cannot give; the runtime then recomputes."""


@dataclass(frozen=True)
class LayerAttention:
    """How one layer attends.

    window  in positions; None: it sees everything        softcap  of the scores; None: none
    sinks   (H,) an extra score per query head that takes no value; None: none
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class AttentionPlan(Protocol):
    """What attention does in one call of the model; `windows`: of each layer, in the order of calls."""

    windows: list[int | None]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: LayerAttention
    ) -> torch.Tensor: ...


@dataclass
class Group:
    """Neighbouring pieces padded to one rectangle: B pieces, Q queries, S slots."""

    rows: slice  # of the call's row of tokens
    size: int  # B
    visible: torch.Tensor | None  # (B, 1, Q, S) bool; None: everything is seen
    causal: bool = False  # `visible` is a triangle
    pad: torch.Tensor | None = None  # (B * Q,) row of each query; None: no padding
    real: torch.Tensor | None = None  # (rows,) which of the B * Q queries is this row
    slots: Where | None = None  # (B, S), or a run of slots where B = 1; None: keys do not lie in slots
    columns: int = 0  # B * S
    _bias: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def bias(self, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        """0 where a query sees a slot, else -inf: (B, 1, repeats * Q, S), made once per call."""
        if self.visible is None:
            return None
        key = (repeats, dtype)
        if key not in self._bias:
            bias = torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device)
            bias.masked_fill_(~self.visible, -torch.inf)
            self._bias[key] = bias.repeat(1, 1, repeats, 1)
        return self._bias[key]


@dataclass
class KvReads:
    """Rows of keys and values, one per token and layer, padding included: read, and not read again because shared."""

    read: int = 0
    saved: int = 0


@dataclass(frozen=True)
class SharedKeys:
    """Slots that all of these rows of queries see; rows None: every row of the call."""

    rows: Where | None
    slots: Where


@dataclass(frozen=True)
class WindowLayout:
    """What layers of one window do in a call.

    groups  of pieces           shared  what pieces share beside that, in levels: a row is in each at most once
    reads   of one layer
    """

    groups: list[Group]
    shared: list[list[SharedKeys]]
    reads: KvReads


class SlotPlan:
    """One call of the model: N tokens in pieces, their new slots, and the pool."""

    def __init__(
        self,
        pool: SlotPool,
        pieces: list[SequenceQueries],
        new_slots: IntArray,
        device: torch.device,
        *,
        layers: list[int] | None = None,
        share: bool = False,
    ):
        """new_slots (N,): where the tokens' keys go, in the order of the pieces; layers: which attend, None: all.

        share  attend once to what pieces hold together, see `split_shared`
        """
        self._pool, self._pieces, self._device, self._share = pool, pieces, device, share
        self._where = _run_or_tensor(new_slots, device)
        self._layouts: dict[int | None, WindowLayout] = {}
        self.reads = KvReads()
        self._layer = 0  # how many have attended
        self._numbers = layers
        self.windows: list[int | None] = []  # of each layer, in the order of calls

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: LayerAttention
    ) -> torch.Tensor:
        """query (N, H, D), key and value (N, H_kv, D) of this layer's new tokens -> (N, H, D_v)."""
        number = self._layer if self._numbers is None else self._numbers[self._layer]
        keys, values = self._pool.write(number, key, value, self._where)
        self._layer += 1
        self.windows.append(layer.window)
        if layer.window not in self._layouts:
            self._layouts[layer.window] = self._make_layout(layer.window)
        layout = self._layouts[layer.window]
        self.reads.read += layout.reads.read
        self.reads.saved += layout.reads.saved
        if layout.shared:
            return self._attend_with_shared(layout, query, keys, values, layer)
        parts = [attend_group(group, *_inputs_of(group, query, keys, values), layer) for group in layout.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def ahead(self, n: int) -> list[SlotPlan]:
        """Plans of the same call for its next n layers, one layer each; this one goes on behind them."""
        plans = []
        for _ in range(n):
            plan = copy(self)
            plan.windows, plan.reads = [], KvReads()
            plans.append(plan)
            self._layer += 1
        return plans

    def note(self, done: Sequence[SlotPlan]) -> None:
        """Add what plans of `ahead` have seen."""
        for plan in done:
            self.windows += plan.windows
            self.reads.read += plan.reads.read
            self.reads.saved += plan.reads.saved

    def _attend_with_shared(
        self, layout: WindowLayout, query: torch.Tensor, keys: Slots, values: Slots, layer: LayerAttention
    ) -> torch.Tensor:
        parts = [attend_group_with_lse(g, *_inputs_of(g, query, keys, values), layer) for g in layout.groups]
        outs, lses = ([torch.cat(of) if len(of) > 1 else of[0]] for of in zip(*parts, strict=True))
        for level in layout.shared:
            outs.append(torch.zeros_like(outs[0]))
            lses.append(torch.full_like(lses[0], -torch.inf))
            for of in level:
                q = query if of.rows is None else query[of.rows]
                part = attend_to_all(q, keys[of.slots], values[of.slots], scale=layer.scale, softcap=layer.softcap)
                if of.rows is None:
                    outs[-1], lses[-1] = part
                else:
                    outs[-1][of.rows], lses[-1][of.rows] = part
        out, lse = merge_attention(outs, lses)
        if layer.sinks is not None:  # one more part, without values
            out = out * torch.sigmoid(lse - layer.sinks.float())[..., None]
        return out.to(query.dtype)

    def _make_layout(self, window: int | None) -> WindowLayout:
        runs, pieces = split_shared(self._pieces, window) if self._share else ([], self._pieces)
        groups = self._make_groups(pieces, window)
        starts = np.cumsum([0, *(len(p.positions) for p in pieces)])
        levels: list[list[SharedKeys]] = []
        depths = [0] * len(pieces)  # how many runs of each piece are placed
        for run in runs:
            rows = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in run.pieces])
            at = None if len(rows) == starts[-1] else _run_or_tensor(rows, self._device)
            depth = max(depths[n] for n in run.pieces)
            if depth == len(levels):
                levels.append([])
            levels[depth].append(SharedKeys(at, _run_or_tensor(run.slots, self._device)))
            for n in run.pieces:
                depths[n] = depth + 1
        own = sum(len(run.slots) for run in runs) + sum(group.columns for group in groups)
        return WindowLayout(groups, levels, KvReads(own, sum(run.saved for run in runs)))

    def _make_groups(self, pieces: list[SequenceQueries], window: int | None) -> list[Group]:
        """Neighbours are padded into one rectangle while that costs less than a call of their own."""
        shapes = [(len(p.positions), len(p.slots) - p.first_column(window)) for p in pieces]
        groups, start, row = [], 0, 0
        queries, slots = shapes[0]
        for stop in range(1, len(shapes) + 1):
            if stop < len(shapes):
                size, (n, s) = stop - start, shapes[stop]
                together = max(queries, n), max(slots, s)
                if _cost(size + 1, *together) <= _cost(size, queries, slots) + _cost(1, n, s):
                    queries, slots = together
                    continue
            groups.append(self._make_group(pieces[start:stop], shapes[start:stop], row, window))
            row = groups[-1].rows.stop
            if stop < len(shapes):
                start, (queries, slots) = stop, shapes[stop]
        return groups

    def _make_group(
        self, pieces: list[SequenceQueries], shapes: list[tuple[int, int]], row: int, window: int | None
    ) -> Group:
        size, queries, width = len(pieces), max(n for n, _ in shapes), max(s for _, s in shapes)
        rows = slice(row, row + sum(n for n, _ in shapes))
        first = pieces[0]
        if size == 1:
            slots = _run_or_tensor(first.slots[first.first_column(window) :], self._device)
            seen = first.visible(window)
            is_chain = first.tail is None and first.kept == 0 and (window is None or queries <= window)
            mask = None if seen.all() else torch.from_numpy(seen)[None, None].to(self._device)
            return Group(rows, 1, mask, causal=is_chain and queries > 1, slots=slots, columns=width)
        slots_of = np.empty((size, width), np.int64)
        visible = np.zeros((size, queries, width), bool)
        pad = np.empty((size, queries), np.int64)
        real = []
        for i, (piece, (n, s)) in enumerate(zip(pieces, shapes, strict=True)):
            slots_of[i, :s] = piece.slots[len(piece.slots) - s :]
            slots_of[i, s:] = slots_of[i, 0]  # a slot of its own, so that masked columns hold finite numbers
            visible[i, :n, :s] = piece.visible(window)
            visible[i, n:] = visible[i, 0]  # a padded query sees what the first one sees, else its row is NaN
            pad[i, :n] = np.arange(row, row + n)
            pad[i, n:] = row
            real.append(np.arange(n) + i * queries)
            row += n
        padded = rows.stop - rows.start != size * queries

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self._device)

        return Group(
            rows,
            size,
            None if visible.all() else tensor(visible[:, None]),
            pad=tensor(pad.ravel()) if padded else None,
            real=tensor(np.concatenate(real)) if padded else None,
            slots=tensor(slots_of),
            columns=size * width,
        )


def _inputs_of(
    group: Group, query: torch.Tensor, keys: Slots, values: Slots
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The group's queries (B * Q, H, D), keys (B, H_kv, S, D) and values (B, H_kv, S, D_v)."""
    assert group.slots is not None
    k, v = keys[group.slots], values[group.slots]  # (S, H_kv, D) or (B, S, H_kv, D)
    k = k.reshape(group.size, -1, *k.shape[-2:]).transpose(1, 2)
    v = v.reshape(group.size, -1, *v.shape[-2:]).transpose(1, 2)
    return query[group.rows] if group.pad is None else query[group.pad], k, v


def attend_group(
    group: Group, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: LayerAttention
) -> torch.Tensor:
    """q (B * Q, H, D), padding included; k (B, H_kv, S, D), v (B, H_kv, S, D_v) -> (rows, H, D_v), padding left out."""
    b, h_kv, heads = group.size, k.shape[1], q.shape[1]
    n, share = q.shape[0] // b, heads // h_kv
    q = q.view(b, n, heads, -1).transpose(1, 2)
    explicit = layer.softcap is not None or layer.sinks is not None
    if group.causal and not explicit:
        if share > 1:
            k, v = (t.repeat_interleave(share, dim=1) for t in (k, v))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=layer.scale).transpose(1, 2)
        return out.reshape(b * n, heads, -1)
    q = fold_heads(q, h_kv)  # keys are never repeated
    if explicit:
        out = _explicit_attention(q, k, v, group.bias(share, torch.float32), layer)
    else:
        out = scaled_dot_product_attention(q, k, v, attn_mask=group.bias(share, q.dtype), scale=layer.scale)
    out = unfold_heads(out, n).transpose(1, 2).reshape(b * n, heads, -1)
    return out if group.real is None else out[group.real]


def attend_group_with_lse(
    group: Group, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: LayerAttention
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend_group`, and the LSE (rows, H) of each row of queries; sinks are left to whoever merges."""
    b, h_kv, heads = group.size, k.shape[1], q.shape[1]
    n, share = q.shape[0] // b, heads // h_kv
    q = q.view(b, n, heads, -1).transpose(1, 2)
    bias = None
    if group.causal:
        k, v = (t.repeat_interleave(share, dim=1) for t in (k, v))
    else:
        q, bias = fold_heads(q, h_kv), group.bias(share, q.dtype)
    found = folded_attention(q, k, v, bias=bias, causal=group.causal, scale=layer.scale, softcap=layer.softcap)
    out, lse = found if group.causal else tuple(unfold_heads(part, n) for part in found)
    out, lse = out.transpose(1, 2).reshape(b * n, heads, -1), lse.transpose(1, 2).reshape(b * n, heads)
    return (out, lse) if group.real is None else (out[group.real], lse[group.real])


def _cost(size: int, queries: int, slots: int) -> int:
    """Of one attention call, in query-key pairs."""
    return size * slots * (queries + GATHER_COST) + CALL_COST


def _run_or_tensor(slots: IntArray, device: torch.device) -> Where:
    first, last = int(slots[0]), int(slots[-1])
    if last - first == len(slots) - 1 and (np.diff(slots) == 1).all():
        return slice(first, last + 1)
    return torch.from_numpy(np.ascontiguousarray(slots)).to(device)


def _explicit_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    layer: LayerAttention,
) -> torch.Tensor:
    """softmax(softcap * tanh(q k^T scale / softcap) + bias) v, with the sinks among the scores.

    q (B, H_kv, G * Q, D), k (B, H_kv, S, D), v (B, H_kv, S, D_v), sinks (H,) with H = H_kv * G. Softmax in fp32.
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * layer.scale
    softcap, sinks = layer.softcap, layer.sinks
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        b, h_kv, rows, _ = scores.shape
        share = sinks.numel() // h_kv
        sink = sinks.float().view(1, h_kv, share, 1).expand(b, h_kv, share, rows // share).reshape(b, h_kv, rows, 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    return torch.matmul(weights.to(v.dtype), v)


_PLAN: ContextVar[AttentionPlan] = ContextVar("likely_attention_plan")


@contextmanager
def attention_plan(plan: AttentionPlan, configs: list[Any]) -> Iterator[None]:
    """Within, every model whose config is listed attends by this plan; elsewhere it attends as it always did."""
    before = [config._attn_implementation for config in configs]
    token = _PLAN.set(plan)
    try:
        for config in configs:
            config._attn_implementation = INTERFACE
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        _PLAN.reset(token)


T = TypeVar("T")


def attend_in_threads(calls: Sequence[Callable[[], T]], pool: Executor) -> list[T]:
    """Run the attentions of the next layers at the same time; the numbers are those of running one after the other."""
    plan = _PLAN.get()
    if not isinstance(plan, SlotPlan):
        return [call() for call in calls]
    ahead = plan.ahead(len(calls))

    def run(at: SlotPlan, call: Callable[[], T]) -> T:
        _PLAN.set(at)  # of the thread's copy of the context
        with torch.no_grad():
            return call()

    waiting = [pool.submit(copy_context().run, run, at, call) for at, call in zip(ahead, calls, strict=True)]
    wait(waiting)
    results = [each.result() for each in waiting]
    plan.note(ahead)
    return results


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (1, H, N, D), key and value (1, H_kv, N, D) -> (1, N, H, D_v), None."""
    plan = _PLAN.get()
    for name in UNSUPPORTED:
        if others.get(name) is not None:
            raise UnsupportedAttention(f"its attention takes {name}")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise UnsupportedAttention("its attention is not over the call's own tokens")
    out = plan.attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        LayerAttention(query.shape[-1] ** -0.5 if scaling is None else float(scaling), sliding_window, softcap, s_aux),
    )
    return out[None], None


def register_interface() -> None:
    """Make `slot_attention` known to transformers; without a mask function of that name it builds no masks."""
    from transformers import AttentionInterface

    AttentionInterface.register(INTERFACE, slot_attention)
