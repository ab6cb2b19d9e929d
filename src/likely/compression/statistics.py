"""What runs through a decoder: ranges, moments and outliers of the inputs of each matrix, and of keys and values.

One pass over the windows, in pieces that merge: statistics of two halves are those of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from likely.compression.architecture import DecoderBlock, DecoderMap
from likely.compression.calibration_set import CalibrationSet
from likely.runtimes.protocol import IntArray

Values = NDArray[np.float64]
INPUTS = ("attention", "o", "mlp", "down", "keys", "values")  # of q, k, v; o; gate, up; down; outputs of k and of v
LARGE = 6.0  # LLM.int8's outliers: magnitudes of at least this
LEAST_LAYERS, LEAST_POSITIONS = 0.25, 0.06
QUANTILES = (0.5, 0.99, 0.999, 0.9999)
_SUMMARISED = ("channel_ratio", "kurtosis", "top_energy")
_FINE, _LOWEST, _HIGHEST = 64, -40, 40  # bins of |x| in each octave, from 2^-40 to 2^40


@dataclass(eq=False)
class ChannelMoments:
    """Of values (n, C), channel by channel, streamed.

    count       tokens;  absmax (C,);  sums (4, C) of x, x², x³, x⁴;  abs_sum (C,) of |x|;  large (C,) with |x| >= 6
    token_max   (n,) the largest magnitude of each token, in the order they came
    bins        (B,) how many |x| lie in each of 64 bins of an octave
    """

    count: int
    absmax: Values
    sums: Values
    abs_sum: Values
    large: Values
    token_max: Values
    bins: NDArray[np.int64]

    @classmethod
    def of(cls, values: Values) -> ChannelMoments:
        """values (n, C), n may be 0."""
        magnitude = np.abs(values)
        squares = values**2
        with np.errstate(divide="ignore"):
            place = np.floor((np.log2(magnitude) - _LOWEST) * _FINE)
        place = np.clip(place, 0, (_HIGHEST - _LOWEST) * _FINE - 1).astype(np.int64)
        return cls(
            count=len(values),
            absmax=magnitude.max(axis=0, initial=0.0),
            sums=np.stack([values.sum(0), squares.sum(0), (squares * values).sum(0), (squares**2).sum(0)]),
            abs_sum=magnitude.sum(axis=0),
            large=(magnitude >= LARGE).sum(axis=0).astype(np.float64),
            token_max=magnitude.max(axis=1, initial=0.0),
            bins=np.bincount(place.reshape(-1), minlength=(_HIGHEST - _LOWEST) * _FINE),
        )

    def merged(self, other: ChannelMoments) -> ChannelMoments:
        """Of both together, the other's tokens after these."""
        return ChannelMoments(
            self.count + other.count,
            np.maximum(self.absmax, other.absmax),
            self.sums + other.sums,
            self.abs_sum + other.abs_sum,
            self.large + other.large,
            np.concatenate([self.token_max, other.token_max]),
            self.bins + other.bins,
        )

    @property
    def mean_abs(self) -> Values:
        """(C,)"""
        return self.abs_sum / max(self.count, 1)

    def quantile(self, share: float) -> float:
        """Of |x| over all values, within half a bin (0.6 %); 0 for values below 2^-40."""
        cumulative = np.cumsum(self.bins)
        found = int(np.searchsorted(cumulative, share * cumulative[-1]))
        return float(2 ** (_LOWEST + (found + 0.5) / _FINE)) if found else 0.0

    def share_above(self, limit: float) -> float:
        """Of all values, those with |x| in a bin above the limit's."""
        bin_of_limit = int(np.clip((np.log2(max(limit, 2.0**_LOWEST)) - _LOWEST) * _FINE, 0, len(self.bins) - 1))
        return float(self.bins[bin_of_limit + 1 :].sum() / max(self.bins.sum(), 1))

    @property
    def kurtosis(self) -> float:
        """Excess kurtosis of all values: m₄ / m₂² - 3 about their mean, as in scipy.stats; 0 if they are all equal."""
        total = self.count * len(self.absmax)
        first, second, third, fourth = self.sums.sum(axis=1) / max(total, 1)
        m2 = second - first**2
        m4 = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        return float(m4 / m2**2 - 3) if m2 > 0 else 0.0

    @property
    def channel_ratio(self) -> float:
        """max_j absmax_j / median_j absmax_j."""
        return _ratio(float(self.absmax.max()), float(np.median(self.absmax)))

    @property
    def peak_ratio(self) -> float:
        """absmax / median |x|."""
        return _ratio(float(self.absmax.max()), self.quantile(0.5))

    @property
    def top_energy(self) -> float:
        """Share of Σ x² in the 1 % of channels (at least one) that have most of it."""
        energy = np.sort(self.sums[1])
        return _ratio(float(energy[-max(1, -(-len(energy) // 100)) :].sum()), float(energy.sum()))

    def record(self) -> dict[str, float]:
        """The outlier metrics as plain numbers."""
        found = {
            "absmax": float(self.absmax.max()), "peak_ratio": self.peak_ratio, "channel_ratio": self.channel_ratio,
            "kurtosis": self.kurtosis, "top_energy": self.top_energy,
        }  # fmt: skip
        return found | {f"q{str(share)[2:]}": self.quantile(share) for share in QUANTILES}


@dataclass(eq=False)
class ActivationStats:
    """Statistics of one model on one set of windows.

    first, rest  (layer, input) -> moments of the first token of each window, and of all others: beginnings carry
                 massive activations in many models.  Inputs are named as in `INPUTS`
    hessians     (layer, input) -> Σ xxᵀ, (in, in), where they were asked for
    """

    first: dict[tuple[int, str], ChannelMoments] = field(default_factory=dict)
    rest: dict[tuple[int, str], ChannelMoments] = field(default_factory=dict)
    hessians: dict[tuple[int, str], Values] = field(default_factory=dict)

    @classmethod
    @torch.no_grad()
    def collect(
        cls, decoder: DecoderMap, windows: IntArray, *, mask: NDArray[np.bool_] | None = None, hessians: bool = False
    ) -> ActivationStats:
        """One pass over windows (N, T); mask (N, T): tokens that count, padding stands behind the others."""
        found, inner = cls(), decoder.module.model
        for number, window in enumerate(windows):
            kept = window if mask is None else window[mask[number]]
            if not len(kept):
                continue
            hooks = [hook for block in decoder.blocks for hook in found._hooks(block, hessians)]
            try:
                inner(input_ids=torch.from_numpy(np.ascontiguousarray(kept))[None], use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
        return found

    def all(self, layer: int, name: str) -> ChannelMoments:
        """With the first tokens."""
        return self.first[layer, name].merged(self.rest[layer, name])

    def merged(self, other: ActivationStats) -> ActivationStats:
        """Of both sets of windows together."""
        return ActivationStats(
            _joined(self.first, other.first, ChannelMoments.merged),
            _joined(self.rest, other.rest, ChannelMoments.merged),
            _joined(self.hessians, other.hessians, np.add),
        )

    @property
    def layers(self) -> int:
        return 1 + max(layer for layer, _ in self.rest)

    def outlier_channels(self, name: str) -> list[int]:
        """As LLM.int8 counts them: |x| >= 6 in at least 25 % of the layers and at 6 % of all positions.

        Dettmers et al. 2022, arXiv:2208.07339, section 4.
        """
        shares = [self.all(layer, name) for layer in range(self.layers)]
        large = np.stack([m.large / max(m.count, 1) for m in shares])
        chosen = ((large > 0).mean(axis=0) >= LEAST_LAYERS) & (large.mean(axis=0) >= LEAST_POSITIONS)
        return [int(j) for j in np.flatnonzero(chosen)]

    def _hooks(self, block: DecoderBlock, hessians: bool) -> list[Any]:
        def add(name: str, values: torch.Tensor) -> None:
            rows = values.detach().reshape(-1, values.shape[-1]).double().numpy()
            key = block.number, name
            for store, part in ((self.first, rows[:1]), (self.rest, rows[1:])):
                moments = ChannelMoments.of(part)
                store[key] = store[key].merged(moments) if key in store else moments
            if hessians:
                self.hessians[key] = self.hessians.get(key, 0.0) + rows.T @ rows

        def reads(linear: torch.nn.Module, name: str) -> Any:
            return linear.register_forward_pre_hook(lambda _, args: add(name, args[0]))

        def writes(linear: torch.nn.Module, name: str) -> Any:
            return linear.register_forward_hook(lambda _, args, output: add(name, output))

        return [
            reads(block.q, "attention"), reads(block.o, "o"), reads(block.gate, "mlp"), reads(block.down, "down"),
            writes(block.k, "keys"), writes(block.v, "values"),
        ]  # fmt: skip


def outlier_table(decoder: DecoderMap, sets: Mapping[str, CalibrationSet]) -> list[dict[str, Any]]:
    """Outlier metrics for every set, layer and input, with all tokens and without each window's first one."""
    return [
        row
        for name, chosen in sets.items()
        for row in records_of(ActivationStats.collect(decoder, chosen.input_ids), name)
    ]


def records_of(stats: ActivationStats, name: str) -> list[dict[str, Any]]:
    """Rows of `outlier_table` for one set; keys set, layer, input, tokens ("all", "first", "rest") and metrics."""
    rows: list[dict[str, Any]] = []
    for layer, what in stats.rest:
        parts = {"all": stats.all(layer, what), "first": stats.first[layer, what], "rest": stats.rest[layer, what]}
        for tokens, moments in parts.items():
            rows.append({"set": name, "layer": layer, "input": what, "tokens": tokens, **moments.record()})
    return rows


@dataclass(frozen=True)
class InputSummary:
    """One kind of input over all layers of one set.

    first, rest    the largest magnitude at the first tokens of windows, and at all others
    channel_ratio, kurtosis, top_energy  medians over layers, first tokens left out: see `ChannelMoments`
    """

    set: str
    input: str
    first: float
    rest: float
    channel_ratio: float
    kurtosis: float
    top_energy: float


def summarise(rows: list[dict[str, Any]]) -> list[InputSummary]:
    """A line for each set and kind of input of an `outlier_table`."""
    found = []
    for name, what in dict.fromkeys((row["set"], row["input"]) for row in rows):
        by_tokens: dict[str, list[dict[str, Any]]] = {"first": [], "rest": []}
        for row in rows:
            if (row["set"], row["input"]) == (name, what) and row["tokens"] in by_tokens:
                by_tokens[row["tokens"]].append(row)
        first, rest = (max(row["absmax"] for row in by_tokens[tokens]) for tokens in by_tokens)
        middle = (float(np.median([row[key] for row in by_tokens["rest"]])) for key in _SUMMARISED)
        found.append(InputSummary(name, what, first, rest, *middle))
    return found


def agreement(calibrated: ActivationStats, used: ActivationStats, *, first: bool = True) -> list[dict[str, Any]]:
    """How well ranges of one set serve another, for each layer and input.

    first      with the first token of each window, whose massive activations may set the range for all others
    spearman   of the channels' absmax;  range_ratio  calibrated absmax / used absmax;  saturation  share of the used
               values beyond the calibrated range of the whole tensor
    """
    rows = []
    for layer, what in calibrated.rest:
        ours, theirs = (s.all(layer, what) if first else s.rest[layer, what] for s in (calibrated, used))
        rows.append(
            {
                "layer": layer,
                "input": what,
                "spearman": float(spearmanr(ours.absmax, theirs.absmax).statistic),
                "range_ratio": _ratio(float(ours.absmax.max()), float(theirs.absmax.max())),
                "saturation": theirs.share_above(float(ours.absmax.max())),
            }
        )
    return rows


@dataclass(frozen=True)
class InputAgreement:
    """`agreement` of two sets on one kind of input: medians over layers, and the largest saturation of any layer."""

    calibrated: str
    used: str
    input: str
    spearman: float
    range_ratio: float
    saturation: float


def agreement_table(
    calibrated: Mapping[str, ActivationStats], used: Mapping[str, ActivationStats], *, first: bool = True
) -> list[InputAgreement]:
    """A line for each pair of sets and kind of input."""
    found = []
    for ours, theirs in ((a, b) for a in calibrated for b in used if a != b):
        rows = agreement(calibrated[ours], used[theirs], first=first)
        for what in dict.fromkeys(row["input"] for row in rows):
            of_input = [row for row in rows if row["input"] == what]
            order, span = (float(np.median([row[key] for row in of_input])) for key in ("spearman", "range_ratio"))
            found.append(InputAgreement(ours, theirs, what, order, span, max(row["saturation"] for row in of_input)))
    return found


def divergent_channels(one: ActivationStats, other: ActivationStats, channels: int) -> dict[int, IntArray]:
    """Of each layer the channels of norm outputs whose ranges differ most between two sets, for `inject_outliers`.

    By the mean over both norms of |ln(absmax / absmax')|, first tokens left out: outliers that depend on the data.
    """
    found = {}
    for layer in range(one.layers):
        differs = np.mean(
            [np.abs(_log_range(one, layer, what) - _log_range(other, layer, what)) for what in ("attention", "mlp")],
            axis=0,
        )
        if not 1 <= channels <= len(differs):
            raise ValueError(f"channels must lie between 1 and {len(differs)}, got {channels}")
        found[layer] = np.sort(np.argsort(-differs, kind="stable")[:channels])
    return found


def _log_range(stats: ActivationStats, layer: int, what: str) -> Values:
    return np.log(np.maximum(stats.rest[layer, what].absmax, np.finfo(np.float64).tiny))


def _joined(one: dict[Any, Any], other: dict[Any, Any], add: Any) -> dict[Any, Any]:
    return {
        key: add(one[key], other[key]) if key in one and key in other else one.get(key, other.get(key))
        for key in one | other
    }


def _ratio(top: float, bottom: float) -> float:
    """inf where only the lower one is 0; 1 where both are."""
    if bottom:
        return top / bottom
    return float("inf") if top else 1.0
