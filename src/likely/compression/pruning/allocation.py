"""How many groups of heads and neurons go, and which: budgets of attention and MLP, ranks over the model or a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from likely.compression.pruning.scores import UnitScores
from likely.compression.pruning.sizes import BlockSizes
from likely.errors import check_choice

Allocation = Literal["global", "uniform"]
KeptUnits = tuple[tuple[int, ...], ...]  # per layer, ascending
ALLOCATIONS = ("global", "uniform")
MOST_OF_MLP = 0.95
LEAST_NEURONS = 8


class AllocationOptions(TypedDict, total=False):
    """Which units go: see `keep_units`."""

    gamma: float | Literal["auto"]
    allocation: Allocation
    multiple_of: int
    protect_layers: Sequence[int]


def split_sparsity(sparsity: float, gamma: float, attention: float, mlp: float) -> tuple[float, float]:
    """The shares (ρ_attention, ρ_mlp) to prune of a layer's `attention` and `mlp` weights.

    ρ_attention A + ρ_mlp M = ρ (A + M) and ρ_mlp = γ ρ_attention: with γ = 1 both lose the same share, with an infinite
    one only the MLP loses.  Where ρ_mlp would exceed 0.95 the rest is attention's.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma}")
    budget = sparsity * (attention + mlp)
    of_attention = 0.0 if math.isinf(gamma) else budget / (attention + gamma * mlp)
    of_mlp = (budget - of_attention * attention) / mlp
    if of_mlp > MOST_OF_MLP:
        of_mlp = MOST_OF_MLP
        of_attention = (budget - of_mlp * mlp) / attention
    return of_attention, of_mlp


def keep_units(
    scores: UnitScores,
    sparsity: float,
    *,
    gamma: float | Literal["auto"] = "auto",
    allocation: Allocation = "uniform",
    multiple_of: int = 32,
    protect_layers: Sequence[int] = (),
) -> tuple[KeptUnits, KeptUnits]:
    """The groups and the neurons of each layer that stay, so that at least `sparsity` of the blocks' weights go.

    gamma        ratio of the pruned shares, MLP over attention; "auto": the ratio of their sizes, M / A
    allocation   "uniform": the lowest of each layer go, the same number in each; engines load it as a plain model.
                 "global": the lowest of the whole model, as in the paper; layers come to differ
    multiple_of  of the neurons that a layer keeps (the official code has 8; blocks of quantised files are 32 wide)
    protect_layers  layers that lose nothing

    Each layer keeps its best group and at least 8 neurons.  Counts are whole: the budget is met by neurons, and missed
    upwards by less than `multiple_of` of them (in a uniform plan: in each layer).
    """
    sizes = scores.sizes
    check_choice("allocation", allocation, ALLOCATIONS)
    if multiple_of < 1:
        raise ValueError(f"multiple_of must be at least 1, got {multiple_of}")
    if strangers := [layer for layer in protect_layers if not 0 <= layer < sizes.layers]:
        raise ValueError(f"protect_layers: there is no layer {strangers[0]} (allowed: 0 to {sizes.layers - 1})")
    if allocation == "uniform" and protect_layers:
        raise ValueError("a uniform plan prunes every layer alike: protect_layers needs allocation='global'")
    ratio = sizes.mlp / sizes.attention if gamma == "auto" else gamma
    of_attention, _ = split_sparsity(sparsity, ratio, sizes.attention, sizes.mlp)
    if allocation == "uniform":
        return _uniform(scores, sparsity, of_attention, multiple_of)
    return _global(scores, sparsity, of_attention, multiple_of, set(protect_layers))


def _uniform(scores: UnitScores, sparsity: float, of_attention: float, multiple: int) -> tuple[KeptUnits, KeptUnits]:
    sizes = scores.sizes
    budget = math.ceil(sparsity * (sizes.attention + sizes.mlp))
    lost = min(round(of_attention * sizes.groups), budget // sizes.group_weights)
    groups = sizes.loadable_groups(max(1, sizes.groups - lost))
    missing = budget - (sizes.groups - groups) * sizes.group_weights
    fewer = max(0, -(-missing // sizes.neuron_weights))
    neurons = sizes.neurons if not fewer else (sizes.neurons - fewer) // multiple * multiple
    if neurons < min(LEAST_NEURONS, sizes.neurons):
        raise _too_much(sparsity, sizes, sizes.loadable[0])
    return _best(scores.groups, [groups] * sizes.layers), _best(scores.neurons, [neurons] * sizes.layers)


def _global(
    scores: UnitScores, sparsity: float, of_attention: float, multiple: int, protected: set[int]
) -> tuple[KeptUnits, KeptUnits]:
    sizes = scores.sizes
    some = np.array([layer not in protected for layer in range(sizes.layers)])
    spare = int(some.sum()) * (sizes.groups - 1)
    gone = min(int(of_attention * sizes.groups * sizes.layers), spare)
    lost = _lost_per_layer(scores.groups, gone, 1, some)
    budget = math.ceil(sparsity * sizes.weights) - int(lost.sum()) * sizes.group_weights
    least = min(max(LEAST_NEURONS, multiple), sizes.neurons)

    def kept_neurons(count: int) -> NDArray[np.int64]:
        """Per layer when the `count` lowest go, rounded up to the multiple by sparing the best of them."""
        kept = sizes.neurons - _lost_per_layer(scores.neurons, count, least, some)
        return np.minimum(-(-kept // multiple) * multiple, sizes.neurons)

    def removed(count: int) -> int:
        return int((sizes.neurons - kept_neurons(count)).sum()) * sizes.neuron_weights

    low, high = 0, int(some.sum()) * (sizes.neurons - least)
    if removed(high) < budget:
        raise _too_much(sparsity, sizes, 1)
    while low < high:  # the fewest that meet the budget: what is removed grows with the count
        middle = (low + high) // 2
        low, high = (low, middle) if removed(middle) >= budget else (middle + 1, high)
    groups = [sizes.groups - int(n) for n in lost]
    return _best(scores.groups, groups), _best(scores.neurons, [int(n) for n in kept_neurons(low)])


def _lost_per_layer(values: NDArray[np.float64], count: int, least: int, some: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of the `count` lowest of all layers lie in each; the best `least` of each layer are not among them."""
    layers, width = values.shape
    order = np.argsort(values, axis=1, kind="stable")
    open_to = np.zeros_like(values, bool)
    np.put_along_axis(open_to, order[:, : width - least], True, axis=1)
    open_to &= some[:, None]
    ranked = np.argsort(np.where(open_to, values, np.inf), axis=None, kind="stable")[:count]
    return np.bincount(ranked // width, minlength=layers)


def _best(values: NDArray[np.float64], counts: Sequence[int]) -> KeptUnits:
    """The best-scored of each layer; of equal ones the later."""
    order = np.argsort(values, axis=1, kind="stable")
    width = values.shape[1]
    return tuple(tuple(sorted(int(i) for i in row[width - count :])) for row, count in zip(order, counts, strict=True))


def _too_much(sparsity: float, sizes: BlockSizes, groups: int) -> ValueError:
    return ValueError(
        f"sparsity {sparsity:g} is too much: each layer keeps at least {groups} of {sizes.groups} groups of heads and "
        f"{LEAST_NEURONS} of {sizes.neurons} neurons; ask for less, or for another gamma"
    )
