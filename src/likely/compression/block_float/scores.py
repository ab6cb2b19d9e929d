"""What channels are sorted by: the paper's norm of weights, or statistics of cached keys; and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from likely.compression.architecture import DecoderBlock, DecoderMap
from likely.compression.block_float.permutation import Order, Scores, pair_order, sorted_order
from likely.compression.block_float.sorting import KSort, Layout, VSort
from likely.compression.calibration_set import CalibrationSet
from likely.errors import check_choice
from likely.runtimes.kv_format import BFPFormat
from likely.runtimes.protocol import IntArray
from likely.runtimes.slots.layout import SequenceQueries
from likely.runtimes.torch.attention import LayerAttention, SlotPlan, register_interface
from likely.runtimes.torch.block_float import bfp_quantize
from likely.runtimes.torch.module import ModuleCall
from likely.runtimes.torch.slots import SlotPool

Score = Literal["weight", "best", "rms", "absmax", "std", "std/query"]


@dataclass(frozen=True, eq=False)
class HeadActivations:
    """Keys as they are cached and the queries that read them, of one layer.

    keys     (T, H_kv, d), after rotation
    queries  (H_kv, d, d): E[q qᵀ] over tokens and the query heads of each group
    """

    keys: torch.Tensor
    queries: torch.Tensor

    def rms(self) -> Scores:
        return self.keys.double().square().mean(0).sqrt().numpy()

    def absmax(self) -> Scores:
        return self.keys.double().abs().amax(0).numpy()

    def std(self) -> Scores:
        """Over tokens: a constant part of a channel adds the same to every score, which softmax ignores."""
        return self.keys.double().std(0, unbiased=False).numpy()

    def std_per_query(self) -> Scores:
        query_rms = torch.diagonal(self.queries, dim1=-2, dim2=-1).double().sqrt().numpy()
        return self.std() / np.maximum(query_rms, 1e-12)

    def error(self, order: Order, fmt: BFPFormat) -> Scores:
        """(H_kv,) E_s[δ_sᵀ C δ_s]: what rounding keys in this order (H_kv, d) does to scores.

        δ_s is the error of token s less its mean over tokens; C = E[q qᵀ].
        """
        at = torch.from_numpy(order)[None].expand(self.keys.shape)
        ordered = self.keys.gather(-1, at)
        rounded = bfp_quantize(ordered, fmt).dequantize() - ordered
        delta = torch.zeros_like(rounded).scatter(-1, at, rounded)
        delta = delta - delta.mean(0)
        return torch.einsum("thi,hij,thj->h", delta, self.queries, delta).double().numpy() / len(delta)


def weight_norms(decoder: DecoderMap, block: DecoderBlock, part: Literal["k", "v"] = "k") -> Scores:
    """(H_kv, d) ‖W[i, :]‖ of the key (or value) rows; with a norm of keys, its scale times that over the mean."""
    weight = getattr(block, part).weight.detach().double()
    norms = weight.norm(dim=1).reshape(decoder.kv_heads, decoder.head_dim)
    if part == "k" and block.k_norm is not None:
        norms = norms / norms.mean(dim=1, keepdim=True) * decoder.norm_scale(block.k_norm).detach().double().abs()
    return norms.cpu().numpy()


def k_sort(
    decoder: DecoderMap,
    *,
    score: Score = "weight",
    layout: Layout = "table",
    calibration: CalibrationSet | None = None,
    fmt: BFPFormat | None = None,
) -> KSort:
    """Orders for `KSort.apply`; the model is not changed.

    score   "weight": norms of the rows of W_k, the paper's; needs no data.  rms, absmax, std, std/query: of cached
            keys.  "best": per head the order with the smallest `HeadActivations.error` among none, weight, std and
            std/query
    layout  "table" and "gather" take any order, "pairs" keeps rotary pairs side by side
    calibration  for all scores but "weight";  fmt  the format that "best" is chosen for, BFP12 by default
    """
    check_choice("score", score, ("weight", *_MEASURED, "best"))
    check_choice("layout", layout, ("table", "gather", "pairs"))
    order: Callable[[Scores], Order] = pair_order if layout == "pairs" else sorted_order
    if score == "weight":
        return KSort([order(weight_norms(decoder, block)) for block in decoder.blocks], layout)
    if calibration is None:
        raise ValueError(f'score="{score}" looks at cached keys: give a calibration set, or take score="weight"')
    found = []
    for block, seen in zip(decoder.blocks, activations(decoder, calibration.input_ids), strict=True):
        if score != "best":
            found.append(order(_MEASURED[score](seen)))
            continue
        none = np.tile(np.arange(decoder.head_dim), (decoder.kv_heads, 1))
        scores = (weight_norms(decoder, block), seen.std(), seen.std_per_query())
        orders = [none, *(order(values) for values in scores)]
        errors = np.stack([seen.error(candidate, fmt or BFPFormat()) for candidate in orders])
        chosen = errors.argmin(axis=0)
        found.append(np.stack([orders[n][head] for head, n in enumerate(chosen)]))
    return KSort(found, layout)


def v_sort(decoder: DecoderMap) -> VSort:
    """Value channels by the norms of the rows of W_v."""
    return VSort([sorted_order(weight_norms(decoder, block, "v")) for block in decoder.blocks])


def activations(decoder: DecoderMap, windows: Iterable[IntArray]) -> list[HeadActivations]:
    """Of every layer, over windows of tokens; all keys are held in fp32."""
    register_interface()
    call = ModuleCall(decoder.module)
    keys: dict[int, list[torch.Tensor]] = {}
    queries: dict[int, torch.Tensor] = {}
    tokens = 0
    for window in windows:
        plan = _RecordingPlan(len(window), decoder, keys, queries)
        call(window, np.array([len(window) - 1]), positions=np.arange(len(window)), plan=plan)
        tokens += len(window)
    share = decoder.heads // decoder.kv_heads
    return [HeadActivations(torch.cat(keys[n]), queries[n] / (tokens * share)) for n in range(len(decoder.blocks))]


class _RecordingPlan(SlotPlan):
    """One text from its first token, and what each layer attends with."""

    def __init__(
        self, length: int, decoder: DecoderMap, keys: dict[int, list[torch.Tensor]], queries: dict[int, torch.Tensor]
    ):
        at = np.arange(length, dtype=np.int64)
        pool = SlotPool(length)
        pool.allocate(length)
        super().__init__(pool, [SequenceQueries(at, at, 0)], at, next(decoder.module.parameters()).device)
        self._decoder, self._keys, self._queries = decoder, keys, queries

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: LayerAttention
    ) -> torch.Tensor:
        number = len(self.windows)
        kv_heads = self._decoder.kv_heads
        grouped = query.float().unflatten(1, (kv_heads, -1))  # (T, H_kv, share, d)
        moments = torch.einsum("thgi,thgj->hij", grouped, grouped).cpu()
        self._queries[number] = self._queries.get(number, torch.zeros_like(moments)) + moments
        self._keys.setdefault(number, []).append(key.float().cpu().clone())
        return super().attend(query, key, value, layer)


_MEASURED: dict[str, Callable[[HeadActivations], Scores]] = {
    "rms": HeadActivations.rms,
    "absmax": HeadActivations.absmax,
    "std": HeadActivations.std,
    "std/query": HeadActivations.std_per_query,
}
